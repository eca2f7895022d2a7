"""One teacher or several, as one function from images to the logits that are stored."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import torch

from utils.system.errors import InputError, clause
from utils.system.files import digest_of
from utils.training.models import build_teacher, pretrained_name
from utils.training.precision import Precision
from utils.views.batch import Batch
from utils.views.live import refuse_non_finite

TEACHER_ROWS = 512  # images that a GPU answers at once, where stored batches are smaller


def combine(logits: torch.Tensor, rule: str) -> torch.Tensor:
    """Combine the answers of n teachers.

    Args:
        logits: float32 [n, B, C].
        rule: `mean`; `norm-mean` (PRISM r18): each teacher's answers are scaled so that their Frobenius
            norm over the batch is the teachers' mean, then averaged; `main-weighted` (PRISM r50, r101):
            0.5 to the first teacher, the rest shared; then each row is scaled to the batch's mean row norm.

    Returns:
        float32 [B, C].
    """
    if rule == "mean":
        return logits.mean(dim=0)
    if rule == "norm-mean":
        norms = logits.flatten(1).norm(dim=1)[:, None, None]
        return (logits / norms * norms.mean()).mean(dim=0)
    main, others = logits[0], logits[1:]
    if len(others):
        main = 0.5 * main + 0.5 * others.mean(dim=0)
    norms = main.norm(dim=1, keepdim=True)
    return main / norms * norms.mean()


class Ensemble:
    """Teachers that answer together.

    Args:
        names, files: models, and their weights or None for the library's.
        rule: how answers are combined, see `combine`.
        precision: `Precision`; bf16 and channels-last where it says so.
        stem: of every teacher.
        flag: the flag to name in errors.
        weights: for each teacher without a file, as `asked` of `pretrained_name`; None: the usual ones of all.
        input_size: side of the images in pixels; each teacher is asked once. None: teachers of the usual size, unasked.

    Attributes:
        described: for each teacher its `arch` and `weights`: the digest of its file, or the library's name of them.

    Raises:
        InputError: a teacher cannot be built or answer at this size, or they disagree on the number of classes.
    """

    def __init__(
        self,
        names: Sequence[str],
        files: Sequence[str | None],
        rule: str,
        precision: Precision,
        stem: str = "standard",
        flag: str = "--arch",
        weights: Sequence[str | None] | None = None,
        input_size: int | None = None,
    ):
        self.rule, self.precision, self.flag = rule, precision, flag
        self.teachers: list[torch.nn.Module] = []
        self.described: list[dict[str, str]] = []
        for name, file, asked in zip(names, files, weights or [None] * len(names), strict=True):
            teacher = build_teacher(name, file, stem, flag=flag, weights=asked, input_size=input_size)
            self.teachers.append(precision.place(teacher))
            self.described.append(
                {"arch": name, "weights": digest_of(file) if file else pretrained_name(name, asked, flag)}
            )
        if input_size is not None:
            self._check(names, input_size)

    def __str__(self) -> str:
        return " + ".join(f"{teacher['arch']} ({teacher['weights'][:24]})" for teacher in self.described)

    @torch.no_grad()
    def _check(self, names: Sequence[str], input_size: int) -> None:
        """Ask each teacher alone with one black image."""
        images = torch.zeros(1, 3, input_size, input_size, device=self.precision.device)
        classes = []
        for name, teacher in zip(names, self.teachers, strict=True):
            try:
                with self.precision.autocast():
                    answer = teacher(images)
            except torch.cuda.OutOfMemoryError:  # not the size's fault
                raise
            except Exception as error:  # whatever a model meets in an image that is too small for it
                raise InputError(
                    f"{self.flag} {name} cannot answer at --input-size {input_size} ({clause(error)}); choose another "
                    "size or teacher"
                ) from None
            if not isinstance(answer, torch.Tensor) or answer.dim() != 2:
                shape = list(answer.shape) if isinstance(answer, torch.Tensor) else type(answer).__name__
                raise InputError(f"{self.flag} {name} answers with {shape}, not with logits; choose a classifier")
            classes.append(answer.shape[1])
        if len(set(classes)) > 1:
            each = ", ".join(f"{name} {count}" for name, count in zip(names, classes, strict=True))
            raise InputError(
                f"{self.flag}: teachers differ in their number of classes ({each}); give teachers of the same"
            )

    def refuse_fewer_classes(self, folders: int, data: str, input_size: int) -> None:
        """Raise InputError where there are more class folders than classes; `data` is their flag and path."""
        classes = self.num_classes(input_size)
        if classes < folders:
            names = " + ".join(teacher["arch"] for teacher in self.described)
            raise InputError(
                f"{self.flag} {names} answers for {classes} classes, but {data} has {folders} class folders; give a "
                "teacher that was trained on all of them"
            )

    def num_classes(self, input_size: int) -> int:
        """C, asked of the teachers with one black image of S x S pixels."""
        return self(torch.zeros(1, 3, input_size, input_size, device=self.precision.device)).shape[1]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits float32 [B, C] for images [B, 3, S, S]; nothing waits for the device.

        Raises:
            InputError: the teachers disagree on C.
        """
        return self.answer([images])[0]

    @torch.no_grad()
    def answer(self, batches: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Answer several batches of images in one forward pass; the rule sees each batch alone, as stored.

        Args:
            batches: [B, 3, S, S] each.

        Returns:
            logits float32 [B, C] of each.

        Raises:
            InputError: the teachers disagree on C.
        """
        images = torch.cat(list(batches)) if len(batches) > 1 else batches[0]
        if not len(images):  # a rank's share may be empty, and not every model takes that
            return [torch.zeros(0, self.num_classes(images.shape[-1]), device=self.precision.device)]
        with self.precision.autocast():
            answers = [teacher(images) for teacher in self.teachers]
        if len({answer.shape[1] for answer in answers}) > 1:
            raise InputError(
                f"{self.flag}: teachers have {[a.shape[1] for a in answers]} classes; they must have the same"
            )
        rows = [len(batch) for batch in batches]
        if len(answers) == 1 and self.rule == "mean":
            return list(answers[0].float().split(rows))
        return [combine(part, self.rule) for part in torch.stack(answers).float().split(rows, dim=1)]

    def answers_to(self, batches: Iterable[Batch]) -> Iterator[torch.Tensor]:
        """Yield what is to be stored for each batch: logits float32 [B, C] on the host.

        A GPU is given several batches at a time, and the next ones before the answers to the last are awaited.
        On the CPU, where a batch keeps the cores busy, each has a forward pass of its own, which keeps its bits.

        Raises:
            InputError: the teachers disagree on C, or an answer is not finite.
        """
        on_the_way: list[Iterator[torch.Tensor]] = []
        stream = iter(batches)
        for first in stream:
            more = TEACHER_ROWS // len(first) - 1 if self.precision.device.type == "cuda" else 0
            group = [first, *islice(stream, max(more, 0))]
            on_the_way.append(fetched(self.answer([batch.images for batch in group])))
            if len(on_the_way) > 1:
                yield from on_the_way.pop(0)
        for answers in on_the_way:
            yield from answers


def fetched(answers: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Start to copy tensors to the host; the iterator waits for them, and refuses what is not finite."""
    copies, arrived = [answer.to("cpu", non_blocking=True) for answer in answers], None
    if answers[0].is_cuda:
        arrived = torch.cuda.Event()
        arrived.record()
    return checked(copies, arrived)


def checked(copies: Sequence[torch.Tensor], arrived: torch.cuda.Event | None) -> Iterator[torch.Tensor]:
    """Wait for the copies, and yield each."""
    if arrived is not None:
        arrived.synchronize()
    for copy in copies:
        refuse_non_finite(copy.isfinite().all())
        yield copy.clone() if copy.is_pinned() else copy  # pinned memory is dear, and used again
