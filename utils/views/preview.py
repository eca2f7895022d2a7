"""What the student will see: replayed views with their classes, for a look before training."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch

from utils.labels.agreement import agreement
from utils.labels.batch import TopK
from utils.labels.store import LabelStore
from utils.system.files import atomic_file
from utils.system.text import printable
from utils.views.live import refuse_non_finite
from utils.views.replay import Normalise, mix
from utils.views.workers import Positions, ViewDataset

SHOWN = 16  # views, four in a row
NAME_WIDTH = 16  # letters of a class name: two of them fit above a view


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
        mix_index, mix_lam, mix_bbox, logits = dataset.load_batch_config(positions[0])
        slots = list(range(min(SHOWN, len(positions))))
        partners = slots if mix_index is None else mix_index[slots].tolist()
        views, classes = zip(*(dataset[positions[slot]][:2] for slot in slots + partners), strict=True)
        views, n = torch.stack(views), len(slots)
        other = torch.arange(2 * n).roll(n)  # row i is mixed with row n + i
        mixed = mix(views.permute(0, 3, 1, 2).float(), other, mix_lam, mix_bbox)[:n]
        if logits is None and teacher is not None and normalise is not None:
            logits = teacher(mix(normalise(views.to(normalise.mean.device)), other, mix_lam, mix_bbox)[:n])
            refuse_non_finite(logits.isfinite().all())
        self.images = mixed.round().byte().permute(0, 2, 3, 1)
        self.targets, self.partners = torch.tensor(classes).split(n)
        if isinstance(logits, TopK):
            store = cast(LabelStore, dataset.source)  # nothing else has such answers
            logits = logits.dense(store.num_classes, 1.0, renormalise=False)
        self.logits = None if logits is None else logits[:n].float().cpu()

    @property
    def answers(self) -> torch.Tensor:
        """`logits` where a teacher has answered."""
        if self.logits is None:
            raise ValueError("no teacher has answered these views")
        return self.logits

    def agreement(self, num_folders: int) -> tuple[float, float]:
        """As `preflight.agreement`, on these views."""
        classes = max(num_folders, self.answers.shape[1])
        return agreement(self.answers.argmax(dim=1), self.targets, self.partners, classes)

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
