"""Where labels are not a teacher's answers to images: find out under which other reading of them they are."""

import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from utils.config import ENSEMBLE_RULES, IMAGENET_MEAN, IMAGENET_STD
from utils.labels.agreement import assign, pick_evenly
from utils.run.teacher_inquiry import Inquiry, Question, Replay, Verdict, row_size
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
SEEDS, SEEDS_AROUND = range(21), 10
SCREENED = 8  # rows that each suspect is tried on
FAULTS = 3  # at most, at once
CLEARLY = 4  # times smaller must the squared difference of a better reading be
TRIED_ROWS, TRIED_IMAGES, NEAR_IMAGES, CHUNK = 8, 2000, 32, 64  # of the search for the image that a row answers
SEARCHED_BATCHES, MIXED = 64, 0.3  # of which the least mixed is taken, if its views are less mixed than that
MANY_CLASSES = 3000  # above, orders of classes are not looked for: it would take minutes
CERTAIN = 32  # rows that it takes to be sure of an order of classes


@dataclass(frozen=True)
class Suspect:
    """One thing that may be otherwise than assumed.

    Attributes:
        kind: the thing.
        words: how it is, after `they fit …`.
        remedy: the act that follows, as an imperative.
        change: fields of `Replay`.
        harmless: the labels are this teacher's answers all the same.
    """

    kind: str
    words: str
    remedy: str
    change: dict[str, Any]
    harmless: bool = False


@dataclass(frozen=True)
class Explanation:
    """The reading that fits.

    Attributes:
        suspects: all that is otherwise than assumed; empty where nothing was found.
        verdict: under it.
        pairs: where images are not those assumed and no rule for them was found, sentences about some rows.
    """

    suspects: list[Suspect]
    verdict: Verdict
    pairs: list[str] = field(default_factory=list)

    @property
    def harmless(self) -> bool:
        """Whether the labels are this teacher's answers to these images."""
        return self.verdict.fits and all(suspect.harmless for suspect in self.suspects)


def explain(inquiry: Inquiry, replay: Replay, verdict: Verdict, seed: int | None) -> Explanation:
    """Change one thing after another in the reading of the labels, as long as they fit better.

    Args:
        inquiry: labels, images, teacher.
        replay: the reading assumed.
        verdict: on it.
        seed: --fkd-seed, around which others are tried; None where the labels state the image order.
    """
    question = hardest(inquiry, verdict)
    taken: list[Suspect] = []
    assumed, start = replay, verdict
    for _ in range(FAULTS):
        known = {suspect.kind for suspect in taken}
        all_of_them = itertools.chain(suspects(inquiry, replay, seed), fitted(inquiry, replay, verdict))
        untried = [suspect for suspect in all_of_them if suspect.kind not in known]
        trials = [replay, *(replace(replay, **suspect.change) for suspect in untried)]
        distances = [distance(inquiry, question, trial) for trial in progress_bar(trials, "suspects", len(trials))]
        best = min(range(len(trials)), key=distances.__getitem__)
        if distances[best] > 0.95 * distances[0]:
            break
        replay, taken = trials[best], [*taken, untried[best - 1]]
        verdict = inquiry.judge(replay)
        if verdict.tight:
            break
    replay, taken, verdict = without_needless(inquiry, assumed, replay, taken, verdict)
    convincing = verdict.fits and (not start.fits or CLEARLY * verdict.excess < start.excess)
    if convincing and certain(taken, verdict):
        return Explanation(taken, verdict)
    pairs = [] if start.fits else find_images(inquiry, assumed)
    return Explanation([], start, pairs)


def without_needless(
    inquiry: Inquiry, assumed: Replay, replay: Replay, taken: list[Suspect], verdict: Verdict
) -> tuple[Replay, list[Suspect], Verdict]:
    """Take back, one after another, changes of the reading without which the labels fit as well."""
    for suspect in taken if len(taken) > 1 else []:
        fewer = [other for other in taken if other is not suspect]
        changes = [other.change for other in fewer]
        trial = replace(assumed, **{name: value for change in changes for name, value in change.items()})
        trial_verdict = inquiry.judge(trial)
        if trial_verdict.tight or (trial_verdict.fits and trial_verdict.excess <= verdict.excess):
            replay, taken, verdict = trial, fewer, trial_verdict
    return replay, taken, verdict


def hardest(inquiry: Inquiry, verdict: Verdict) -> Question:
    """The rows that fit worst, of the batch that fits worst."""
    starts = torch.tensor([0, *(len(question.rows) for question in inquiry.questions)]).cumsum(0).tolist()
    rows = [verdict.own[first:last] for first, last in itertools.pairwise(starts)]
    number = max(range(len(rows)), key=lambda place: rows[place].topk(min(SCREENED, len(rows[place]))).values.median())
    question = inquiry.questions[number]
    chosen = rows[number].argsort(descending=True)[:SCREENED].sort().values
    return replace(question, rows=question.rows[chosen])


