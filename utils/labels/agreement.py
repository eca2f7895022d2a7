"""Check that labels fit the class folders of the images: does the teacher predict the folder's class?

Two images may be mixed in one view. The teacher should predict the class of the image that fills most of the view. The
check reads about 30 views per class and searches for three faults:

* **Permuted classes.** The teacher predicts class B for the images of folder A, and the pairs (A, B) form a cycle: two
  classes are swapped, or more than two are permuted. The images of each class are split into two halves. Both
  halves must show the cycle. A sign test then counts the images for which the teacher prefers the wrong class to the
  class of the folder. A weak teacher may mistake class A for class B, but seldom also B for A.
* **Shifted image numbers.** All image numbers are wrong by the same small offset, for example because an image was
  deleted. The teacher then predicts the neighbouring class for the images at the border between two classes, but not
  for the other images. The check counts how often the teacher prefers the neighbouring class at borders and elsewhere.
* **Agreement at chance level.** The teacher's predictions agree with the folders no more often than guesses do. The
  labels were made for other images, for another image order or with another --fkd_seed. If a seed determines the image
  order of the labels, other seeds are tried.

Before the comparison, the logits of each view are standardised, so that confident views do not count more than others.
For each class, the mean of its logits over all images is then subtracted. Otherwise, classes with large logits for all
images would count more than others.

Labels are refused if the p-value of a fault is below 0.001. A warning is logged if the p-value is below 0.2. Labels are
also refused if the agreement is at chance level on at least 50 images. tests/test_agreement.py calibrates these
thresholds on synthetic labels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from utils.labels.store import LabelStore
from utils.labels.types import BatchLabels, TopK, best_classes, unweighted
from utils.labels.views import ReferenceOrder, index_of
from utils.system.errors import listing

VIEWS_PER_CLASS, FEWEST_VIEWS, MOST_VIEWS, MOST_VALUES = 30, 3000, 20_000, 30_000_000
# an image dominates a view if it fills at least this fraction of the view
DOMINANT = 2 / 3
# p-values of a fault. Below REFUSED, labels are refused. From REFUSED to DOUBTED, they are refused only if the
# agreement is at chance level; otherwise, a warning is logged.
REFUSED, DOUBTED = 1e-3, 0.2
# The sign test is reliable only if each class has at least this number of images.
FEWEST_IMAGES = 4
# In an open chain, the teacher predicts class B for A, C for B and so on, but the chain does not lead back to A. All
# open chains are ignored if together they hold fewer classes than this, because so few may form chains by chance.
FEWEST_OPEN = 5
# An open chain is reported only if the teacher prefers the wrong class for at least this fraction of its images.
CLEAR = 0.85
# agreement at chance level proves a fault only if at least this number of images was compared
ENOUGH_IMAGES = 50
SHIFTS = (-1, 1, -2, 2, -3, 3)
# Other seeds to try. SEEDS holds seeds, NEAR_SEEDS holds distances from the given --fkd_seed.
SEEDS, NEAR_SEEDS = range(101), range(-10, 11)


@dataclass(frozen=True)
class Views:
    """A teacher's logits for R views, each with the image that fills most of the view.

    Attributes:
        scores: float32 [R, C], logits of each view, standardised to mean 0 and standard deviation 1.
        answers: int64 [R], class with the largest logit of each view.
        images: int64 [R], number of the image that fills most of each view.
    """

    scores: torch.Tensor
    answers: torch.Tensor
    images: torch.Tensor


@dataclass(frozen=True)
class Agreement:
    """The result of comparing a teacher's predictions with the class folders.

    Attributes:
        share: fraction of views, in [0, 1], for which the teacher predicts the class of the image's folder.
        chance: the fraction that guessing would give, 1 / C.
        views, images: number of compared views, and number of compared images.
        worst: (class, share within this class) for each class with a share below `share` / 4, worst first. If `share`
            is at most 4 * `chance`, no class is listed.
        fault: text that names the fault and the remedy, for an error or a warning; None if no fault was detected.
        certain: True if the fault is an error; False if it is only a suspicion, which leads to a warning.
    """

    share: float
    chance: float
    views: int
    images: int
    worst: tuple[tuple[int, float], ...] = ()
    fault: str | None = None
    certain: bool = False


def sample_labels(store: LabelStore, epochs: Sequence[int], num_folders: int) -> list[BatchLabels]:
    """Return evenly spaced batches of labels that hold about 30 views per class folder.

    The batches come from three epochs, or from more epochs if three hold too few views.

    Args:
        store: the labels.
        epochs: numbers of the stored epochs from which batches may be read.
        num_folders: number of class folders.
    """
    rows = min(max(VIEWS_PER_CLASS * num_folders, FEWEST_VIEWS), MOST_VIEWS, MOST_VALUES // store.num_classes)
    wanted = max(8, -(-rows // store.batch_size))
    count = min(len(epochs), max(3, -(-wanted // store.batches_per_epoch)))
    chosen = pick_evenly(epochs, count)
    share = -(-wanted // len(chosen))
    return [store.read(epoch, batch) for epoch in chosen for batch in pick_evenly(range(store.batches(epoch)), share)]


def pick_evenly(items: Sequence[Any], most: int) -> list[Any]:
    """Return at most `most` of the items, evenly spaced.

    If two or more items are returned, the first and the last item are among them.
    """
    count = min(most, len(items))
    return [items[place * (len(items) - 1) // max(count - 1, 1)] for place in range(count)]


def views_of(samples: Sequence[BatchLabels], num_classes: int, input_size: int) -> Views:
    """Return the teacher's logits, standardised per view, for all views that one image dominates.

    An image dominates a view if it fills at least two thirds of the view. If fewer than a tenth of the views have a
    dominating image, all views are returned.

    Args:
        samples: batches of labels.
        num_classes: C.
        input_size: S, side of the views in pixels.
    """
    scores, answers, images, kept = [], [], [], []
    for labels in samples:
        image, dominant = dominating(labels, input_size)
        images.append(image)
        kept.append(dominant)
        answers.append(best_classes(labels.logits))
        scores.append(dense(unweighted(labels.logits), num_classes))
    some = torch.cat(kept)
    if some.sum() < 0.1 * len(some):
        some = torch.ones_like(some)
    values = torch.cat(scores)[some]
    values = (values - values.mean(dim=1, keepdim=True)) / values.std(dim=1, keepdim=True).clamp_min(1e-6)
    return Views(values, torch.cat(answers)[some], torch.cat(images)[some])


def dominating(labels: BatchLabels, input_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the image that fills most of each view, and whether this image dominates the view.

    An image dominates a view if it fills at least two thirds of the view. In mixup, the weight of an image counts as
    the fraction that it fills.

    Args:
        labels: labels of B views.
        input_size: S, side of the views in pixels.

    Returns:
        (image numbers, int64 [B]; whether the image dominates the view, bool [B]).
    """
    share = labels.mix.own_share(input_size)
    own = index_of(labels)
    partner = own if labels.mix.partner is None else own[labels.mix.partner]
    return own if share >= 0.5 else partner, (own == partner) | (max(share, 1 - share) >= DOMINANT)


