"""Search for replay settings under which stored labels fit a teacher better than under the assumed settings.

Each `Hypothesis` changes one replay setting, for example the input size, the normalisation or the image order. Each
round tries all hypotheses and accepts the best one if it improves the fit. The next round starts from the changed
settings.
"""

import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from utils.config import ENSEMBLE_RULES, IMAGENET_MEAN, IMAGENET_STD
from utils.labels.agreement import assign, pick_evenly
from utils.labels.types import Mix
from utils.run.teacher_inquiry import Inquiry, Question, ReplaySettings, Verdict, row_size
from utils.system.errors import listing
from utils.system.log import progress_bar

SIZES = (32, 64, 128, 160, 192, 224, 256, 288, 299, 384)
NORMALISATIONS = {
    "with ImageNet's normalisation": (IMAGENET_MEAN, IMAGENET_STD),
    "without normalisation (images in 0 … 1)": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "without normalisation (images in 0 … 255)": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
    "normalised to -1 … 1": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "with CIFAR-10's normalisation": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "with CIFAR-10's normalisation of kuangliu": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "with CIFAR-100's normalisation": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "with Tiny-ImageNet's normalisation": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
}
# values of --fkd-seed that are always tried
SEEDS = range(21)
# number of neighbouring seeds that are tried on either side of the given --fkd-seed
SEEDS_AROUND = 10
# maximum number of label rows on which each hypothesis is tried
SCREENED_ROWS = 8
# maximum number of hypotheses that are accepted together
MAX_CHANGES = 3
# If labels fit under the assumed settings, other settings are only accepted if they reduce the mean squared difference
# by this factor.
MIN_IMPROVEMENT = 4
# maximum number of rows for which `find_images` searches for the right image
TRIED_ROWS = 8
# maximum number of images that `find_images` tries for each row; at first, each image is tried whole (not cropped)
TRIED_IMAGES = 2000
# number of images per row that `find_images` then tries with crop, flip and mixing
NEAR_IMAGES = 32
# number of images per forward pass in `find_images`
CHUNK = 64
# maximum number of batches that `find_images` compares to choose the one with the least mixing
SEARCHED_BATCHES = 64
# `find_images` gives up if mix partners fill more than this fraction of the views
MIXED = 0.3
# maximum number of classes for fitting a class order; with more classes, fitting would take minutes
MANY_CLASSES = 3000
# number of rows that are enough to be sure of a fitted class order
CERTAIN_ROWS = 32


@dataclass(frozen=True)
class Hypothesis:
    """A guess that one replay setting differs from its assumed value.

    Attributes:
        kind: name of the setting; at most one hypothesis of each kind is accepted.
        words: the guess in words, as the end of the sentence `they fit …`.
        remedy: advice to the user, as an imperative; may be empty.
        change: {field of `ReplaySettings`: guessed value}.
        harmless: True if labels with this setting are accepted as this teacher's logits; False if they are refused.
    """

    kind: str
    words: str
    remedy: str
    change: dict[str, Any]
    harmless: bool = False


@dataclass(frozen=True)
class Explanation:
    """The result of `explain`: the hypotheses under which the labels fit, if there are any.

    Attributes:
        hypotheses: the accepted hypotheses. Empty if the labels fit under the assumed settings, or if no hypothesis
            explains the misfit.
        verdict: comparison of labels and teacher under the accepted hypotheses, or under the assumed settings if no
            hypothesis was accepted.
        pairs: sentences about rows whose images differ from the assumed images; empty if a hypothesis was accepted.
    """

    hypotheses: list[Hypothesis]
    verdict: Verdict
    pairs: list[str] = field(default_factory=list)

    @property
    def harmless(self) -> bool:
        """Return whether the labels fit the teacher, under the assumed settings or under harmless hypotheses only."""
        return self.verdict.fits and all(hypothesis.harmless for hypothesis in self.hypotheses)


