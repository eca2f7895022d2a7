"""Look at the first augmented images before training: draw them as a picture, or let a live teacher label them."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch

from utils.data.batch import refuse_non_finite
from utils.data.replay import Normalise, finish_views
from utils.data.workers import Positions, ViewDataset
from utils.labels.agreement import dominating
from utils.labels.store import LabelStore
from utils.labels.types import BatchLabels, TopK, unweighted
from utils.labels.views import index_of
from utils.system.errors import printable
from utils.system.files import atomic_file

SHOWN = 16  # number of augmented images in a preview picture, four per row
ASK_SECONDS = 3  # time limit of `ask_teacher`, in which a live teacher labels some images before training
ASK_EPOCHS = 30  # `ask_teacher` stops after this many epochs
NAME_WIDTH = 16  # class names are cut to this length, because two of them must fit above an image of the preview


def ask_teacher(
    dataset: ViewDataset,
    epoch: int,
    normalise: Normalise,
    teacher: Callable[[torch.Tensor], torch.Tensor],
    num_folders: int,
) -> list[BatchLabels]:
    """Let a live teacher label the first augmented images (views) of a run, and return the labels.

    The caller compares the labels with the class folders, to check the order of the teacher's classes. Labelling ends
    after ASK_SECONDS, after ASK_EPOCHS epochs, or after an average of 30 usable views per class folder. A view is
    usable if, after cutmix or mixup, one image makes up at least two thirds of the view.

    Args:
        dataset: `ViewDataset` whose views are drawn at random and have no soft labels.
        epoch: the first epoch to label; the following epochs are used if that epoch has too few views.
        normalise: normalisation of the teacher's input.
        teacher: function from images, float [B, 3, S, S], to logits [B, C].
        num_folders: number of class folders.

    Returns:
        the labels of each batch; the fields `crops` and `flips` contain only zeros.

    Raises:
        InputError: a logit is not finite.
    """
    answered: list[BatchLabels] = []
    rows, started = 0, time.monotonic()
    for positions in Positions(range(epoch, epoch + ASK_EPOCHS), dataset.source):
        dataset.load_batch_config(positions[0])
        views = torch.stack([view for view, *_ in dataset.__getitems__(positions)]).to(normalise.mean.device)
        images = finish_views(views, normalise, dataset.labels.mix, dataset.labels.augment)
        logits = teacher(images)
        refuse_non_finite(logits.isfinite().all())
        crops = torch.zeros(len(views), 4)
        flips = torch.zeros(len(views), dtype=torch.bool)
        index = index_of(dataset.labels)
        answered.append(BatchLabels(crops, flips, dataset.labels.mix, logits.float().cpu(), index))
        # count only views that one image dominates: an even mix of two images does not show which one the teacher sees
        rows += int(dominating(answered[-1], dataset.input_size)[1].sum())
        if rows >= 30 * num_folders or time.monotonic() - started > ASK_SECONDS:
            break
    return answered


class Preview:
    """Data of a preview picture: the first augmented images (views) of an epoch, their classes and teacher logits.

    Attributes (n = up to 16 views):
        images: uint8 [n, S, S, C], the views after augmentation and cutmix or mixup.
        targets: int64 [n], class of each view.
        partners: int64 [n], class of the image that is mixed into each view; the view's own class without mixing.
        logits: float32 [n, C]; None if there are neither soft labels nor a teacher.

    Args:
        dataset: `ViewDataset`.
        epoch: epoch whose first batch is shown.
        normalise: normalisation of the models' input.
        answers: float32 [R, C], a teacher's logits for the first R views of the epoch, in order; used if the dataset
            has no soft labels. None without a teacher.
    """

    def __init__(
        self,
        dataset: ViewDataset,
        epoch: int,
        normalise: Normalise,
        answers: torch.Tensor | None = None,
    ) -> None:
        epochs = range(epoch, epoch + 1)
        positions = next(iter(Positions(epochs, dataset.source)))
        dataset.load_batch_config(positions[0])
        mix, logits = dataset.labels.mix, dataset.labels.logits
        slots = list(range(min(SHOWN, len(positions))))
        partners = slots if mix.partner is None else mix.partner[slots].tolist()
        views, classes = zip(*(dataset[positions[slot]][:2] for slot in slots + partners), strict=True)
        parameters = dataset.labels.augment
        parameters = None if parameters is None else parameters[slots + partners]
        n = len(slots)
        # `views` holds n views and then their n mix partners: row i is mixed with row n + i
        mix = mix._replace(partner=torch.arange(2 * n).roll(n))
        mixed = finish_views(torch.stack(views).to(normalise.mean.device), normalise, mix, parameters)[:n]
        logits = answers if logits is None else logits
        self.images = normalise.visible(mixed).cpu()
        self.targets, self.partners = torch.tensor(classes).split(n)
        logits = None if logits is None else unweighted(logits)
        if isinstance(logits, TopK):
            store = cast(LabelStore, dataset.source.store)  # `TopK` logits come only from a label store
            logits = logits.dense(store.num_classes, 1.0, renormalise=False)
        self.logits = None if logits is None else logits[:n].float().cpu()

    def draw(self, path: Path, names: list[str]) -> None:
        """Write a picture of the augmented images. The text above each image is its `caption`.

        Args:
            path: PNG file to write; its folder is created.
            names: name of each class.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(12, 13), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(4, 4).flatten()
        for panel in axes:
            panel.axis("off")
        answers = [None] * len(self.images) if self.logits is None else list(self.logits)
        classes = zip(self.targets.tolist(), self.partners.tolist(), answers, strict=True)
        for panel, image, (target, partner, logits) in zip(axes, self.images, classes, strict=False):
            panel.imshow(image.expand(-1, -1, 3).numpy())
            panel.set_title(caption(target, partner, logits, names), fontsize=11, parse_math=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            figure.savefig(temporary, format="png", dpi=100)


def caption(target: int, partner: int, logits: torch.Tensor | None, names: list[str]) -> str:
    """Return the text above an image of the preview: its classes, and the teacher's top 3 classes with probabilities.

    Args:
        target: class of the image.
        partner: class of the image that is mixed into it.
        logits: the teacher's logits, float [C]; None without a teacher.
        names: name of each class.
    """
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
    """Return a class name that is cut to at most NAME_WIDTH characters, to fit above an image of the preview."""
    name = printable(name)
    return name if len(name) <= NAME_WIDTH else name[: NAME_WIDTH - 1] + "…"
