"""Replay the views of stored labels, and measure how far a teacher's logits for these views are from the stored logits.

Even with the right teacher and the right image there is a small difference: crops are stored in half precision, images
may be resized by another method, the teacher computes in bf16, and stored logits are quantised. There is therefore no
fixed threshold. Instead, each view is taken from two images: the assumed image, to which the labels say the logits
belong, and a second image of the same class. The own difference compares the stored logits with the teacher's logits
for the assumed image. The other difference compares the stored logits with those for the second image. If the stored
logits belong to the assumed image, the own difference is far smaller than the other difference. If the stored logits
belong to neither image, the own and the other difference are similar.

Names in this module: an "answer" is a teacher's logits for one view, and a `Question` selects rows of a stored batch
whose views are shown to the teacher.
"""

import copy
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torchvision.transforms.functional import pil_to_tensor

from utils.config import IMAGENET_MEAN, IMAGENET_STD
from utils.data.augment import ColouredCutout
from utils.data.images import Pixels, Samples, Values, height_and_width, load_image
from utils.data.replay import Normalise, finish_views, replay_view
from utils.labels.agreement import pick_evenly
from utils.labels.packed import PackedStore
from utils.labels.store import LabelStore
from utils.labels.types import BatchLabels, Mix, TopK, values_of
from utils.labels.views import ReferenceOrder, index_of
from utils.training.teachers import Ensemble

# Without `Inquiry.places`, a check compares at most BATCHES batches, and at most VIEWS views in total. With `places`,
# every listed batch is compared, with at most VIEWS views per batch.
BATCHES, VIEWS = 4, 256
# probabilities below this value are not compared, because half precision stores them too coarsely
KNOWN = 1e-5
# A row does not fit if the own difference is above LIMIT times the median of the other differences (both are explained
# at the top of this file). The exact condition also allows for rounding, see `Verdict.misfits`.
LIMIT = 0.5
# STRICT replaces LIMIT if there are at most 1.5 images per class. Many second images then have another class, which
# makes the other differences larger.
STRICT = 0.25
# A fit is tight if the square root of `Verdict.excess` is at most TIGHT times the median of the other differences.
# After a tight fit, no other settings are tried.
TIGHT = 0.05
# relative error of bf16 arithmetic
BF16 = 2.0**-8
# memory for decoded images, in bytes
CACHE_BYTES = 1e9


@dataclass(frozen=True, eq=False)
class ReplaySettings:
    """How views of stored labels are replayed and passed to the teacher. By default, views are replayed as in training.

    Attributes:
        size: S, side of the views in pixels.
        mean, std: mean and standard deviation per channel, for the normalisation.
        order: int64 [N]; `order[i]` is the number, in the folder, of the labels' image i. None if all numbers agree.
        fkd_seed: seed that determines the image order. If None, the image numbers of the label store are used.
        flip: when views are flipped: `after` the crop, `before` the crop, or `never`.
        swap_box: whether to exchange rows and columns of the cutmix box.
        antialias: whether crops are resized with antialiasing.
        parts: number of parts of a batch that batch normalisation takes statistics of, each on its own; 0: running
            statistics; None: as the `Ensemble`.
        classes: int64 [C], the teacher's class index for each class of the labels; None if the indices are equal.
        temperature: softmax temperature of the stored probabilities; unused if the labels hold logits.
        rule: how the logits of several teachers are combined; None: by the rule of the `Ensemble`.
    """

    size: int
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    order: torch.Tensor | None = None
    fkd_seed: int | None = None
    flip: str = "after"
    swap_box: bool = False
    antialias: bool = True
    parts: int | None = None
    classes: torch.Tensor | None = None
    temperature: float = 20.0
    rule: str | None = None