def explain(inquiry: Inquiry, replay: ReplaySettings, verdict: Verdict, seed: int | None) -> Explanation:
    """Search for hypotheses under which the labels fit the teacher: accept one after another while the fit improves.

    If the labels fit neither under the assumed settings nor under any hypothesis, search for the images from which the
    misfitting rows were made.

    Args:
        inquiry: labels, images and teacher.
        replay: the assumed settings.
        verdict: comparison of labels and teacher under `replay`.
        seed: the given --fkd-seed; other seeds are tried too. None if the labels state the image order.

    Returns:
        the accepted hypotheses with the comparison under them, or the images that were identified.
    """
    question = hardest(inquiry, verdict)
    taken: list[Hypothesis] = []
    assumed = replay
    start = verdict
    for _ in range(MAX_CHANGES):
        known = {hypothesis.kind for hypothesis in taken}
        all_of_them = itertools.chain(hypotheses(inquiry, replay, seed), fitted_hypotheses(inquiry, replay, verdict))
        untried = [hypothesis for hypothesis in all_of_them if hypothesis.kind not in known]
        trials = [replay, *(replace(replay, **hypothesis.change) for hypothesis in untried)]
        distances = [distance(inquiry, question, trial) for trial in progress_bar(trials, "hypotheses", len(trials))]
        best = min(range(len(trials)), key=distances.__getitem__)
        if best == 0 or distances[best] > 0.95 * distances[0]:
            break
        replay = trials[best]
        # trial 0 tries no hypothesis, so trial n tries hypothesis n - 1
        taken = [*taken, untried[best - 1]]
        verdict = inquiry.judge(replay)
        if verdict.tight:
            break
    replay, taken, verdict = drop_needless(inquiry, assumed, replay, taken, verdict)
    convincing = verdict.fits and (not start.fits or MIN_IMPROVEMENT * verdict.excess < start.excess)
    if convincing and enough_rows(taken, verdict):
        return Explanation(taken, verdict)
    pairs = [] if start.fits else find_images(inquiry, assumed)
    return Explanation([], start, pairs)


def drop_needless(
    inquiry: Inquiry, assumed: ReplaySettings, replay: ReplaySettings, taken: list[Hypothesis], verdict: Verdict
) -> tuple[ReplaySettings, list[Hypothesis], Verdict]:
    """Drop accepted hypotheses that are not needed: without them, the fit is equally good.

    Args:
        inquiry: labels, images and teacher.
        assumed: settings without any hypothesis.
        replay: settings with all accepted hypotheses.
        taken: the accepted hypotheses.
        verdict: comparison of labels and teacher under `replay`.

    Returns:
        (settings with the remaining hypotheses, remaining hypotheses, comparison under these settings).
    """
    for hypothesis in taken if len(taken) > 1 else []:
        fewer = [other for other in taken if other is not hypothesis]
        changes = [other.change for other in fewer]
        trial = replace(assumed, **{name: value for change in changes for name, value in change.items()})
        trial_verdict = inquiry.judge(trial)
        if trial_verdict.tight or (trial_verdict.fits and trial_verdict.excess <= verdict.excess):
            replay, taken, verdict = trial, fewer, trial_verdict
    return replay, taken, verdict


def hardest(inquiry: Inquiry, verdict: Verdict) -> Question:
    """Return the rows on which hypotheses are tried: the SCREENED_ROWS worst-fitting rows of the worst-fitting batch.

    `verdict.own` holds, for each row, how far the stored logits are from the teacher's.
    """
    starts = torch.tensor([0, *(len(question.rows) for question in inquiry.questions)]).cumsum(0).tolist()
    rows = [verdict.own[first:last] for first, last in itertools.pairwise(starts)]
    number = max(
        range(len(rows)), key=lambda place: rows[place].topk(min(SCREENED_ROWS, len(rows[place]))).values.median()
    )
    question = inquiry.questions[number]
    chosen = rows[number].argsort(descending=True)[:SCREENED_ROWS].sort().values
    return replace(question, rows=question.rows[chosen])


def distance(inquiry: Inquiry, question: Question, replay: ReplaySettings) -> float:
    """Return the median difference between stored logits and the teacher's logits in the rows of `question`.

    Return infinity if the median is NaN, or if the teacher raises an error under the settings `replay`.
    """
    try:
        value = inquiry.distance(question, replay)
    except torch.cuda.OutOfMemoryError:  # lack of memory says nothing about the labels
        raise
    except (RuntimeError, ValueError, AssertionError, IndexError):
        # for example, the teacher cannot process views of the size `replay.size`
        return float("inf")
    return value if value == value else float("inf")


def enough_rows(taken: Sequence[Hypothesis], verdict: Verdict) -> bool:
    """Return whether the accepted hypotheses are reliable.

    A class order that was fitted to the logits is reliable if CERTAIN_ROWS rows were compared or if the fit is very
    close. All other hypotheses are always reliable.
    """
    reordered = any(hypothesis.kind == "classes" for hypothesis in taken)
    return not reordered or len(verdict.own) >= CERTAIN_ROWS or verdict.typical <= verdict.limit / 5 * verdict.other


