"""Run one teacher, or an ensemble of teachers, as a single function from images to logits."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from utils.config import Committee
from utils.data.batch import Batch, refuse_non_finite
from utils.system.errors import InputError, clause
from utils.system.files import digest_of
from utils.system.model_names import plain_name
from utils.training.models import build_teacher, pretrained_name
from utils.training.own_model import source_digest
from utils.training.precision import Precision

# On a GPU, small batches are combined into forward passes of at most this number of images.
TEACHER_ROWS = 512


def combine(logits: torch.Tensor, rule: str, shares: Sequence[float] | None = None) -> torch.Tensor:
    """Combine the logits of n teachers into one tensor of logits.

    Args:
        logits: the logits of each teacher, float32 [n, B, C].
        rule: one of

            * `mean`: the mean over teachers, weighted by `shares`.
            * `norm-mean` (PRISM for ResNet-18): each teacher's logits [B, C] are scaled so that their Frobenius norm
              equals the mean of all teachers' norms. The result is the mean of the scaled logits over teachers.
            * `main-weighted` (PRISM for ResNet-50 and ResNet-101): the first teacher has weight 0.5, and the mean of
              the other teachers has weight 0.5. Then each row is scaled to the mean row norm of the batch.
        shares: weight of each teacher in the rule `mean`, with a sum of 1; None if all weights are equal.

    Returns:
        float32 [B, C].
    """
    if rule == "mean":
        if shares is None:
            return logits.mean(dim=0)
        return torch.stack([share * part for share, part in zip(shares, logits, strict=True)]).sum(dim=0)
    if rule == "norm-mean":
        norms = logits.flatten(1).norm(dim=1)[:, None, None]
        return (logits / norms * norms.mean()).mean(dim=0)
    main, others = logits[0], logits[1:]
    if len(others):
        main = 0.5 * main + 0.5 * others.mean(dim=0)
    norms = main.norm(dim=1, keepdim=True)
    return main / norms * norms.mean()


class Ensemble:
    """One or more teachers, whose logits for the same images are combined.

    Args:
        names: model name of each teacher.
        files: for each teacher, the file with its weights, or None for the library's pretrained weights.
        rule: how logits are combined, see `combine`.
        precision: `Precision` of the forward passes.
        stem: `standard` or `small`, or a list with the stem of each teacher.
        flag: the command-line flag that set `names`; error messages mention it.
        weights: for each teacher, the name of its pretrained weights, or None for the default of `pretrained_name`.
            Unused for teachers with a file.
        input_size: side of the images in pixels; each teacher is tested on one image of this size. None: each teacher
            is built for its default size, without a test.
        in_channels: number of channels of the images, 3 or 1; each teacher's weights must fit this number.
        shares: weight of each teacher in the rule `mean`, with a sum of 1; None if all weights are equal.
        bssl: whether to compute batch-specific soft labels, as CV-DD and FADRM do: the two halves of a batch are
            answered one after the other, and batch normalisation uses the statistics of the half. Otherwise, it uses
            the running statistics of the teacher. Dropout is off in both cases.

    Attributes:
        parts: number of parts into which a batch is cut, so that batch normalisation uses the statistics of each part:
            2 with `bssl`. 0: batches are not cut, and batch normalisation uses the running statistics.
        described: a dict for each teacher: `arch`, `weights` (digest of the file, or name in the library) and, if the
            model is a function in a file, `model_file` (digest of that file).
        kept: int64 [C] on the device, numbers of the teachers' classes whose logits are returned; None to return all.

    Raises:
        InputError: a teacher cannot be built or cannot process images of this size, the teachers have different
            numbers of classes, or `bssl` is True and no teacher has batch normalisation.
    """

    def __init__(
        self,
        names: Sequence[str],
        files: Sequence[str | None],
        rule: str,
        precision: Precision,
        stem: str | Sequence[str] = "standard",
        flag: str = "--arch",
        weights: Sequence[str | None] | None = None,
        input_size: int | None = None,
        in_channels: int = 3,
        shares: Sequence[float] | None = None,
        bssl: bool = False,
    ):
        self.rule, self.precision, self.flag, self.in_channels = rule, precision, flag, in_channels
        self.shares, self.parts = shares, 2 if bssl else 0
        self.teachers: list[torch.nn.Module] = []
        self.described: list[dict[str, str]] = []
        self.kept: torch.Tensor | None = None
        stems = [stem] * len(names) if isinstance(stem, str) else stem
        for name, file, asked, own_stem in zip(names, files, weights or [None] * len(names), stems, strict=True):
            teacher = build_teacher(
                name, file, own_stem, flag=flag, weights=asked, input_size=input_size, in_channels=in_channels
            )
            self.teachers.append(precision.place(teacher))
            code = source_digest(name)
            self.described.append(
                {"arch": plain_name(name), "weights": digest_of(file) if file else pretrained_name(name, asked, flag)}
                | ({"model_file": code} if code else {})
            )
        layers = [layer for teacher in self.teachers for layer in teacher.modules()]
        # each layer of batch normalisation, and whether it has running statistics
        self.norms = [(layer, layer.track_running_stats) for layer in layers if isinstance(layer, _BatchNorm)]
        if bssl and not self.norms:
            raise InputError(
                f"batch-specific soft labels (--bssl) need batch normalisation, and {flag} {' + '.join(names)} has "
                "none; leave out --bssl, or choose other teachers"
            )
        if input_size is not None:
            self._check(names, input_size)

    def __str__(self) -> str:
        names = [f"{teacher['arch']} ({teacher['weights']})" for teacher in self.described]
        if self.shares is not None:
            names = [f"{share:.3g} x {name}" for share, name in zip(self.shares, names, strict=True)]
        return " + ".join(names) + (", by the statistics of each half of a batch" if self.parts else "")

    @torch.no_grad()
    def _check(self, names: Sequence[str], input_size: int) -> None:
        """Test each teacher on an image of zeros with `input_size` x `input_size` pixels.

        Raises:
            InputError: a teacher fails or does not return logits, or the teachers have different numbers of classes.
        """
        classes = []
        for name, teacher in zip(names, self.teachers, strict=True):
            try:
                with self.precision.autocast():
                    answer = teacher(self.blank(1, input_size))
            except torch.cuda.OutOfMemoryError:  # lack of memory does not mean that the image size is wrong
                raise
            except Exception as error:  # models raise many kinds of errors if an image is too small
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
                f"{self.flag}: teachers differ in their number of classes ({each}); give teachers with the same number"
            )

    def refuse_fewer_classes(self, folders: int, data: str, input_size: int) -> None:
        """Compare the number of classes of the teachers with the number of class folders.

        Args:
            folders: number of class folders.
            data: flag and path of these folders; the error message mentions them.
            input_size: side of the images in pixels.

        Raises:
            InputError: the teachers have fewer classes than there are folders.
        """
        classes = self.num_classes(input_size)
        if classes < folders:
            names = " + ".join(teacher["arch"] for teacher in self.described)
            raise InputError(
                f"{self.flag} {names} has {classes} classes, but {data} has {folders} class folders; give a "
                "teacher that was trained on all of them"
            )

    def keep_classes(self, numbers: Sequence[int]) -> None:
        """Make the ensemble return only the logits of some classes.

        The logits of several teachers are combined first, so that the norms in `combine` cover all classes.

        Args:
            numbers: the teachers' class numbers, in the order of the returned logits.
        """
        self.kept = torch.tensor(numbers, device=self.precision.device)

    def num_classes(self, input_size: int) -> int:
        """Return the number of classes C of the combined logits; after `keep_classes`, the number of kept classes.

        C is measured by a forward pass on images of zeros with `input_size` x `input_size` pixels.
        """
        # with statistics of the batch, a part of one image might have too few values
        return self(self.blank(max(1, 2 * self.parts), input_size)).shape[1]

    def blank(self, count: int, input_size: int) -> torch.Tensor:
        """Return `count` images of zeros on the device: float32 [count, in_channels, input_size, input_size]."""
        return torch.zeros(count, self.in_channels, input_size, input_size, device=self.precision.device)

    def refuse_small_batch(self, rows: int, input_size: int, remedy: str) -> None:
        """Check that the teachers can answer a batch with the statistics of its halves, if --bssl asks for that.

        Args:
            rows: number of images in the batch.
            input_size: side of the images in pixels.
            remedy: end of the error message: what to do.

        Raises:
            InputError: a half of the batch is a single image, and a layer with one pixel per channel cannot take
                statistics of a single value.
        """
        if not self.parts or rows >= 2 * self.parts:
            return
        try:
            self(self.blank(rows, input_size))
        except ValueError as error:
            raise InputError(
                f"--bssl: a batch of {rows} images has a half of one image, of which batch normalisation cannot take "
                f"statistics ({clause(error)}); {remedy}"
            ) from None

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return the combined logits, float32 [B, C], of images [B, in_channels, S, S].

        The call returns without waiting for the device.

        Raises:
            InputError: the teachers have different numbers of classes.
        """
        return self.answer([images])[0]

    @torch.no_grad()
    def answer(self, batches: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Compute the logits of several batches in one forward pass, and combine the teachers' logits batch by batch.

        If batch normalisation uses the statistics of parts of a batch, each part has a forward pass of its own.

        Args:
            batches: images [B, in_channels, S, S] of each batch.

        Returns:
            combined logits of each batch, float32 [B, C].

        Raises:
            InputError: the teachers have different numbers of classes.
        """
        rows = [len(batch) for batch in batches]
        if not sum(rows):  # a rank may have no rows, and some models fail on an empty batch
            return [torch.zeros(0, self.num_classes(batches[0].shape[-1]), device=self.precision.device)]
        if self.parts:
            passes = [part for batch in batches for part in parts_of(batch, self.parts)]
        else:
            passes = [joined(batches)]
        for layer, tracks in self.norms:
            if layer.training != bool(self.parts):  # only `verify` asks the same teachers in both ways
                # with statistics of the batch, the layer does not update its running statistics
                layer.training, layer.track_running_stats = bool(self.parts), tracks and not self.parts
        with self.precision.autocast():
            answers = [joined([teacher(images) for images in passes]) for teacher in self.teachers]
        if len({answer.shape[1] for answer in answers}) > 1:
            raise InputError(
                f"{self.flag}: teachers have {[a.shape[1] for a in answers]} classes; they must have the same"
            )
        if len(answers) == 1 and self.rule == "mean":
            combined = list(answers[0].float().split(rows))
        else:
            together = torch.stack(answers).float()
            combined = [combine(part, self.rule, self.shares) for part in together.split(rows, dim=1)]
        return combined if self.kept is None else [part.index_select(1, self.kept) for part in combined]

    def answers_to(self, batches: Iterable[Batch]) -> Iterator[torch.Tensor]:
        """Yield the combined logits of each batch: float32 [B, C] on the host.

        On a GPU, a forward pass covers several batches, and the next pass is queued before this method waits for the
        previous pass. On the CPU, each batch has its own forward pass: one batch is enough to keep all cores busy, and
        a pass over several batches could round the logits differently.

        Raises:
            InputError: the teachers have different numbers of classes, or a logit is not finite.
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


def open_committee(
    chosen: Committee, precision: Precision, input_size: int, in_channels: int, flag: str = "--arch"
) -> Ensemble:
    """Load the teachers that the flags of a command select; for the arguments and errors, see `Ensemble`."""
    return Ensemble(
        chosen.names,
        chosen.files,
        chosen.rule,
        precision,
        chosen.stems,
        flag=flag,
        weights=chosen.weights,
        input_size=input_size,
        in_channels=in_channels,
        shares=chosen.shares,
        bssl=chosen.bssl,
    )


def joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the rows of all tensors as one tensor; a single tensor is returned without a copy."""
    return torch.cat(list(parts)) if len(parts) > 1 else parts[0]


def parts_of(batch: torch.Tensor, count: int) -> list[torch.Tensor]:
    """Split a batch into `count` parts, at rows n // 2 for two parts, as CV-DD and FADRM do; omit empty parts."""
    bounds = [len(batch) * number // count for number in range(count + 1)]
    return [batch[first:last] for first, last in itertools.pairwise(bounds) if last > first]


def fetched(answers: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Start copying the logits of several batches to the host; return an iterator over the copies.

    The iterator waits until the copies are complete, and raises InputError if a logit is not finite; see `checked`.
    """
    copies = [answer.to("cpu", non_blocking=answer.is_cuda) for answer in answers]
    arrived = None
    if answers[0].is_cuda:
        arrived = torch.cuda.Event()
        arrived.record()
    return checked(copies, arrived)


def checked(copies: Sequence[torch.Tensor], arrived: torch.cuda.Event | None) -> Iterator[torch.Tensor]:
    """Wait for the event `arrived`, which marks the end of all copies to the host; then yield the copies in order.

    Raises:
        InputError: a logit is not finite.
    """
    if arrived is not None:
        arrived.synchronize()
    for copy in copies:
        refuse_non_finite(copy.isfinite().all())
        # clone if the memory is pinned, so that the pinned memory can be used again
        yield copy.clone() if copy.is_pinned() else copy