@dataclass(frozen=True, eq=False)
class Question:
    """Selected rows of a stored batch, whose views are shown to the teacher.

    Attributes:
        epoch, batch: index of the stored epoch, and index of the batch in the epoch.
        labels: labels of the whole batch.
        rows: int64 [m], indices of the selected rows.
    """

    epoch: int
    batch: int
    labels: BatchLabels
    rows: torch.Tensor

    def other_share(self, size: int) -> float:
        """Return the fraction of each view that its mix partner fills. Views have `size` x `size` pixels."""
        return 1 - self.labels.mix.own_share(size)


@dataclass(frozen=True, eq=False)
class Verdict:
    """Differences between the teacher's logits and the stored logits of n rows.

    A row's difference is the root mean square, over the classes, of the differences of its logits.

    Attributes:
        own: float32 [n], difference of each row if the teacher sees the image that the row is assumed to show.
        others: float32 [n], difference of each row if the teacher sees a second image, usually of the same class.
        rounding: float32 [n], part of `own` that comes from rounding of the stored logits.
        noise: float32 [n], part of `own` that comes from rounding and bf16 arithmetic.
        places: (epoch, batch, row) of each row.
        found: the teacher's logits [m, C] for each compared batch.
        largest: largest absolute difference of a single logit.
        low, high: smallest and largest stored logit.
        limit: threshold of `misfits`, either LIMIT or STRICT.
    """

    own: torch.Tensor
    others: torch.Tensor
    rounding: torch.Tensor
    noise: torch.Tensor
    places: list[tuple[int, int, int]]
    found: list[torch.Tensor]
    largest: float
    low: float
    high: float
    limit: float

    @property
    def typical(self) -> float:
        """Return the median of `own`."""
        return self.own.median().item()

    @property
    def other(self) -> float:
        """Return the median of `others`."""
        return self.others.median().item()

    @property
    def excess(self) -> float:
        """Return the mean of `own**2 - rounding**2` over the rows, or 0 if the mean is negative."""
        return max((self.own.square() - self.rounding.square()).mean().item(), 0.0)

    @property
    def misfits(self) -> torch.Tensor:
        """Return a mask of the rows whose stored logits do not fit the teacher's logits: bool [n]."""
        return self.own > torch.hypot(2 * self.noise, torch.full_like(self.noise, self.limit * self.other))

    @property
    def fits(self) -> bool:
        """Return whether the stored logits are the teacher's logits for the assumed images.

        If the median row fits very closely, no row may be a misfit. Otherwise, at most a tenth of the rows may be
        misfits.
        """
        beyond_rounding = (self.own.square() - self.rounding.square()).median().item()
        allowed = 0.0 if beyond_rounding <= (self.limit / 5 * self.other) ** 2 else 0.1
        return self.misfits.float().mean().item() <= allowed

    @property
    def tight(self) -> bool:
        """Return whether the labels fit so closely that no other settings could fit better."""
        return self.fits and self.excess <= (TIGHT * self.other) ** 2

    @property
    def blind(self) -> bool:
        """Return whether the teacher's logits for different images are too similar to tell the images apart."""
        return self.other <= self.noise.median().item()