def hypotheses(inquiry: Inquiry, replay: ReplaySettings, seed: int | None) -> Iterator[Hypothesis]:
    """Yield the hypotheses with values from fixed lists: input sizes, normalisations, image orders, flips and more."""
    reach = max((max(q.labels.mix.box) for q in inquiry.questions if q.labels.mix.box is not None), default=0)
    for size in SIZES:
        if size != replay.size and size >= reach:
            yield Hypothesis("size", f"at input size {size}", f"give --input-size {size}", {"size": size})
    for name, (mean, std) in NORMALISATIONS.items():
        if (tuple(mean), tuple(std)) != (tuple(replay.mean), tuple(replay.std)):
            flags = " ".join(["--mean", *(f"{x:.4g}" for x in mean), "--std", *(f"{x:.4g}" for x in std)])
            yield Hypothesis("normalisation", name, f"give {flags}", {"mean": mean, "std": std})
    yield from image_orders(inquiry, seed)
    again = "make the labels again with relabel_FKD.py, since training does not show such views"
    yield Hypothesis("flip", "if no view is flipped", again, {"flip": "never"})
    yield Hypothesis("flip", "if views are flipped before they are cropped", again, {"flip": "before"})
    if inquiry.store.mix_type == "cutmix":
        yield Hypothesis("box", "if rows and columns of the cutmix boxes are exchanged", again, {"swap_box": True})
    yield Hypothesis("resize", "if views are resized without antialiasing", "", {"antialias": False}, harmless=True)
    if len(inquiry.teachers.teachers) > 1:
        for rule in ENSEMBLE_RULES:
            if rule != inquiry.teachers.rule:
                yield Hypothesis("rule", f"if combined by the rule {rule}", f"give --ensemble {rule}", {"rule": rule})
    if inquiry.store.batch_size > 1:
        modes = {
            0: "in eval mode",
            1: "in train mode, on whole batches",
            2: "in train mode, on halves of each batch (BSSL of FADRM and CV-DD)",
        }
        for parts, words in modes.items():
            if parts != inquiry.parts(replay):
                yield Hypothesis("mode", words, "", {"parts": parts}, harmless=True)


def image_orders(inquiry: Inquiry, seed: int | None) -> Iterator[Hypothesis]:
    """Yield hypotheses about the image order: other seeds, other sorting of the files, and shifts by a few images.

    Files are also sorted by the numbers in their names, so that new2 comes before new10. `seed` is the given
    --fkd-seed. If the labels state the image order, `seed` is None, and no seeds are tried.
    """
    if seed is not None:
        for other in sorted({*SEEDS, *range(max(seed - SEEDS_AROUND, 0), seed + SEEDS_AROUND + 1)} - {seed}):
            words = f"in the image order of --fkd-seed {other}"
            yield Hypothesis("order", words, f"give --fkd-seed {other}", {"fkd_seed": other})
    paths = [str(image) for image, _ in inquiry.samples]
    count = len(paths)
    folders = [os.path.dirname(path) for path in paths]
    files = [os.path.basename(path) for path in paths]
    keys: dict[str, Callable[[int], Any]] = {
        "class folders and files": lambda n: (as_numbers(folders[n]), as_numbers(files[n])),
        "class folders": lambda n: (as_numbers(folders[n]), files[n]),
        "files": lambda n: (folders[n], as_numbers(files[n])),
    }
    seen = [list(range(count))]
    for names, key in keys.items():
        order = sorted(range(count), key=key)
        if order not in seen:
            seen.append(order)
            words = f"if the names of {names} are sorted by their numbers, such as new2 before new10"
            remedy = f"pad the numbers in the names of {names} with zeros"
            yield Hypothesis("order", words, remedy, {"order": torch.tensor(order)})
    for step in (1, -1, 2, -2, 3, -3):
        words = f"if image n of the labels is image n{step:+d} of the folder"
        remedy = "an image is missing from the folder, or one too many, before those of the labels; restore it"
        if count > abs(step):
            yield Hypothesis("order", words, remedy, {"order": torch.arange(count).add(step).remainder(count)})