def dense(answers: torch.Tensor | TopK, num_classes: int) -> torch.Tensor:
    """Return logits as float32 [B, C].

    Top-k labels lack most logits. Each missing logit gets a value that is a little below the smallest stored logit of
    its row.
    """
    if isinstance(answers, torch.Tensor):
        return answers.float().clamp_min(-1e4)  # log probabilities may be -inf
    values = answers.values.float()
    low, high = values.amin(dim=1, keepdim=True), values.amax(dim=1, keepdim=True)
    absent = (low - 0.1 * (high - low) - 1e-3).expand(-1, num_classes)
    return absent.scatter(1, answers.classes, values)


def judge(
    views: Views,
    targets: torch.Tensor,
    names: Sequence[str],
    num_classes: int,
    other_seed: Callable[[], int | None] = lambda: None,
    live: bool = False,
) -> Agreement:
    """Compare a teacher's predictions with the class folders, and search for faults of the labels.

    Args:
        views: the teacher's logits for views of the images.
        targets: int64 [N], class of every image, by image number.
        names: name of each class, for the description of a fault.
        num_classes: C, the number of the teacher's classes.
        other_seed: function that returns a --fkd_seed for which the predictions fit the folders, or None if there is
            none. It is called only if the agreement is at chance level.
        live: True if the logits come from a live teacher, False if they come from stored labels. Only stored labels
            are checked for shifted image numbers.
    """
    classes = targets[views.images]
    hits = (views.answers == classes).double()
    images, places = views.images.unique(return_inverse=True)
    found = Agreement(hits.mean().item(), 1 / num_classes, len(hits), len(images))
    scores = means(views.scores, places, len(images))
    scores -= scores.mean(dim=0)
    own = targets[images]
    present = own.unique()
    by_class = means(hits[:, None], torch.searchsorted(present, classes), len(present))[:, 0]
    low = found.share / 4 if found.share > 4 / num_classes else 0.0
    order = by_class.argsort()
    found = replace(
        found, worst=tuple((int(present[f]), float(by_class[f])) for f in order.tolist() if by_class[f] < low)
    )
    # compute the standard error from the number of images, not of views: the views of one image are not independent
    spread = math.sqrt(found.chance * (1 - found.chance) / max(len(images), 1))
    # A teacher that prefers a few classes for all images may seem to guess. Centred scores correct for this preference.
    centred = (scores.argmax(dim=1) == own).double().mean().item()
    at_chance = max(found.share, centred) < found.chance + 3 * spread
    lost = at_chance and len(images) >= ENOUGH_IMAGES
    if at_chance:
        seed = other_seed()
        if seed is not None:
            return replace(found, fault=f"they fit with --fkd_seed {seed}; give that seed", certain=True)
    whose = "teacher's" if live else "labels'"
    remedy = f"; if the {whose} classes are in another order, name them in that order with --class-order FILE"
    fault, chance = permutation_of(scores, images, own, names)
    if fault is not None and chance < DOUBTED:
        return replace(found, fault=fault + remedy, certain=chance < REFUSED or lost)
    if not live:
        fault, chance = shift_of(scores, images, own, targets)
        if fault is not None and chance < DOUBTED:
            return replace(found, fault=fault, certain=chance < REFUSED or lost)
    if not at_chance and found.share >= found.chance + (1 - found.chance) / 10:
        return found
    fault = "the teacher's answers hardly match the class folders"
    if num_classes > len(present):
        other = elsewhere(scores, own, present)
        seen = [f"{names[int(present[f])]} as class {c}" for f, c in sorted(other.items())]
        lost |= 2 * len(set(other.values())) > len(present) and len(images) >= FEWEST_IMAGES * len(present)
        fault += f": it knows {num_classes} classes, and the {len(present)} folders may not be the first of them"
        fault += f" (it takes {listing(seen, 3)})" if seen else ""
        fault += "; name its classes in order with --class-order FILE"
    elif live:
        fault += "; it was most likely trained on another class order or --input-size, or these are not its weights"
    else:
        fault += "; the labels were most likely made for another class order, image order or --fkd_seed"
    return replace(found, fault=fault, certain=lost)