def distance(inquiry: Inquiry, question: Question, replay: Replay) -> float:
    """`Inquiry.distance`, infinite where the teacher cannot answer such views."""
    try:
        value = inquiry.distance(question, replay)
    except (RuntimeError, ValueError, AssertionError, IndexError):  # views too small for it, or of the wrong size
        return float("inf")
    return value if value == value else float("inf")


def certain(taken: Sequence[Suspect], verdict: Verdict) -> bool:
    """Whether there are enough rows for an order of classes that was fitted to them."""
    reordered = any(suspect.kind == "classes" for suspect in taken)
    return not reordered or len(verdict.own) >= CERTAIN or verdict.typical <= verdict.limit / 5 * verdict.other


def suspects(inquiry: Inquiry, replay: Replay, seed: int | None) -> Iterator[Suspect]:
    """Yield all but orders of classes, which are fitted."""
    reach = max((max(q.labels.mix_bbox) for q in inquiry.questions if q.labels.mix_bbox is not None), default=0)
    for size in SIZES:
        if size != replay.size and size >= reach:
            yield Suspect("size", f"at input size {size}", f"give --input-size {size}", {"size": size})
    for name, (mean, std) in NORMALISATIONS.items():
        if (tuple(mean), tuple(std)) != (tuple(replay.mean), tuple(replay.std)):
            flags = " ".join(["--mean", *(f"{x:.4g}" for x in mean), "--std", *(f"{x:.4g}" for x in std)])
            yield Suspect("normalisation", name, f"give {flags}", {"mean": mean, "std": std})
    yield from image_orders(inquiry, seed)
    again = "make the labels again with relabel_FKD.py, since training does not show such views"
    yield Suspect("flip", "if no view is flipped", again, {"flip": "never"})
    yield Suspect("flip", "if views are flipped before they are cropped", again, {"flip": "before"})
    if inquiry.store.mix_type == "cutmix":
        yield Suspect("box", "if rows and columns of the cutmix boxes are exchanged", again, {"swap_box": True})
    yield Suspect("resize", "if views are resized without antialiasing", "", {"antialias": False}, harmless=True)
    if len(inquiry.teachers.teachers) > 1:
        for rule in ENSEMBLE_RULES:
            if rule != inquiry.teachers.rule:
                yield Suspect("rule", f"if combined by the rule {rule}", f"give --ensemble {rule}", {"rule": rule})
    if inquiry.store.batch_size > 1:
        for parts, words in ((2, "on halves of each batch (BSSL of FADRM and CV-DD)"), (1, "on whole batches")):
            yield Suspect("mode", f"in train mode, {words}", "", {"parts": parts}, harmless=True)


def image_orders(inquiry: Inquiry, seed: int | None) -> Iterator[Suspect]:
    """Yield other orders of images: of other seeds, of names as numbers, off by a few."""
    if seed is not None:
        for other in sorted({*SEEDS, *range(max(seed - SEEDS_AROUND, 0), seed + SEEDS_AROUND + 1)} - {seed}):
            words = f"in the image order of --fkd-seed {other}"
            yield Suspect("order", words, f"give --fkd-seed {other}", {"fkd_seed": other})
    paths = [path for path, _ in inquiry.samples]
    count = len(paths)
    folders, files = [os.path.dirname(path) for path in paths], [os.path.basename(path) for path in paths]
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
            words = f"if the names of {names} are in the order of their numbers, as new2 before new10"
            remedy = f"pad the numbers in the names of {names} with zeros"
            yield Suspect("order", words, remedy, {"order": torch.tensor(order)})
    for step in (1, -1, 2, -2, 3, -3):
        words = f"if image n of the labels is image n{step:+d} of the folder"
        remedy = "an image is missing from the folder, or one too many, before those of the labels; restore it"
        if count > abs(step):
            yield Suspect("order", words, remedy, {"order": torch.arange(count).add(step).remainder(count)})


def as_numbers(name: str) -> list[tuple[int, str]]:
    """Sort key that compares numbers in a name as numbers."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.findall(r"[0-9]+|[^0-9]+", name)]


def fitted(inquiry: Inquiry, replay: Replay, verdict: Verdict) -> Iterator[Suspect]:
    """Yield what is not tried but follows from the stored answers and those found."""
    if inquiry.store.answers == "probabilities":
        yield from temperatures(inquiry, replay, verdict)
    yield from class_orders(inquiry, replay, verdict)


def temperatures(inquiry: Inquiry, replay: Replay, verdict: Verdict) -> Iterator[Suspect]:
    """Yield the temperature at which stored probabilities are nearest to the teacher's answers."""
    products = squares = 0.0
    for question, found in zip(inquiry.questions, verdict.found, strict=True):
        values, known = inquiry.stored(question, replay)
        logs, logits = (torch.where(known, tensor, torch.nan) for tensor in (values / replay.temperature, found))
        logs, logits = (tensor - tensor.nanmean(dim=1, keepdim=True) for tensor in (logs, logits))
        products += (logs * logits).nansum().item()
        squares += logs.square().nansum().item()
    best = products / squares if squares else 0.0
    best = round(best, 1) if best > 0.5 else best  # nobody takes 19.97
    if best > 0 and abs(best / replay.temperature - 1) > 0.01:
        yield Suspect("temperature", f"at temperature {best:g}", f"give --temperature {best:g}", {"temperature": best})


