"""What the student will see: replayed views with their classes, for a look before training."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch

from utils.labels.agreement import dominating
from utils.labels.store import LabelStore
from utils.labels.types import BatchLabels, TopK
from utils.labels.views import index_of
from utils.system.files import atomic_file
from utils.system.text import printable
from utils.views.live import refuse_non_finite
from utils.views.replay import Normalise, finish_views, mix_images
from utils.views.workers import Positions, ViewDataset

SHOWN = 16  # views, four in a row
SECONDS, EPOCHS = 3, 30  # that a teacher may be asked before it labels
NAME_WIDTH = 16  # letters of a class name: two of them fit above a view


def ask_teacher(
    dataset: ViewDataset,
    epoch: int,
    normalise: Normalise,
    teacher: Callable[[torch.Tensor], torch.Tensor],
    num_folders: int,
) -> list[BatchLabels]:
    """Have a teacher answer the first views from an epoch on, as it will be asked: enough to see which class is which.

    Some 30 views per class are wanted that are mostly of one image, but it stops after a few seconds.

    Args:
        dataset: views without answers, of any epoch.
        epoch: the first epoch whose batches are shown; where it has too few, those of the next ones.
        normalise, teacher: images float [B, 3, S, S] -> logits [B, C].
        num_folders: class folders.

    Returns:
        batches of labels, whose crops are not filled in.

    Raises:
        InputError: an answer is not finite.
    """
    answered: list[BatchLabels] = []
    rows, started = 0, time.monotonic()
    for positions in Positions(range(epoch, epoch + EPOCHS), dataset.source):
        dataset.load_batch_config(positions[0])
        views = torch.stack([view for view, *_ in dataset.__getitems__(positions)])
        images = finish_views(views.to(normalise.mean.device), normalise, dataset.labels.mix)
        logits = teacher(images)
        refuse_non_finite(logits.isfinite().all())
        crops, flips = torch.zeros(len(views), 4), torch.zeros(len(views), dtype=torch.bool)
        index, stored = index_of(dataset.labels), logits.float().cpu()
        answered.append(BatchLabels(crops, flips, dataset.labels.mix, stored, index))
        rows += int(dominating(answered[-1], dataset.input_size)[1].sum())  # two halves of a view say little
        if rows >= 30 * num_folders or time.monotonic() - started > SECONDS:
            break
    return answered


class Preview:
    """The first views of an epoch, replayed and mixed, with the teacher's answers.

    Attributes (n = up to 16 views):
        images: uint8 [n, S, S, 3].
        targets, partners: int64 [n], folder class of each view and of the one mixed into it.
        logits: float32 [n, C]; None where no teacher has answered.

    Args:
        dataset: `ViewDataset`.
        epoch: which epoch's first batch.
        normalise, teacher: for labels that do not exist yet: images float [B, 3, S, S] -> logits; without, none.
    """

    def __init__(
        self,
        dataset: ViewDataset,
        epoch: int,
        normalise: Normalise | None = None,
        teacher: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        epochs = range(epoch, epoch + 1)
        positions = next(iter(Positions(epochs, dataset.source)))
        dataset.load_batch_config(positions[0])
        mix, logits = dataset.labels.mix, dataset.labels.logits
        slots = list(range(min(SHOWN, len(positions))))
        partners = slots if mix.partner is None else mix.partner[slots].tolist()
        views, classes = zip(*(dataset[positions[slot]][:2] for slot in slots + partners), strict=True)
        views, n = torch.stack(views), len(slots)
        mix = mix._replace(partner=torch.arange(2 * n).roll(n))  # row i is mixed with row n + i
        mixed = mix_images(views.permute(0, 3, 1, 2).float(), mix)[:n]
        if logits is None and teacher is not None and normalise is not None:
            logits = teacher(mix_images(normalise(views.to(normalise.mean.device)), mix)[:n])
            refuse_non_finite(logits.isfinite().all())
        self.images = mixed.round().byte().permute(0, 2, 3, 1)
        self.targets, self.partners = torch.tensor(classes).split(n)
        if isinstance(logits, TopK):
            store = cast(LabelStore, dataset.source.store)  # nothing else has such answers
            logits = logits.dense(store.num_classes, 1.0, renormalise=False)
        self.logits = None if logits is None else logits[:n].float().cpu()

    def draw(self, path: Path, names: list[str]) -> None:
        """Write a picture: each view under its folder class and the teacher's three best classes.

        Args:
            path: PNG file to write; its folder is made.
            names: class folder names, in order.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(12, 13), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(4, 4).flatten()
        for place in axes:
            place.axis("off")
        answers = [None] * len(self.images) if self.logits is None else list(self.logits)
        classes = zip(self.targets.tolist(), self.partners.tolist(), answers, strict=True)
        for place, image, (target, partner, logits) in zip(axes, self.images, classes, strict=False):
            place.imshow(image.numpy())
            place.set_title(caption(target, partner, logits, names), fontsize=11, parse_math=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            figure.savefig(temporary, format="png", dpi=100)


def caption(target: int, partner: int, logits: torch.Tensor | None, names: list[str]) -> str:
    """Return the lines above a view: its folder classes, and the teacher's three best, each with its probability."""
    folders = short(names[target]) if target == partner else f"{short(names[target])} + {short(names[partner])}"
    if logits is None:
        return folders
    best = logits.softmax(dim=0).topk(min(3, len(logits)))
    answers = [
        f"{short(names[i]) if i < len(names) else f'class {i}'} {100 * p:.0f} %"
        for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
    return "\n".join([folders, f"teacher: {answers[0]}", *answers[1:]])


def short(name: str) -> str:
    """A class name, cut where it would run into its neighbour's."""
    name = printable(name)
    return name if len(name) <= NAME_WIDTH else name[: NAME_WIDTH - 1] + "…"
