"""Show a teacher the views of stored labels, and measure how far its answers are from the stored ones.

Replayed views differ a little from those that the teacher saw: fractions in half precision, another resize, bf16,
quantised logits. So the difference of a row is not held against a fixed number, but against the difference that the
same view of another image of the same class makes: the right image comes far below it, a wrong one does not.
"""

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from utils.config import IMAGENET_MEAN, IMAGENET_STD
from utils.labels.agreement import pick_evenly
from utils.labels.batch import BatchLabels, TopK, values_of
from utils.labels.drawn import index_of
from utils.labels.format_packed import PackedStore
from utils.labels.image_order import ReferenceOrder
from utils.labels.store import LabelStore
from utils.training.teachers import Ensemble
from utils.views.folders import Samples, load_rgb
from utils.views.replay import Normalise, finish_views, replay_view

BATCHES, VIEWS = 4, 256  # at most, of a check
KNOWN = 1e-5  # smaller probabilities are too coarse in half precision to compare
LIMIT = 0.5  # of the difference that another image makes: a row above it is another image's, or another teacher's
STRICT = 0.25  # the same, where images are the only ones of their classes: those of other classes differ more
TIGHT = 0.05  # of the same: below it nothing can fit better
BF16 = 2.0**-8  # relative error of the arithmetic
CACHE_BYTES = 1e9  # of decoded images


@dataclass(frozen=True, eq=False)
class Replay:
    """How the views of stored labels are made and shown; by default as in training.

    Attributes:
        size: S, side of the views in pixels.
        mean, std: of the normalisation.
        order: int64 [N], the image of the folder that each image number of the labels means; None: the same number.
        fkd_seed: of the image order of labels without an index; None: that of the store.
        flip: `after` the crop, `before` it, or `never`.
        swap_box: exchange rows and columns of the cutmix box.
        antialias: of the resize.
        parts: 1 or 2: show the batch whole or in halves to a teacher in train mode; 0: whole to one in eval mode.
        classes: int64 [C], the teacher's class that each class of the labels is; None: the same.
        temperature: of the stored answers, where they are probabilities.
        rule: how the answers of several teachers are combined; None: as the `Ensemble` does.
    """

    size: int
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    order: torch.Tensor | None = None
    fkd_seed: int | None = None
    flip: str = "after"
    swap_box: bool = False
    antialias: bool = True
    parts: int = 0
    classes: torch.Tensor | None = None
    temperature: float = 20.0
    rule: str | None = None


@dataclass(frozen=True, eq=False)
class Question:
    """Some rows of a stored batch, which a teacher is asked about.

    Attributes:
        epoch, batch: where they are stored.
        labels: of the whole batch.
        rows: int64 [m], the rows.
    """

    epoch: int
    batch: int
    labels: BatchLabels
    rows: torch.Tensor

    def other_share(self, size: int) -> float:
        """Share of a view of `size` pixels that is its partner's."""
        if self.labels.mix_bbox is not None:
            y1, x1, y2, x2 = self.labels.mix_bbox
            return (y2 - y1) * (x2 - x1) / size**2
        return 0.0 if self.labels.mix_lam is None else 1 - self.labels.mix_lam


@dataclass(frozen=True, eq=False)
class Verdict:
    """How far a teacher's answers are from the stored ones; root mean squares over the classes of n rows.

    Attributes:
        own: float32 [n], difference of each row.
        others: float32 [n], the same with another image of the row's class in its place.
        rounding: float32 [n], difference that the rounding of the stored answers explains.
        noise: float32 [n], the same with that of bf16 arithmetic.
        places: the (epoch, batch, row) of each of the n.
        found: the answers [m, C] to each question.
        largest: largest difference of two numbers.
        low, high: range of the stored answers.
        limit: share of `other` above which a row is not that image's.
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
        """Median difference of a row."""
        return self.own.median().item()

    @property
    def other(self) -> float:
        """Median difference that another image of the class makes."""
        return self.others.median().item()

    @property
    def excess(self) -> float:
        """Mean squared difference of a row beyond what the rounding of the stored answers explains."""
        return max((self.own.square() - self.rounding.square()).mean().item(), 0.0)

    @property
    def misfits(self) -> torch.Tensor:
        """Which rows are not this teacher's answers to these images: bool [n]."""
        return self.own > torch.hypot(2 * self.noise, torch.full_like(self.noise, self.limit * self.other))

    @property
    def fits(self) -> bool:
        """Whether the stored answers are this teacher's to these images.

        Where the differences, but for rounding, are far below those of other images, a single row above is wrong.
        """
        beyond_rounding = (self.own.square() - self.rounding.square()).median().item()
        allowed = 0.0 if beyond_rounding <= (self.limit / 5 * self.other) ** 2 else 0.1
        return self.misfits.float().mean().item() <= allowed

    @property
    def tight(self) -> bool:
        """Whether nothing could fit better, but for rounding."""
        return self.fits and self.excess <= (TIGHT * self.other) ** 2

    @property
    def blind(self) -> bool:
        """Whether this teacher's answers to other images differ by no more than rounding."""
        return self.other <= self.noise.median().item()