def as_numbers(name: str) -> list[tuple[int, str]]:
    """Return a sort key for a name. Digits in names are compared as numbers: new2 comes before new10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.findall(r"[0-9]+|[^0-9]+", name)]


def fitted_hypotheses(inquiry: Inquiry, replay: ReplaySettings, verdict: Verdict) -> Iterator[Hypothesis]:
    """Yield the hypotheses with values that are fitted to the logits: temperature and class order.

    A temperature is only fitted if the labels hold probabilities. `verdict` holds the teacher's logits under `replay`.
    """
    if inquiry.store.answers == "probabilities":
        yield from temperatures(inquiry, replay, verdict)
    yield from class_orders(inquiry, replay, verdict)


def temperatures(inquiry: Inquiry, replay: ReplaySettings, verdict: Verdict) -> Iterator[Hypothesis]:
    """Yield the temperature at which the stored probabilities best fit the teacher's logits (least squares on logits).

    Yield no hypothesis if this temperature differs from the assumed one by at most 1 %.
    """
    products = squares = 0.0
    for question, found in zip(inquiry.questions, verdict.found, strict=True):
        values, known = inquiry.stored(question, replay)
        logs, logits = (torch.where(known, tensor, torch.nan) for tensor in (values / replay.temperature, found))
        logs, logits = (tensor - tensor.nanmean(dim=1, keepdim=True) for tensor in (logs, logits))
        products += (logs * logits).nansum().item()
        squares += logs.square().nansum().item()
    best = products / squares if squares else 0.0
    # round the fitted temperature, for example 19.97 to 20, because people choose round temperatures
    best = round(best, 1) if best > 0.5 else best
    if best > 0 and abs(best / replay.temperature - 1) > 0.01:
        yield Hypothesis(
            "temperature", f"at temperature {best:g}", f"give --temperature {best:g}", {"temperature": best}
        )


def class_orders(inquiry: Inquiry, replay: ReplaySettings, verdict: Verdict) -> Iterator[Hypothesis]:
    """Yield the permutation of the teacher's classes that best fits the stored logits (linear assignment).

    Yield no hypothesis if the best permutation changes nothing, or if there are more than MANY_CLASSES classes.
    """
    classes = inquiry.store.num_classes
    if classes > MANY_CLASSES:
        return
    cost = torch.zeros(classes, classes, dtype=torch.float64)
    named = torch.zeros(classes, dtype=torch.bool)
    for question, found in zip(inquiry.questions, verdict.found, strict=True):
        values, known = (tensor.double() for tensor in inquiry.stored(question, replay))
        answers = inquiry.comparable(found, replay).double()
        cost += (values.square() * known).sum(0)[:, None] - 2 * (values * known).T @ answers
        cost += known.T @ answers.square()
        named |= known.any(dim=0)
    order = assign((1e-9 * cost.abs().max() * torch.eye(classes) - cost).numpy()).tolist()
    moved = [n for n in range(classes) if order[n] != n and named[n]]
    if not moved:
        return
    names = sorted({os.path.basename(os.path.dirname(str(image))) for image, _ in inquiry.samples})
    told = [f"{n} ({names[n]})" if len(names) == classes else str(n) for n in range(classes)]
    if len(moved) == 2 and order[moved[0]] == moved[1]:
        words = f"with the teacher's classes {told[moved[0]]} and {told[moved[1]]} exchanged"
    else:
        pairs = listing([f"class {told[n]} of the labels is its {told[order[n]]}" for n in moved], 3)
        words = f"with the teacher's classes in another order: {pairs}"
    remedy = "the class folders must be in the order of the labels' classes (--class-order of train_FKD_parallel.py)"
    yield Hypothesis("classes", words, remedy, {"classes": torch.tensor(order)})


def find_images(inquiry: Inquiry, replay: ReplaySettings) -> list[str]:
    """Search for the images from which misfitting rows of labels were made.

    Only the batch with the least mixing is searched. For each row, the teacher first sees whole images. The images with
    the nearest logits are then cropped, flipped and mixed like the row, and the best image is chosen.

    Returns:
        sentences for an error message, see `sentences`. Empty if too few images were found.
    """
    question = least_mixed(inquiry, replay)
    if inquiry.by_batch(replay) or question.other_share(replay.size) > MIXED:
        return []
    verdict = inquiry.judge(replay, [question])
    wrong = question.rows[verdict.misfits]
    area = question.labels.coords[wrong, 2:].prod(dim=1)
    rows = wrong[area.argsort(descending=True)[:TRIED_ROWS]].sort().values
    if not len(rows):
        return []
    numbers = inquiry.images_of(question, replay)
    tried = candidates(inquiry, numbers[rows].tolist())
    whole = torch.cat([logits_of_whole_images(inquiry, replay, chunk) for chunk in tried.split(CHUNK)])

    def nearest(row: int) -> list[int]:
        """Return the NEAR_IMAGES images whose whole-image logits are nearest to the stored logits of a row."""
        one = replace(question, rows=torch.tensor([row]))
        return tried[row_size(inquiry.difference(one, whole, replay)).argsort()[:NEAR_IMAGES]].tolist()

    found = []
    for row in rows.tolist():
        other = row if question.labels.mix.partner is None else int(question.labels.mix.partner[row])
        partner = int(numbers[other])
        # search in turn for the best image with the partner fixed, and for the best partner with the image fixed
        for _ in range(2):
            own, _, least = closest(inquiry, replay, question, row, [(near, partner) for near in nearest(row)])
            if other == row:
                break
            _, partner, least = closest(inquiry, replay, question, row, [(own, near) for near in nearest(other)])
        if own != int(numbers[row]) and least < verdict.limit / 2 * verdict.other:
            found.append((row, int(numbers[row]), own))
    return sentences(inquiry, question, found, len(rows)) if 2 * len(found) >= len(rows) else []


def least_mixed(inquiry: Inquiry, replay: ReplaySettings) -> Question:
    """Return the batch whose views contain the smallest fraction of mix partners.

    At most SEARCHED_BATCHES batches, evenly spaced, are compared.
    """
    places = pick_evenly(inquiry.full_batches, SEARCHED_BATCHES)
    return min((inquiry.question(*place) for place in places), key=lambda q: q.other_share(replay.size))


def candidates(inquiry: Inquiry, assumed: Sequence[int]) -> torch.Tensor:
    """Return the indices of up to TRIED_IMAGES random images: int64 [n].

    `assumed` is a list of image indices. Images that share a class with one of the `assumed` images come first.
    """
    targets = torch.tensor([target for _, target in inquiry.samples])
    near = torch.isin(targets, targets[list(assumed)])
    shuffled = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
    return torch.cat([shuffled[near[shuffled]], shuffled[~near[shuffled]]])[:TRIED_IMAGES]


def logits_of_whole_images(inquiry: Inquiry, replay: ReplaySettings, numbers: torch.Tensor) -> torch.Tensor:
    """Return the teacher's logits for n images without crop, flip and mixing: float32 [n, C]."""
    labels = inquiry.questions[0].labels
    whole = replace(
        labels,
        coords=torch.tensor([[0.0, 0.0, 1.0, 1.0]]),
        flip=torch.zeros(1, dtype=torch.bool),
        mix=Mix(),
        augment=None,
    )
    views = torch.stack([inquiry.view(whole, 0, number, replay) for number in numbers.tolist()])
    rows = torch.zeros(len(numbers), dtype=torch.int64)
    return inquiry.logits_of(inquiry.mixed(views, None, whole, replay, rows), replay)


