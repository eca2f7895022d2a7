"""Look at augmented images before training: draw some as a picture, or let a live teacher label the first ones."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch

from utils.data.batch import refuse_non_finite
from utils.data.replay import Normalise, finish_views
from utils.data.workers import Positions, ViewDataset
from utils.labels.agreement import dominating, pick_evenly
from utils.labels.store import LabelStore
from utils.labels.types import BatchLabels, TopK, unweighted
from utils.labels.views import index_of
from utils.system.files import make_folder
from utils.system.plotting import GREY, INCH, SIZE, SMALL, VERMILION, new_figure, save, style, wrap

SHOWN, COLUMNS = 16, 4  # number of augmented images in a preview picture, and in one of its rows
TAUGHT = 4  # number of batches in a preview picture that a live teacher labels; it has to label them as a whole
ASK_SECONDS = 3  # time limit of `ask_teacher`, in which a live teacher labels some images before training
ASK_EPOCHS = 30  # `ask_teacher` stops after this many epochs
PANEL, GAP, MARGIN = 4.0, 0.45, 0.3  # in cm: side of an image in a preview, space between images, margin of the page
LINE = 0.32  # height in cm of a line of text in a preview
ENLARGED = 256  # an image in a preview has about this number of pixels per side, or more if the image itself has more


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
    """Data of a preview picture: augmented images (views) of several epochs and batches, with the teacher's logits.

    The epochs and batches are evenly spaced over the run, since all views of a batch have the same cutmix box or mixup
    ratio.

    Attributes (n = up to 16 views):
        places: (epoch, batch, row) of each view, as the run counts them, from 0.
        images: uint8 [n, S, S, C], the views after augmentation and cutmix or mixup.
        targets: int64 [n], class of each view.
        partners: int64 [n], class of the image that is mixed into each view; the view's own class without mixing.
        mixing: how the views are mixed, in words.
        shares: share of its own image in each view, from 0 to 1; None without mixing.
        logits: float32 [n, C]; None if there are neither soft labels nor a teacher.

    Args:
        dataset: `ViewDataset`.
        epochs: epochs that the run trains on or labels.
        normalise: normalisation of the models' input.
        teacher: function from images [B, 3, S, S] to logits [B, C], used if the dataset has no soft labels. It gets
            whole batches, since the answers of some teachers depend on all images of a batch. None without a teacher.
    """

    def __init__(
        self,
        dataset: ViewDataset,
        epochs: range,
        normalise: Normalise,
        teacher: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        source = dataset.source
        self.epochs, self.batches = epochs.stop, source.batches_per_epoch
        self.mixing = "unmixed"
        self.places: list[tuple[int, int, int]] = []
        self.shares: list[float | None] = []
        images, targets, partners, logits = [], [], [], []
        for (epoch, batch), slots in choose_views(dataset, epochs, TAUGHT if teacher else SHOWN).items():
            first = (epoch * source.batches_per_epoch + batch) * source.batch_size
            dataset.load_batch_config(first)
            mix, parameters, rows = dataset.labels.mix, dataset.labels.augment, torch.tensor(slots)
            partner = rows if mix.partner is None else mix.partner[rows]
            # without a teacher, only the views that are drawn and their mix partners are made
            needed = torch.cat([rows, partner]) if teacher is None else torch.arange(source.rows(epoch, batch))
            views, folders = zip(*(dataset[first + slot][:2] for slot in needed.tolist()), strict=True)
            if teacher is None:
                # `views` holds n views and then their n mix partners: row i is mixed with row n + i
                mix = mix._replace(partner=torch.arange(len(needed)).roll(len(rows)))
                rows, partner = torch.arange(len(needed)).chunk(2)
            stacked = torch.stack(views).to(normalise.mean.device)
            mixed = finish_views(stacked, normalise, mix, None if parameters is None else parameters[needed])
            classes = torch.tensor(folders)
            images.append(normalise.visible(mixed[rows]).cpu())
            targets.append(classes[rows])
            partners.append(classes[partner])
            answers = teacher(mixed)[rows] if teacher else dense_logits(dataset, slots)
            logits += [] if answers is None else [answers.float().cpu()]
            self.places += [(epoch, batch, slot) for slot in slots]
            if mix.type != "none":
                self.mixing = f"mixed by {mix.type}"
            self.shares += [None if mix.type == "none" else mix.own_share(dataset.input_size)] * len(slots)
        self.images, self.targets, self.partners = torch.cat(images), torch.cat(targets), torch.cat(partners)
        self.logits = torch.cat(logits) if logits else None

    def draw(self, path: Path, names: list[str], images: str, labels: str) -> None:
        """Write a picture of the augmented images, each with its place in the run, its classes and its logits.

        Each image of the data becomes whole pixels of the picture: small images are enlarged by a whole number, without
        a blur, and large images are not reduced.

        Args:
            path: PNG file to write; its folder is created.
            names: name of each class.
            images: name of the image set, for the title.
            labels: name of the labels or of the teacher, for the title.
        """
        number, side = self.images.shape[:2]
        scale = max(1, round(ENLARGED / side))
        cm = scale * side / PANEL  # pixels per cm
        width = round((2 * MARGIN + COLUMNS * PANEL + (COLUMNS - 1) * GAP) * cm)
        classes = f"{len(names)} classes" if len(names) > 1 else "1 class"
        title = f"Images: {images} ({classes}, {side} px). Labels: {labels}. Views: {self.mixing}."
        with style():
            head = wrap(title, width / cm - 2 * MARGIN, SIZE + 1).split("\n")
            notes = wrap(self.explanation(), width / cm - 2 * MARGIN, SMALL).split("\n")
            captions = [self.caption(view, names) for view in range(number)]
            # distance in cm of the upper edge of each row of images from the upper edge of the picture
            tops, top = [], MARGIN + 1.3 * LINE * len(head) + LINE * len(notes)
            for start in range(0, number, COLUMNS):
                row = captions[start : start + COLUMNS]
                tops.append(top + GAP + LINE * max(len(above) for above, _ in row))
                top = tops[-1] + PANEL + LINE * max(len(below) for _, below in row)
            height = round((top + LINE + MARGIN) * cm)
            # 0.01 pixels more, because matplotlib rounds the numbers of pixels down
            figure = new_figure((width + 0.01) / cm, (height + 0.01) / cm, layout=None)

            def write(x: float, y: float, text: str, **look: Any) -> None:
                """Write a line of text, which begins x cm from the left; its base line is y cm from the top."""
                figure.text(x * cm / width, 1 - y * cm / height, text, va="baseline", **{"fontsize": SMALL} | look)

            for line, text in enumerate(head):
                write(MARGIN, MARGIN + 1.3 * LINE * (line + 0.7), text, fontsize=SIZE + 1)
            for line, text in enumerate(notes):
                write(MARGIN, MARGIN + 1.3 * LINE * len(head) + LINE * (line + 0.7), text, color=GREY)
            for view, (above, below) in enumerate(captions):
                x, y = MARGIN + view % COLUMNS * (PANEL + GAP), tops[view // COLUMNS]
                left, bottom = round(x * cm), height - round(y * cm) - scale * side
                box = left / width, bottom / height, scale * side / width, scale * side / height
                panel = figure.add_axes(box)
                panel.axis("off")
                panel.imshow(self.images[view].expand(-1, -1, 3).numpy(), interpolation="nearest", aspect="auto")
                for line, text in enumerate(reversed(above)):
                    write(x, y - LINE * (line + 0.3), text, color=GREY)
                for line, (text, look) in enumerate(below):
                    write(x, y + PANEL + LINE * (line + 0.9), text, **look)
            make_folder(path.parent)
            save(figure, path, ("png",), dpi=cm * INCH)

    def explanation(self) -> str:
        """Return the sentences below the title, which explain the texts at the images."""
        words = ["Epochs and batches are counted from 1."]
        if self.shares[0] is not None:
            words.append("λ: share of this folder's image in the view; the rest is of the other folder.")
        if self.logits is not None:
            folder = "the folder's" if self.shares[0] is None else "a folder's"
            words.append(f"Bold and ≠: the teacher's most likely class is not {folder}.")
        return " ".join(words)

    def caption(self, view: int, names: list[str]) -> tuple[list[str], list[tuple[str, dict[str, Any]]]]:
        """Return the lines of text above and below an image of the preview.

        Args:
            view: number of the view.
            names: name of each class.

        Returns:
            the lines above the image, which say where the run meets the view; and the lines below, each with keyword
            arguments of `Figure.text`. They name the classes of the folders, and the teacher's three most likely
            classes with their probabilities, unless these round to 0 %.
        """

        def lines(text: str, **look: Any) -> list[tuple[str, dict[str, Any]]]:
            return [(line, look) for line in wrap(text, PANEL, SMALL, look.get("weight", "normal")).split("\n")]

        epoch, batch, _ = self.places[view]
        above = wrap(f"epoch {epoch + 1}/{self.epochs}, batch {batch + 1}/{self.batches}", PANEL, SMALL).split("\n")
        own, other, share = int(self.targets[view]), int(self.partners[view]), self.shares[view]
        mixed = "" if share is None else f" (λ={share:.2f}) + {names[other]}"
        below = lines(f"folder: {names[own]}{mixed}")
        if self.logits is None:
            return above, below
        best = self.logits[view].softmax(dim=0).topk(min(3, self.logits.shape[1]))
        first, *others = [
            f"{names[number] if number < len(names) else f'class {number}'} {100 * probability:.0f}%"
            for probability, number in zip(best.values.tolist(), best.indices.tolist(), strict=True)
            if probability >= 0.005 or number == best.indices[0]
        ]
        if best.indices[0] in (own, other):
            below += lines(f"teacher: {first}")
        else:
            below += lines(f"teacher ≠ {first}", color=VERMILION, weight="bold")
        return above, below + (lines("then: " + ", ".join(others), color=GREY) if others else [])


def choose_views(dataset: ViewDataset, epochs: range, most: int) -> dict[tuple[int, int], list[int]]:
    """Choose up to SHOWN views of a run: {(epoch, batch): rows}.

    Epochs, batches and rows are evenly spaced. As many epochs as batches are chosen, if there are enough of both.

    Args:
        dataset: `ViewDataset`.
        epochs: epochs to choose from.
        most: largest number of batches, counted over all epochs.
    """
    source = dataset.source
    several = min(source.batches_per_epoch, max(math.isqrt(most), most // len(epochs)))
    chosen = [
        (epoch, batch)
        for epoch in pick_evenly(epochs, most // several)
        for batch in pick_evenly(range(source.batches_per_epoch), several)
    ]
    rows = {}
    for number, place in enumerate(chosen):
        count = source.rows(*place)
        wanted = min(count, SHOWN // len(chosen) + (number < SHOWN % len(chosen)))
        # other rows in each batch, so that batches in the order of the image folder show several classes
        shift = number * count // len(chosen)
        rows[place] = sorted((shift + one * count // wanted) % count for one in range(wanted))
    return rows


def dense_logits(dataset: ViewDataset, rows: list[int]) -> torch.Tensor | None:
    """Return the stored logits of some rows of the loaded batch, float [R, C]; None if the labels hold no logits."""
    if dataset.labels.logits is None:
        return None
    logits = unweighted(dataset.labels.logits)
    if isinstance(logits, TopK):
        store = cast(LabelStore, dataset.source.store)  # `TopK` logits come only from a label store
        logits = logits.dense(store.num_classes, 1.0, renormalise=False)
    return logits[rows]