@dataclass
class Inquiry:
    """Labels, images and the teacher that is to be asked.

    Args:
        store: `LabelStore`, as it is stored: not `ReusedLabels` or `PooledLabels`.
        samples: list of (path, class), the folder's images.
        teachers: `Ensemble`.
        places: (epoch, batch) of the batches to ask about; None: a few, spread over all.
    """

    store: LabelStore
    samples: Samples
    teachers: Ensemble
    places: Sequence[tuple[int, int]] | None = None
    decoded: dict[int, Image.Image] = field(default_factory=dict)
    orders: dict[int, ReferenceOrder] = field(default_factory=dict)

    def by_batch(self, replay: Replay) -> bool:
        """Whether the answer to a row depends on the other rows of its batch."""
        return bool(replay.parts) or (replay.rule or self.teachers.rule) != "mean"

    @cached_property
    def questions(self) -> list[Question]:
        """The rows that are asked about: at most VIEWS."""
        places = self.places or pick_evenly(self.full_batches, max(1, min(BATCHES, VIEWS // self.store.batch_size)))
        return [self.question(epoch, batch) for epoch, batch in places]

    @cached_property
    def full_batches(self) -> list[tuple[int, int]]:
        """(epoch, batch) of every full batch."""
        store = self.store
        places = [(epoch, batch) for epoch in range(store.epochs) for batch in range(store.batches(epoch))]
        return [place for place in places if store.rows(*place) == store.batch_size] or places

    def question(self, epoch: int, batch: int) -> Question:
        """Return the rows of a stored batch that may be asked about."""
        labels = self.store.read(epoch, batch)
        rows = min(len(labels), VIEWS)
        return Question(epoch, batch, labels, torch.arange(rows) * len(labels) // rows)

    @cached_property
    def another(self) -> torch.Tensor:
        """For each image another one of its class, or any other where it is the only one: int64 [N]."""
        targets = torch.tensor([target for _, target in self.samples])
        following = torch.arange(len(targets)).roll(-1)
        for target in targets.unique():
            members = (targets == target).nonzero()[:, 0]
            if len(members) > 1:
                following[members] = members.roll(-1)
        return following

    def image(self, number: int) -> Image.Image:
        """Decode an image of the folder, or return it from memory."""
        if number not in self.decoded:
            if sum(3 * image.width * image.height for image in self.decoded.values()) > CACHE_BYTES:
                self.decoded.clear()
            self.decoded[number] = load_rgb(self.samples[number][0])
        return self.decoded[number]

    def name(self, number: int) -> str:
        """Return an image's number and where it lies, for a sentence."""
        return f"{number}, {os.sep.join(self.samples[number][0].split(os.sep)[-2:])}"

    def images_of(self, question: Question, replay: Replay) -> torch.Tensor:
        """Return the number of each row's image in the folder: int64 [B]."""
        index = index_of(question.labels)
        if replay.fkd_seed is not None:
            order = self.orders.setdefault(replay.fkd_seed, ReferenceOrder(self.store.num_images, replay.fkd_seed))
            start = question.batch * self.store.batch_size
            index = order(question.epoch)[start : start + len(index)]
        return index if replay.order is None else replay.order[index]

    def view(self, labels: BatchLabels, slot: int, number: int, replay: Replay) -> torch.Tensor:
        """Replay the view of a row with an image of the folder: uint8 [S, S, 3]."""
        image = self.image(number)
        (top, left, height, width), flip = labels.view(slot, (image.height, image.width))
        if replay.flip == "before" and flip:
            left = image.width - left - width
        flip = flip and replay.flip != "never"
        if replay.antialias:
            return replay_view(image, (top, left, height, width), flip, replay.size)
        pixels = torch.from_numpy(np.array(image.crop((left, top, left + width, top + height))))
        pixels = pixels.permute(2, 0, 1)[None].float()
        view = F.interpolate(pixels, (replay.size, replay.size), mode="bilinear", align_corners=False)
        view = view[0].permute(1, 2, 0).round().to(torch.uint8)
        return view.flip(1) if flip else view

    def answers(self, question: Question, replay: Replay, another: bool = False) -> torch.Tensor:
        """Ask the teacher about the rows of a question: logits float32 [m, C] on the host.

        Args:
            question: m rows of a batch.
            replay: how to make and show the views.
            another: show another image of the class in each place.
        """
        labels, rows = question.labels, question.rows
        numbers = self.images_of(question, replay)
        numbers = self.another[numbers] if another else numbers
        shown, partners = torch.arange(len(labels)), labels.mix_index
        alone = not self.by_batch(replay)
        if alone:  # the rows, and below them their partners
            shown = rows if partners is None else torch.cat([rows, partners[rows]])
            partners = None if partners is None else torch.arange(len(shown)).roll(len(rows))
        views = torch.stack([self.view(labels, slot, int(numbers[slot]), replay) for slot in shown.tolist()])
        images = self.mixed(views, partners, labels, replay)
        answers = self.show(images[: len(rows)] if alone else images, replay)
        return answers if alone else answers[rows]

    def mixed(
        self, views: torch.Tensor, partners: torch.Tensor | None, labels: BatchLabels, replay: Replay
    ) -> torch.Tensor:
        """Normalise views uint8 [B, S, S, 3] and mix them as a batch of labels says: float32 [B, 3, S, S]."""
        box = labels.mix_bbox
        if box is not None and replay.swap_box:
            box = box[1], box[0], box[3], box[2]
        precision = self.teachers.precision
        normalise = Normalise(replay.mean, replay.std, precision.device, precision.memory_format)
        return finish_views(views.to(precision.device), normalise, partners, labels.mix_lam, box)

    @torch.no_grad()
    def show(self, images: torch.Tensor, replay: Replay) -> torch.Tensor:
        """Show images [B, 3, S, S] to the teacher: logits float32 [B, C] on the host, classes as in the labels."""
        teachers = copy.copy(self.in_train_mode if replay.parts else self.teachers)
        teachers.rule = replay.rule or self.teachers.rule
        size = len(images) // max(replay.parts, 1) or len(images)
        parts = images[:size], images[size:]  # halves, as BSSL has them, or the whole
        answers = torch.cat([teachers(part) for part in parts if len(part)]).float().cpu()
        return answers if replay.classes is None else answers[:, replay.classes]

    @cached_property
    def in_train_mode(self) -> Ensemble:
        """A copy of the teacher whose batch normalisation takes the statistics of the batch."""
        twin = copy.copy(self.teachers)
        twin.teachers = [copy.deepcopy(teacher).train() for teacher in self.teachers.teachers]
        return twin

    def stored(self, question: Question, replay: Replay) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the stored answers to a question's rows, float32 [m, C], and where they are known: bool [m, C]."""
        answers, rows = question.labels.logits, question.rows
        values = values_of(answers)[rows].float()
        known = torch.ones_like(values, dtype=torch.bool)
        if self.store.answers == "probabilities":
            known = values.exp() > KNOWN
            values = torch.where(known, values * replay.temperature, 0)
        if isinstance(answers, TopK):
            places, empty = answers.classes[rows], torch.zeros(len(rows), self.store.num_classes)
            return empty.scatter(1, places, values), empty.bool().scatter(1, places, known)
        return values, known

    def comparable(self, answers: torch.Tensor, replay: Replay) -> torch.Tensor:
        """Return a teacher's logits as `stored` has them: where labels hold probabilities, T · log softmax(z / T)."""
        if self.store.answers == "probabilities":
            return replay.temperature * F.log_softmax(answers / replay.temperature, dim=1)
        return answers

    def difference(self, question: Question, answers: torch.Tensor, replay: Replay) -> torch.Tensor:
        """Stored answers minus a teacher's logits [m, C], NaN where nothing is stored: float32 [m, C]."""
        values, known = self.stored(question, replay)
        return torch.where(known, values - self.comparable(answers, replay), torch.nan)

    def rounding(self, question: Question, replay: Replay) -> torch.Tensor:
        """Difference that the rounding of stored answers explains, root mean square of each row: float32 [m]."""
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

    def judge(self, replay: Replay, questions: Sequence[Question] | None = None) -> Verdict:
        """Compare the teacher's answers to questions (default: all) with the stored ones."""
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

    def distance(self, question: Question, replay: Replay) -> float:
        """Median difference over the rows of a question: what `judge` calls typical, without the rest."""
        return row_size(self.difference(question, self.answers(question, replay), replay)).nanmedian().item()


def row_size(values: torch.Tensor) -> torch.Tensor:
    """Root mean square of each row of [m, C], leaving NaN out: float32 [m]."""
    return values.float().square().nanmean(dim=1).sqrt()