def class_orders(inquiry: Inquiry, replay: Replay, verdict: Verdict) -> Iterator[Suspect]:
    """Yield the order of the teacher's classes that brings its answers nearest to the stored ones."""
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
    names = sorted({str(os.path.basename(os.path.dirname(path))) for path, _ in inquiry.samples})
    told = [f"{n} ({names[n]})" if len(names) == classes else str(n) for n in range(classes)]
    if len(moved) == 2 and order[moved[0]] == moved[1]:
        words = f"with the teacher's classes {told[moved[0]]} and {told[moved[1]]} exchanged"
    else:
        pairs = listing([f"class {told[n]} of the labels is its {told[order[n]]}" for n in moved], 3)
        words = f"with the teacher's classes in another order: {pairs}"
    remedy = "the class folders must be in the order of the labels' classes (--class-order of train_FKD_parallel.py)"
    yield Suspect("classes", words, remedy, {"classes": torch.tensor(order)})


def find_images(inquiry: Inquiry, replay: Replay) -> list[str]:
    """Find the images that rows answer, where they are not those assumed: a sentence about each of a few rows.

    Rows of the least mixed batch are compared with the teacher's answers to whole images first, then with those to
    the row's own view of the nearest of them.
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
    whole = torch.cat([show_whole(inquiry, replay, chunk) for chunk in tried.split(CHUNK)])

    def nearest(row: int) -> list[int]:
        """The images whose answers, seen whole, are nearest to a row's."""
        one = replace(question, rows=torch.tensor([row]))
        return tried[row_size(inquiry.difference(one, whole, replay)).argsort()[:NEAR_IMAGES]].tolist()

    found = []
    for row in rows.tolist():
        other = row if question.labels.mix_index is None else int(question.labels.mix_index[row])
        partner = int(numbers[other])
        for _ in range(2):  # the image beside the partner assumed, the partner beside that image, and once more
            own, _, least = closest(inquiry, replay, question, row, [(near, partner) for near in nearest(row)])
            if other == row:
                break
            _, partner, least = closest(inquiry, replay, question, row, [(own, near) for near in nearest(other)])
        if own != int(numbers[row]) and least < verdict.limit / 2 * verdict.other:
            found.append((row, int(numbers[row]), own))
    return sentences(inquiry, question, found, len(rows)) if 2 * len(found) >= len(rows) else []


def least_mixed(inquiry: Inquiry, replay: Replay) -> Question:
    """The stored batch whose views have least of their partners."""
    places = pick_evenly(inquiry.full_batches, SEARCHED_BATCHES)
    return min((inquiry.question(*place) for place in places), key=lambda q: q.other_share(replay.size))


def candidates(inquiry: Inquiry, assumed: Sequence[int]) -> torch.Tensor:
    """The images that rows may answer: all, or those of the assumed ones' classes first."""
    targets = torch.tensor([target for _, target in inquiry.samples])
    near = torch.isin(targets, targets[list(assumed)])
    shuffled = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
    return torch.cat([shuffled[near[shuffled]], shuffled[~near[shuffled]]])[:TRIED_IMAGES]


def show_whole(inquiry: Inquiry, replay: Replay, numbers: torch.Tensor) -> torch.Tensor:
    """The teacher's answers to whole images: logits float32 [n, C]."""
    labels = inquiry.questions[0].labels
    whole = replace(
        labels,
        coords=torch.tensor([[0.0, 0.0, 1.0, 1.0]]),
        flip=torch.zeros(1, dtype=torch.bool),
        mix_index=None,
        mix_lam=None,
        mix_bbox=None,
    )
    views = torch.stack([inquiry.view(whole, 0, number, replay) for number in numbers.tolist()])
    return inquiry.show(inquiry.mixed(views, None, whole, replay), replay)


def closest(
    inquiry: Inquiry, replay: Replay, question: Question, row: int, pairs: Sequence[tuple[int, int]]
) -> tuple[int, int, float]:
    """Return the (image, partner) of some whose view the row's stored answer is nearest to, and the difference."""
    labels, partners = question.labels, None
    views = [inquiry.view(labels, row, own, replay) for own, _ in pairs]
    if labels.mix_index is not None:
        views += [inquiry.view(labels, int(labels.mix_index[row]), partner, replay) for _, partner in pairs]
        partners = torch.arange(len(views)).roll(len(pairs))
    images = inquiry.mixed(torch.stack(views), partners, labels, replay)
    answers = inquiry.show(images[: len(pairs)], replay)
    distances = row_size(inquiry.difference(replace(question, rows=torch.tensor([row])), answers, replay))
    best = int(distances.argmin())
    return *pairs[best], distances[best].item()


def sentences(inquiry: Inquiry, question: Question, found: Sequence[tuple[int, int, int]], tried: int) -> list[str]:
    """Say which images rows answer, and what that has in common.

    Args:
        found: (row, image assumed, image answered) of some rows.
        tried: number of rows looked at.
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
    return [first, f"such are {len(found)} of the {tried} rows that were looked into: {how}"]