@dataclass
class Inquiry:
    """Comparison of stored logits with a teacher's logits for the images of a folder.

    Args:
        store: the labels.
        samples: (image, class) of each image in the folder.
        teachers: the teacher, or several teachers whose logits are combined.
        places: (epoch, batch) of each batch to compare; None: a few batches, evenly spaced.
        channels: C, number of channels of the teacher's input.
        values: pixel format of the images, see `Values`.
    """

    store: LabelStore
    samples: Samples
    teachers: Ensemble
    places: Sequence[tuple[int, int]] | None = None
    channels: int = 3
    values: Values = "bytes"
    decoded: dict[int, Pixels] = field(default_factory=dict)
    orders: dict[int, ReferenceOrder] = field(default_factory=dict)

    def by_batch(self, replay: ReplaySettings) -> bool:
        """Return whether the teacher's logits for one row depend on the other rows of the batch."""
        return bool(self.parts(replay)) or (replay.rule or self.teachers.rule) != "mean"

    def parts(self, replay: ReplaySettings) -> int:
        """Return how many parts of a batch batch normalisation takes statistics of; 0 for running statistics."""
        return self.teachers.parts if replay.parts is None else replay.parts

    @cached_property
    def questions(self) -> list[Question]:
        """Return the rows to compare, one `Question` for each batch.

        If `places` is None, at most BATCHES batches are chosen, with at most VIEWS rows in total.
        """
        places = self.places or pick_evenly(self.full_batches, max(1, min(BATCHES, VIEWS // self.store.batch_size)))
        return [self.question(epoch, batch) for epoch, batch in places]

    @cached_property
    def full_batches(self) -> list[tuple[int, int]]:
        """Return (epoch, batch) of every stored batch that is full, or of every batch if none is full."""
        store = self.store
        places = [(epoch, batch) for epoch in range(store.epochs) for batch in range(store.batches(epoch))]
        return [place for place in places if store.rows(*place) == store.batch_size] or places

    def question(self, epoch: int, batch: int) -> Question:
        """Return at most VIEWS evenly spaced rows of a stored batch, as a `Question`."""
        labels = self.store.read(epoch, batch)
        rows = min(len(labels), VIEWS)
        return Question(epoch, batch, labels, torch.arange(rows) * len(labels) // rows)

    @cached_property
    def another(self) -> torch.Tensor:
        """Return, for each image, the index of a second image of the same class: int64 [N].

        If an image is the only one of its class, the second image is from another class.
        """
        targets = torch.tensor([target for _, target in self.samples])
        following = torch.arange(len(targets)).roll(-1)
        for target in targets.unique():
            members = (targets == target).nonzero()[:, 0]
            if len(members) > 1:
                following[members] = members.roll(-1)
        return following

    def image(self, number: int) -> Pixels:
        """Return image `number` of the folder, decoded. Decoded images are cached, in about CACHE_BYTES of memory."""
        if number not in self.decoded:
            value = 3 if self.values == "bytes" else 12  # bytes per RGB pixel
            if sum(value * math.prod(height_and_width(image)) for image in self.decoded.values()) > CACHE_BYTES:
                self.decoded.clear()
            self.decoded[number] = load_image(self.samples[number][0], self.channels)
        return self.decoded[number]

    def name(self, number: int) -> str:
        """Return a text that identifies an image in messages: its index, class folder and file name."""
        return f"{number}, {os.sep.join(str(self.samples[number][0]).split(os.sep)[-2:])}"

    def images_of(self, question: Question, replay: ReplaySettings) -> torch.Tensor:
        """Return, for each row of the question's batch, the index of the row's image in the folder: int64 [B]."""
        index = index_of(question.labels)
        if replay.fkd_seed is not None:
            order = self.orders.setdefault(replay.fkd_seed, ReferenceOrder(self.store.num_images, replay.fkd_seed))
            start = question.batch * self.store.batch_size
            index = order(question.epoch)[start : start + len(index)]
        return index if replay.order is None else replay.order[index]

    def view(self, labels: BatchLabels, slot: int, number: int, replay: ReplaySettings) -> torch.Tensor:
        """Apply the crop and the flip of a row to an image, and resize the crop; return uint8 or float32 [S, S, C].

        Args:
            labels: labels of a batch.
            slot: index of the row in the batch.
            number: index of the image in the folder.
            replay: how views are replayed.
        """
        image = self.image(number)
        size = height_and_width(image)
        (top, left, height, width), flip = labels.view(slot, size)
        if replay.flip == "before" and flip:
            left = size[1] - left - width
        flip = flip and replay.flip != "never"
        if replay.antialias:
            return replay_view(image, (top, left, height, width), flip, replay.size)
        pixels = image if isinstance(image, torch.Tensor) else pil_to_tensor(image)
        pixels = pixels[None, :, top : top + height, left : left + width]
        view = F.interpolate(pixels.float(), (replay.size, replay.size), mode="bilinear", align_corners=False)
        view = view[0].permute(1, 2, 0)
        view = view if pixels.is_floating_point() else view.round().to(torch.uint8)
        return view.flip(1) if flip else view

    def answers(self, question: Question, replay: ReplaySettings, another: bool = False) -> torch.Tensor:
        """Return the teacher's logits for the rows of a question: float32 [m, C] on the host.

        Args:
            question: m rows of a batch.
            replay: how views are replayed.
            another: whether to take each view from the second image, see `Inquiry.another`.
        """
        labels, rows = question.labels, question.rows
        numbers = self.images_of(question, replay)
        numbers = self.another[numbers] if another else numbers
        shown = torch.arange(len(labels))
        partners = labels.mix.partner
        alone = not self.by_batch(replay)
        # if rows do not depend on each other, replay only the rows of the question and their mix partners
        if alone:
            shown = rows if partners is None else torch.cat([rows, partners[rows]])
            partners = None if partners is None else torch.arange(len(shown)).roll(len(rows))
        views = torch.stack([self.view(labels, slot, int(numbers[slot]), replay) for slot in shown.tolist()])
        images = self.mixed(views, partners, labels, replay, shown)
        answers = self.logits_of(images[: len(rows)] if alone else images, replay)
        return answers if alone else answers[rows]

    def mixed(
        self,
        views: torch.Tensor,
        partners: torch.Tensor | None,
        labels: BatchLabels,
        replay: ReplaySettings,
        rows: torch.Tensor,
    ) -> torch.Tensor:
        """Normalise views, draw their cutouts and mix each view with its partner; return float32 [B, C, S, S].

        Args:
            views: uint8 or float32 [B, S, S, C].
            partners: int64 [B], index of the mix partner of each view; None without mixing.
            labels: labels of the batch, which state the mixing ratio, the cutmix box and the cutouts.
            replay: how views are replayed.
            rows: int64 [B], the row of `labels` that each view belongs to.
        """
        box = labels.mix.box
        if box is not None and replay.swap_box:
            box = box[1], box[0], box[3], box[2]
        precision = self.teachers.precision
        cut_out = ColouredCutout(replay.mean, replay.std, precision.device)
        normalise = Normalise(replay.mean, replay.std, precision.device, precision.memory_format, self.values, cut_out)
        cutouts = None if labels.augment is None else labels.augment[rows]
        return finish_views(views.to(precision.device), normalise, Mix(partners, labels.mix.lam, box), cutouts)

    @torch.no_grad()
    def logits_of(self, images: torch.Tensor, replay: ReplaySettings) -> torch.Tensor:
        """Return the teacher's logits for images [B, 3, S, S]: float32 [B, C] on the host.

        The classes are in the order of the labels.
        """
        teachers = copy.copy(self.teachers)
        teachers.rule, teachers.parts = replay.rule or self.teachers.rule, self.parts(replay)
        answers = teachers(images).float().cpu()
        return answers if replay.classes is None else answers[:, replay.classes]

    def stored(self, question: Question, replay: ReplaySettings) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the stored logits of a question's rows, and a mask of the logits that can be compared.

        Stored probabilities p at temperature T are converted to T * log p. Logits that are not stored cannot be
        compared, and neither can probabilities up to KNOWN.

        Returns:
            (logits float32 [m, C], mask bool [m, C]). Logits are 0 where the mask is False.
        """
        answers = question.labels.logits
        rows = question.rows
        values = values_of(answers)[rows].float()
        known = torch.ones_like(values, dtype=torch.bool)
        if self.store.answers == "probabilities":
            known = values.exp() > KNOWN
            values = torch.where(known, values * replay.temperature, 0)
        if isinstance(answers, TopK):
            places = answers.classes[rows]
            empty = torch.zeros(len(rows), self.store.num_classes)
            return empty.scatter(1, places, values), empty.bool().scatter(1, places, known)
        return values, known

    def comparable(self, answers: torch.Tensor, replay: ReplaySettings) -> torch.Tensor:
        """Return the teacher's logits z in the form of the stored values.

        This is T * log softmax(z / T) if the labels hold probabilities at temperature T, and otherwise z itself.
        """
        if self.store.answers == "probabilities":
            return replay.temperature * F.log_softmax(answers / replay.temperature, dim=1)
        return answers

    def difference(self, question: Question, answers: torch.Tensor, replay: ReplaySettings) -> torch.Tensor:
        """Return the stored logits minus the teacher's logits: float32 [m, C].

        Logits that cannot be compared get NaN, see `stored`.
        """
        values, known = self.stored(question, replay)
        return torch.where(known, values - self.comparable(answers, replay), torch.nan)

    def rounding(self, question: Question, replay: ReplaySettings) -> torch.Tensor:
        """Return the root mean square error that rounding causes in the stored logits of each row: float32 [m]."""
        values, known = self.stored(question, replay)
        size = row_size(torch.where(known, values, torch.nan))
        if self.store.answers == "probabilities":
            size = torch.full_like(size, replay.temperature)
        half = size * 2.0**-11 if self.store.logits_dtype == torch.float16 else torch.zeros_like(size)
        if not isinstance(self.store, PackedStore) or self.store.codec.bits >= 16:
            return half
        tensors: dict[str, Any] = self.store.open(question.epoch)
        start = question.batch * self.store.batch_size
        steps = tensors["spans"][start + question.rows, 1] if "spans" in tensors else row_size(tensors["range"][1:])
        scale = replay.temperature if self.store.answers == "probabilities" else 1.0
        return torch.hypot(half, scale * steps.float().expand(len(size)) / 12**0.5)

    def judge(self, replay: ReplaySettings, questions: Sequence[Question] | None = None) -> Verdict:
        """Compare the teacher's logits with the stored logits, and return the difference of each row.

        Args:
            replay: how views are replayed.
            questions: the rows to compare; None: the default rows of this `Inquiry`.
        """
        questions = self.questions if questions is None else questions
        found = [self.answers(question, replay) for question in questions]
        own, others, stored = [], [], []
        for question, answers in zip(questions, found, strict=True):
            own.append(self.difference(question, answers, replay))
            others.append(self.difference(question, self.answers(question, replay, another=True), replay))
            values, known = self.stored(question, replay)
            stored.append(torch.where(known, values, torch.nan))
        rounding = torch.cat([self.rounding(question, replay) for question in questions])
        numbers = torch.cat([values[values.isfinite()] for values in stored])
        return Verdict(
            own=torch.cat([row_size(each) for each in own]),
            others=torch.cat([row_size(each) for each in others]),
            rounding=rounding,
            noise=torch.hypot(rounding, BF16 * torch.cat([row_size(values) for values in stored])),
            places=[(q.epoch, q.batch, row) for q in questions for row in q.rows.tolist()],
            found=found,
            largest=max(each.abs().nan_to_num().max().item() for each in own),
            low=numbers.min().item(),
            high=numbers.max().item(),
            limit=LIMIT if len(self.samples) > 1.5 * len({target for _, target in self.samples}) else STRICT,
        )

    def distance(self, question: Question, replay: ReplaySettings) -> float:
        """Return the median of `Verdict.own` for the rows of one question.

        `judge` is slower, because it also computes the teacher's logits for second images.
        """
        return row_size(self.difference(question, self.answers(question, replay), replay)).nanmedian().item()


def row_size(values: torch.Tensor) -> torch.Tensor:
    """Return the root mean square of each row of [m, C], ignoring NaN: float32 [m]."""
    return values.float().square().nanmean(dim=1).sqrt()