def means(values: torch.Tensor, groups: torch.Tensor, count: int) -> torch.Tensor:
    """Return the mean row of each group of rows: float32 [count, C]. A group without rows gets zeros.

    Args:
        values: [R, C].
        groups: int64 [R], group of each row, in [0, count).
        count: number of groups.
    """
    sums = torch.zeros(count, values.shape[1]).index_add_(0, groups, values.float())
    return sums / torch.bincount(groups, minlength=count).clamp_min(1)[:, None]


def permutation_of(
    scores: torch.Tensor, images: torch.Tensor, own: torch.Tensor, names: Sequence[str]
) -> tuple[str | None, float]:
    """Search for permuted classes: the teacher predicts class B for A, C for B, and so on, in a cycle or chain.

    Args:
        scores: float32 [n, C], mean scores of n images, centred.
        images: int64 [n], image numbers, ascending.
        own: int64 [n], class of each image.
        names: name of each class.

    Returns:
        (text that names the permuted classes, or None if there are none; p-value of the permutation).
    """
    present, place = own.unique(return_inverse=True)
    # split the images of each class into two halves: the first image goes to half 0, the second to half 1, and so on
    turn = torch.zeros_like(own)
    for f in range(len(present)):
        rows = place == f
        turn[rows] = torch.arange(int(rows.sum())) % 2
    halves = [best_assignment(scores[turn == half], place[turn == half], present) for half in (0, 1)]
    # classes with only one image: there is no second half that could confirm the prediction
    alone = torch.bincount(place) == 1
    agreed = {f: c for f, c in halves[0].items() if halves[1].get(f, c) == c and (f in halves[1] or alone[f])}
    folder_of = {int(c): f for f, c in enumerate(present)}
    circles = closed(agreed, folder_of)
    closed_ones = {f for circle in circles for f in circle}
    # folders that half 0, half 1 or both assign to a wrong class; an open chain consists of such folders
    moving = halves[0].keys() | halves[1].keys()
    chains = [f for f, c in agreed.items() if f not in closed_ones and folder_of.get(c) in moving]
    groups = [*circles, *([chains] if len(chains) >= FEWEST_OPEN else [])]
    # number of wrong assignments in neither a cycle nor a counted open chain: they count as mistakes of a weak teacher
    one_way = len(agreed) - sum(map(len, groups))
    rate = one_way / max(len(present) - sum(map(len, groups)), 1)
    wrong: list[int] = []
    total_chance = 1.0
    for group in groups:
        gains = [scores[place == f][:, [agreed[f], int(present[f])]] for f in group]
        for_other = [int((gain[:, 0] > gain[:, 1]).sum()) for gain in gains]
        counts = list(map(len, gains))
        majority = all(2 * prefer > count for prefer, count in zip(for_other, counts, strict=True))
        # open chains are weaker evidence than cycles, so they need a larger majority
        if group is chains:
            majority = sum(for_other) >= CLEAR * sum(counts)
        chance = (0.5 + len(present) * rate**2) * tail(sum(for_other), sum(counts), 0.5)
        # With few images, a weak teacher may misclassify a whole class by chance. `strays` estimates how often.
        if min(counts) < FEWEST_IMAGES:
            strays = (len(moving - set(group)) + 1) / (len(present) - len(group) + 2)
            chance = max(chance, min(1.0, (len(present) * strays**2) ** (len(group) / 2)))
        if chance < DOUBTED and majority:
            wrong += group
            total_chance = min(total_chance, chance)
    if not wrong:
        return None, 1.0
    swaps = [f"{names[int(present[f])]} as {names[agreed[f]]}" for f in wrong]
    clause = f"the images of {len(wrong)} classes are answered as one another's ({listing(swaps, 4)})"
    return clause, total_chance


