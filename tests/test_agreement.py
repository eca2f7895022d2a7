"""Labels in a wrong order of classes or images are found from the teacher's logits, and right labels pass.

`test_random_pairings_are_judged_right` draws 200 wrong and 200 right sets of labels; -s shows the counts by kind.
"""

from collections import Counter
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from pairings import (
    SEED,
    SIDE,
    Teacher,
    as_probabilities,
    coarse,
    other_targets,
    permuted,
    renumbered,
    right_labels,
)
from scipy.optimize import linear_sum_assignment

from utils.labels.agreement import assign, closed, fitting_seed, judge, tail, views_of
from utils.labels.views import ReferenceOrder

NAMES = [f"class_{number}" for number in range(1000)]
GOOD = Teacher(4)


def verdict(labels, **more):
    """Judge simulated labels."""
    views = views_of(labels.batches, labels.num_classes, SIDE)
    return judge(views, labels.targets, NAMES, labels.num_classes, **more)


def swapped(classes, a, b):
    """Return the order of classes in which `a` and `b` have changed places."""
    order = list(range(classes))
    order[a], order[b] = b, a
    return order


@pytest.mark.parametrize(
    ("classes", "mix"),
    [(10, "none"), (10, "cutmix"), (10, "mixup"), (100, "none"), (100, "cutmix"), (100, "mixup"), (1000, "cutmix")],
)
def test_two_swapped_classes_are_named(classes, mix):
    """Two swapped classes among 10, 100 and 1,000 are named; the same labels unswapped pass."""
    labels = right_labels(np.random.default_rng(0), classes, 10, GOOD, mix)
    assert verdict(labels).fault is None
    found = verdict(permuted(labels, swapped(classes, 3, 7)))
    assert found.certain
    assert found.fault.startswith("the images of 2 classes are answered as one another's (class_3 as class_7, class_7")
    assert "--class-order FILE" in found.fault


def test_permuted_classes_are_named():
    """If five of ten classes are permuted, each is named with its other class."""
    labels = right_labels(np.random.default_rng(1), 10, 10, GOOD)
    found = verdict(permuted(labels, [1, 2, 3, 4, 0, 5, 6, 7, 8, 9]))
    assert found.certain
    assert "the images of 5 classes" in found.fault
    assert found.share == pytest.approx(0.5, abs=0.05)


def test_a_live_teacher_is_not_called_labels():
    """The error speaks of the teacher and gives no advice about labels."""
    labels = right_labels(np.random.default_rng(0), 10, 10, GOOD)
    swap, chance = permuted(labels, swapped(10, 3, 7)), permuted(labels, np.roll(np.arange(10), 1))
    chance = other_targets(chance, np.random.default_rng(0).permutation(chance.targets))
    stored, live = verdict(swap), verdict(swap, live=True)
    assert live.certain
    assert live.fault == stored.fault.replace("labels'", "teacher's") != stored.fault
    found = verdict(chance, live=True)
    assert found.certain
    assert found.fault.endswith("on another class order or --input-size, or these are not its weights")
    assert verdict(chance).fault.endswith("made for another class order, image order or --fkd_seed")


@pytest.mark.parametrize("shift", [-1, 1])
@pytest.mark.parametrize(("classes", "per_class"), [(10, 10), (100, 5)])
def test_image_numbers_off_by_one_are_found(classes, per_class, shift):
    """The first class has one image less and the last one more, or the other way round."""
    labels = right_labels(np.random.default_rng(2), classes, per_class, GOOD, "cutmix")
    counts = [per_class + shift, *[per_class] * (classes - 2), per_class - shift]
    found = verdict(other_targets(labels, np.repeat(np.arange(classes), counts)))
    assert found.certain
    assert "the image numbers of the labels are off by 1" in found.fault
    assert found.share > 0.65  # a reader would not suspect such a share