def closest(
    inquiry: Inquiry, replay: ReplaySettings, question: Question, row: int, pairs: Sequence[tuple[int, int]]
) -> tuple[int, int, float]:
    """Return the pair of images whose mixed view best fits the stored logits of a row.

    Args:
        inquiry: labels, images and teacher.
        replay: how views are replayed.
        question: the batch of the row.
        row: number of the row in the batch.
        pairs: candidates, (image, mix partner).

    Returns:
        (image, mix partner, difference between the stored logits and the teacher's logits).
    """
    labels = question.labels
    partners = None
    views = [inquiry.view(labels, row, own, replay) for own, _ in pairs]
    rows = [row] * len(pairs)
    if labels.mix.partner is not None:
        mixed_with = int(labels.mix.partner[row])
        views += [inquiry.view(labels, mixed_with, partner, replay) for _, partner in pairs]
        rows += [mixed_with] * len(pairs)
        partners = torch.arange(len(views)).roll(len(pairs))
    images = inquiry.mixed(torch.stack(views), partners, labels, replay, torch.tensor(rows))
    answers = inquiry.logits_of(images[: len(pairs)], replay)
    distances = row_size(inquiry.difference(replace(question, rows=torch.tensor([row])), answers, replay))
    best = int(distances.argmin())
    return *pairs[best], distances[best].item()


def sentences(inquiry: Inquiry, question: Question, found: Sequence[tuple[int, int, int]], tried: int) -> list[str]:
    """Return two sentences for an error message: an example of a row with a wrong image, and the likely cause.

    Args:
        inquiry: labels, images and teacher.
        question: the batch of the rows.
        found: (row, assumed image, right image) of each row with a wrong image.
        tried: number of rows whose right image was searched for.
    """
    row, assumed, answered = found[0]
    where = f"row {row} of batch {question.batch} in epoch {question.epoch}"
    first = f"{where} answers image {inquiry.name(answered)}, and not image {inquiry.name(assumed)}"
    classes = [(inquiry.samples[wanted][1], inquiry.samples[image][1]) for _, wanted, image in found]
    if all(one == other for one, other in classes):
        how = "files are in another order within their classes, so restore their names"
    elif len(set(classes)) < len(classes) and len({one for one, _ in classes}) == len(set(classes)):
        how = "class folders are in another order, so restore their names"
    else:
        how = "the images are in another order, so restore their names"
    return [first, f"{len(found)} of the {tried} rows that were searched for belong to other images: {how}"]