def elsewhere(scores: torch.Tensor, own: torch.Tensor, present: torch.Tensor) -> dict[int, int]:
    """Return {folder: wrong class} for each folder where more than half of the images get the same wrong class.

    An image gets the class with its largest score.

    Args:
        scores: float32 [n, C], mean scores of n images.
        own: int64 [n], class of each image.
        present: int64 [F], class of each folder. A folder is named by its index in `present`.
    """
    found = {}
    for f, own_class in enumerate(present.tolist()):
        choices = scores[own == own_class].argmax(dim=1)
        common = int(choices.mode().values)
        if common != own_class and (choices == common).sum() * 2 > len(choices):
            found[f] = common
    return found


def best_assignment(scores: torch.Tensor, place: torch.Tensor, present: torch.Tensor) -> dict[int, int]:
    """Assign folders to distinct classes so that the sum of their mean scores is as large as possible.

    A folder takes part only if its highest mean score is for a class other than its own.

    Args:
        scores: float32 [n, C], scores of n images.
        place: int64 [n], folder of each image, as an index into `present`.
        present: int64 [F], class of each folder.

    Returns:
        {folder: class} for the folders that are assigned to a class other than their own.
    """
    average = means(scores, place, len(present))  # [F, C]
    best = average.argmax(dim=1)
    seen = torch.bincount(place, minlength=len(present)) > 0
    suspects = ((best != present) & seen).nonzero()[:, 0]
    if not len(suspects):
        return {}
    columns = torch.cat([present[suspects], best[suspects]]).unique()
    picked = assign(average[suspects][:, columns].double().numpy())
    pairs = zip(suspects.tolist(), columns[picked].tolist(), strict=True)
    return {f: c for f, c in pairs if c != int(present[f])}