def test_another_seed_is_found():
    """Labels without an image index were made with seed 7 and are read with 42."""
    labels = right_labels(np.random.default_rng(3), 10, 10, GOOD)
    made, read = ReferenceOrder(100, 7), ReferenceOrder(100, SEED)
    place = {int(image): number for number, image in enumerate(made(0))}

    def as_read(index):  # the row of image i under seed 7 is taken for another image under 42
        return torch.stack([read(0)[place[int(image)]] for image in index])

    # only the first epoch: its rows in the order of seed 7, with the images of seed 42
    first = right_labels(np.random.default_rng(3), 10, 10, GOOD, epochs=1)
    logits = torch.cat([one.logits for one in first.batches])
    by_image = torch.empty_like(logits)
    by_image[torch.cat([one.index for one in first.batches])] = logits
    batches = [
        replace(one, logits=by_image[made(0)[start : start + 50]], index=read(0)[start : start + 50])
        for one, start in zip(first.batches, (0, 50), strict=True)
    ]

    class Store:
        num_images, batch_size, num_classes = 100, 50, 10

    def other_seed():
        return fitting_seed(Store, batches, first.targets, SEED, SIDE)

    assert other_seed() == 7
    found = verdict(replace(first, batches=batches), other_seed=other_seed)
    assert (found.fault, found.certain) == ("they fit with --fkd_seed 7; give that seed", True)
    assert verdict(renumbered(labels, as_read)).certain


def test_a_thousand_class_teacher_on_ten_folders_is_found():
    """The error blames the teacher's classes, not the seed."""
    nette = [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]
    labels = right_labels(np.random.default_rng(4), 10, 10, GOOD, num_classes=1000)
    order = nette + [number for number in range(1000) if number not in nette]
    found = verdict(permuted(labels, order))
    assert found.certain
    assert "it knows 1000 classes, and the 10 folders may not be the first of them" in found.fault
    assert "class_1 as class 217" in found.fault
    assert "seed" not in found.fault
    assert verdict(labels).fault is None  # the ten folders are the teacher's first classes


def test_answers_at_chance_are_refused():
    """A teacher at chance is refused if there are many images, and doubted if there are few."""
    rng = np.random.default_rng(5)
    found = verdict(right_labels(rng, 10, 20, Teacher(0)))
    assert found.certain
    assert found.share == pytest.approx(found.chance, abs=0.1)
    few = verdict(right_labels(rng, 3, 4, Teacher(0)))
    assert few.fault
    assert not few.certain


def test_the_share_of_mixed_views_is_that_of_a_perfect_teacher():
    """A view that one image dominates counts as that image, so chance is 1 / C for every mix type."""
    for mix in ("none", "cutmix", "mixup"):
        found = verdict(right_labels(np.random.default_rng(6), 20, 5, Teacher(9), mix))
        assert found.share > 0.97
        assert found.chance == 1 / 20


def test_the_class_that_fits_least_is_named():
    """A class that the teacher does not know is named with its share of right answers."""
    labels = right_labels(np.random.default_rng(7), 10, 10, Teacher(6))
    targets = labels.targets

    def forget(one):
        logits = one.logits.clone()
        logits[targets[one.index] == 4, 4] -= 12
        return replace(one, logits=logits)

    found = verdict(replace(labels, batches=list(map(forget, labels.batches))))
    assert found.fault is None
    assert [number for number, _ in found.worst] == [4]
    assert found.worst[0][1] < 0.1


@pytest.mark.parametrize("seed", range(30))
def test_the_assignment_is_the_best(seed):
    """The assignment equals the best of all permutations, and scipy's for larger matrices."""
    rng = np.random.default_rng(seed)
    rows, columns = int(rng.integers(1, 6)), 6
    gain = rng.standard_normal((rows, columns)).round(int(rng.integers(0, 3)))
    best = max(gain[np.arange(rows), list(picked)].sum() for picked in permutations(range(columns), rows))
    picked = assign(gain)
    assert len(set(picked.tolist())) == rows
    assert gain[np.arange(rows), picked].sum() == pytest.approx(best)
    large = rng.standard_normal((40, 60))
    assert large[np.arange(40), assign(large)].sum() == pytest.approx(large[linear_sum_assignment(-large)].sum())


def test_circles_of_a_mapping():
    """The cycles of a permutation are found: two swapped folders, a cycle of three, an open chain."""
    own = {c: c for c in range(7)}
    found = closed({0: 1, 1: 0, 2: 3, 3: 4, 4: 2, 5: 6}, own)
    assert sorted(map(sorted, found)) == [[0, 1], [2, 3, 4]]