def assign(gain: np.ndarray) -> np.ndarray:
    """Solve the linear assignment problem: choose a distinct column for each row so that the total gain is maximal.

    The method is shortest augmenting paths (Kuhn 1955; Jonker and Volgenant 1987). It takes half a second for a matrix
    of 1,000 x 1,000, about as long as importing scipy.

    Args:
        gain: [F, C], F <= C, gain of each pair of a row and a column.

    Returns:
        int64 [F], the chosen column of each row.
    """
    cost, (rows, columns) = -gain, gain.shape
    u, v = np.zeros(rows + 1), np.zeros(columns + 1)
    # Row of each column; 0 if the column is free. Rows and columns are counted from 1. Column 0 holds the new row.
    owner = np.zeros(columns + 1, dtype=np.int64)
    for row in range(1, rows + 1):
        owner[0], here = row, 0
        shortest, before = np.full(columns + 1, np.inf), np.zeros(columns + 1, dtype=np.int64)
        done = np.zeros(columns + 1, dtype=bool)
        while owner[here]:
            done[here] = True
            reduced = cost[owner[here] - 1] - u[owner[here]] - v[1:]
            nearer = ~done[1:] & (reduced < shortest[1:])
            shortest[1:][nearer], before[1:][nearer] = reduced[nearer], here
            following = int(np.where(done[1:], np.inf, shortest[1:]).argmin()) + 1
            step = shortest[following]
            u[owner[done]] += step
            v[done] -= step
            shortest[1:][~done[1:]] -= step
            here = following
        while here:
            owner[here] = owner[before[here]]
            here = before[here]
    picked = np.zeros(rows, dtype=np.int64)
    for column in range(1, columns + 1):
        if owner[column]:
            picked[owner[column] - 1] = column - 1
    return picked


def closed(mapping: dict[int, int], folder_of: dict[int, int]) -> list[list[int]]:
    """Return the cycles of an assignment of folders to classes, each as a list of folders.

    In a cycle, each folder is assigned to the class of the next folder, and the last folder to the class of the first.

    Args:
        mapping: {folder: class}, the assignment.
        folder_of: {class: folder}, the folder of each class.
    """
    circles, seen = [], set()
    for start in mapping:
        path: list[int] = []
        here: int | None = start
        while here is not None and here not in seen:
            seen.add(here)
            path.append(here)
            here = folder_of.get(mapping[here]) if here in mapping else None
        if here is not None and here in path:
            circles.append(path[path.index(here) :])
    return circles


def shift_of(
    scores: torch.Tensor, images: torch.Tensor, own: torch.Tensor, targets: torch.Tensor
) -> tuple[str | None, float]:
    """Search for an offset between -3 and 3 by which all image numbers of the labels are wrong.

    Args:
        scores: float32 [n, C], mean scores of n images, centred.
        images: int64 [n], image numbers, ascending.
        own: int64 [n], class of each image.
        targets: int64 [N], classes of all images in the order of their numbers.

    Returns:
        (text that describes the offset, or None if there is none; p-value of the offset).
    """
    best: tuple[str | None, float] = None, 1.0
    rows = torch.arange(len(images))
    starts = torch.cat([torch.ones(1, dtype=torch.bool), targets[1:] != targets[:-1]])
    # Consecutive images of one class form a stretch. Each image gets the number of its stretch.
    stretch = starts.long().cumsum(0) - 1
    classes = targets[starts]
    for shift in SHIFTS:
        moved = targets[(images + shift).clamp(0, len(targets) - 1)]
        border = moved != own
        if border.sum() < 3 or border.all():
            continue
        side = 1 if shift > 0 else -1
        neighbour = classes[(stretch[images] + side).clamp(0, len(classes) - 1)]
        inside = ~border & (neighbour != own)
        # how often the teacher prefers the neighbouring class for images that are not at the border of their class
        wrong = int((scores[rows, neighbour] > scores[rows, own])[inside].sum())
        usual = (wrong + 1) / (int(inside.sum()) + 2)
        against = int((scores[rows, moved] > scores[rows, own])[border].sum())
        total = int(border.sum())
        chance = len(SHIFTS) * tail(against, total, max(usual, 0.02))
        if against * 2 > total and chance < best[1]:
            clause = (
                f"the image numbers of the labels are off by {abs(shift)}: {against} of the {total} images at the "
                "borders of classes are answered as the next class's; the images have changed since they were "
                "labelled, so give those that were, or label these with relabel_FKD.py"
            )
            best = clause, chance
    return best


def tail(successes: int, trials: int, chance: float) -> float:
    """Return the probability of at least `successes` successes in `trials` independent trials (binomial).

    Each trial succeeds with the probability `chance`.
    """
    terms = (
        math.lgamma(trials + 1)
        - math.lgamma(n + 1)
        - math.lgamma(trials - n + 1)
        + n * math.log(chance)
        + (trials - n) * math.log1p(-chance)
        for n in range(successes, trials + 1)
    )
    return min(1.0, sum(map(math.exp, terms)))


def fitting_seed(
    store: LabelStore, samples: Sequence[BatchLabels], targets: torch.Tensor, given: int, input_size: int
) -> int | None:
    """Return the --fkd_seed for which the labels of epoch 0 fit the class folders, or None if no tried seed fits.

    Args:
        store: labels whose image order depends on the seed.
        samples: batches of labels; only batches of epoch 0 are used.
        targets: int64 [N], class of every image, by image number.
        given: the present --fkd_seed, which does not fit.
        input_size: S, side of the views in pixels.
    """
    order = ReferenceOrder(store.num_images, given)(0)
    size = store.batch_size
    first: list[tuple[int, BatchLabels]] = []
    for labels in samples:
        place = int((order == index_of(labels)[0]).nonzero()[0])
        if place % size == 0 and torch.equal(order[place : place + len(labels)], index_of(labels)):
            first.append((place, labels))
    if not first:
        return None
    best, best_share = None, 0.0
    for seed in [*SEEDS, *(given + near for near in NEAR_SEEDS)]:
        if seed < 0 or seed == given:
            continue
        order = ReferenceOrder(store.num_images, seed)(0)
        moved = [replace(labels, index=order[place : place + len(labels)]) for place, labels in first[:20]]
        hits = torch.cat([hits_of(one, targets, input_size) for one in moved]).double().mean().item()
        if hits > best_share:
            best, best_share = seed, hits
    chance = 1 / store.num_classes
    rows = sum(len(labels) for _, labels in first[:20])
    enough = chance + max(0.1, 6 * math.sqrt(chance * (1 - chance) / rows))
    return best if best_share > enough else None


def hits_of(labels: BatchLabels, targets: torch.Tensor, input_size: int) -> torch.Tensor:
    """Return whether the teacher predicts the class of the image that dominates the view: bool [R].

    Views that no image dominates are left out, so R may be smaller than the number of rows.

    Args:
        labels: labels of a batch.
        targets: int64 [N], class of every image, by image number.
        input_size: S, side of the views in pixels.
    """
    images, kept = dominating(labels, input_size)
    return (best_classes(labels.logits) == targets[images])[kept]