def test_binomial_tail():
    """The tail equals sums worked out by hand."""
    assert tail(0, 4, 0.5) == pytest.approx(1)
    assert tail(4, 4, 0.5) == pytest.approx(1 / 16)
    assert tail(3, 4, 0.5) == pytest.approx(5 / 16)
    assert tail(2, 3, 0.1) == pytest.approx(3 * 0.01 * 0.9 + 0.001)


def draw_right(rng):
    """Draw one right set of labels of any size, mix type, teacher and form; return (kind, labels)."""
    classes = int(rng.choice([2, 3, 5, 10, 20, 50, 100]))
    per_class = int(rng.choice([1, 2, 5, 10]))
    teacher = [
        Teacher(8),
        Teacher(3),
        Teacher(1.5),
        Teacher(1),
        Teacher(3, bias=1.5),
        Teacher(3, similar=2.5),
        Teacher(3, twins=2.3),
    ][rng.integers(7)]
    kind = ["plain", "mixup", "cutmix", "top-k", "4 bits", "probabilities", "more classes"][rng.integers(7)]
    mix = {"mixup": "mixup", "cutmix": "cutmix"}.get(kind) or str(rng.choice(["none", "cutmix"]))
    keep = int(rng.choice([1, 5, 10])) if kind == "top-k" else None
    more = 2 * classes if kind == "more classes" else None
    labels = right_labels(rng, classes, per_class, teacher, mix, num_classes=more, keep=keep)
    change = {"4 bits": coarse, "probabilities": as_probabilities}.get(kind)
    return f"{kind}, IPC {per_class}", change(labels) if change else labels


def draw_wrong(rng):
    """Draw one wrong set of labels by a teacher with at least 40 % top-1; return (kind, labels)."""
    classes = int(rng.choice([10, 20, 50, 100]))
    per_class = int(rng.choice([5, 10, 20]))
    teacher = [Teacher(8), Teacher(4), Teacher(3.5, bias=0.7), Teacher(4, similar=1.5)][rng.integers(4)]
    labels = right_labels(rng, classes, per_class, teacher, str(rng.choice(["none", "cutmix", "mixup"])))
    images = classes * per_class
    kind = ["swapped pair", "permuted", "half permuted", "off by one", "other seed", "other set", "subset"][
        rng.integers(7)
    ]
    if kind == "swapped pair":
        return kind, permuted(labels, swapped(classes, *rng.choice(classes, 2, replace=False)))
    if kind == "permuted":
        return kind, permuted(labels, np.roll(rng.permutation(classes), 1))
    if kind == "half permuted":
        half = rng.permutation(classes)[: classes // 2]
        order = np.arange(classes)
        order[half] = np.roll(half, 1)
        return kind, permuted(labels, order)
    if kind == "off by one":
        counts = [per_class - 1, *[per_class] * (classes - 2), per_class + 1]
        return kind, other_targets(labels, np.repeat(np.arange(classes), counts))
    if kind == "other seed":
        moved = torch.from_numpy(rng.permutation(images))
        return kind, renumbered(labels, lambda index: moved[index])
    if kind == "other set":
        return kind, other_targets(labels, rng.permutation(labels.targets.numpy()))
    # the folders are some of the teacher's classes, numbered as if they were the first
    wide = right_labels(rng, classes, per_class, teacher, "none", num_classes=5 * classes)
    return kind, permuted(wide, rng.permutation(5 * classes))


@pytest.mark.parametrize("part", range(4))
def test_random_pairings_are_judged_right(part):
    """None of 50 right sets is refused; all of 50 wrong ones are found, and at most one only gets a warning."""
    rng = np.random.default_rng(100 + part)
    right, wrong = Counter(), Counter()
    for _ in range(50):
        kind, labels = draw_right(rng)
        found = verdict(labels)
        right["refused" if found.certain else "warned" if found.fault else "passed"] += 1
        assert not found.certain, (kind, found)
        kind, labels = draw_wrong(rng)
        found = verdict(labels)
        wrong[kind, "refused" if found.certain else "warned" if found.fault else "passed"] += 1
        assert found.fault, (kind, found)
    print(part, dict(right), dict(wrong))
    assert sum(count for (_, end), count in wrong.items() if end == "warned") <= 1
