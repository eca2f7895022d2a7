"""Random image sets and folders that do not belong to their labels are refused, and those that do are accepted.

test_agreement.py has the same test for wrong orders that only the teacher's logits show.
"""

from collections import Counter

import numpy as np
import pytest
import torch

from utils.labels.digests import ImageDigests, find_differences
from utils.run.classes import pair_names
from utils.system.errors import InputError

WORDS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen".split()


def random_images(rng, count):
    """Return the digests of `count` different images."""
    pixels, files = torch.from_numpy(rng.integers(0, 256, (2, count, 8), dtype=np.uint8))
    return ImageDigests(pixels, files)


def draw_wrong_images(rng):
    """Draw a set and another one in its place; return (kind, before, after)."""
    classes, per_class = int(rng.integers(2, 20)), int(rng.integers(2, 10))
    images = classes * per_class
    before = random_images(rng, images)
    order = np.arange(images)
    by_class = order.reshape(classes, per_class)
    kinds = "shuffled in a class", "two folders swapped", "other sizes", "another set", "one replaced", "one lost"
    kind = (*kinds, "off by one", "one copied")[rng.integers(8)]
    after = before
    if kind == "shuffled in a class":
        row = by_class[rng.integers(classes)]
        row[:] = np.roll(row, int(rng.integers(1, per_class)))
    elif kind == "two folders swapped":
        a, b = rng.choice(classes, 2, replace=False)
        by_class[[a, b]] = by_class[[b, a]]
    elif kind in ("other sizes", "another set"):  # every pixel changes
        after = random_images(rng, images)
    elif kind == "one replaced":
        place = int(rng.integers(images))
        after = ImageDigests(before.pixels.clone(), before.files.clone())
        after.pixels[place], after.files[place] = random_images(rng, 1).pixels[0], random_images(rng, 1).files[0]
    elif kind == "one lost":
        order = np.delete(order, rng.integers(images))
    elif kind == "off by one":
        order = np.roll(order, 1)
    else:
        a, b = rng.choice(images, 2, replace=False)
        order[a] = b
    return kind, before, after.rows(order.tolist())


def draw_right_images(rng):
    """Draw a set and the same images, rewritten, decoded otherwise or renamed."""
    before = random_images(rng, int(rng.integers(1, 200)))
    kind = ("the same", "rewritten", "decoded by another library", "some of each")[rng.integers(4)]
    pixels, files = before.pixels.clone(), before.files.clone()
    other = random_images(rng, len(before))
    if kind == "rewritten":
        files = other.files
    elif kind == "decoded by another library":
        pixels = other.pixels
    elif kind == "some of each":
        some = torch.from_numpy(rng.random(len(before)) < 0.5)
        files[some], pixels[~some] = other.files[some], other.pixels[~some]
    return kind, before, ImageDigests(pixels, files)


def draw_folders(rng):
    """Draw training and validation folders; return (kind, training, validation, right pairs or None)."""
    count = int(rng.integers(2, 16))
    names = [str(name) for name in rng.choice(WORDS, count, replace=False)]
    numbered = [f"digit_{number}" for number in range(count)]
    more = [word for word in WORDS if word not in names]
    kinds = "equal names", "more to validate", "numbers", "capitals", "words for numbers", "one renamed", "one missing"
    kind = kinds[rng.integers(7)]
    train, val, right = names, list(names), {name: name for name in names}
    if kind == "more to validate":
        val = names + more[: int(rng.integers(1, 4))]
    elif kind == "numbers":
        train, val = numbered, [f"{number:03d}" for number in range(count)]
        right = dict(zip(val, train, strict=True))
    elif kind == "capitals":
        val = [name.capitalize() for name in names]
        right = {name.capitalize(): name for name in names}
    elif kind == "words for numbers":
        train, right = numbered, None
    elif kind == "one renamed":
        val[0], right = "another", None
    elif kind == "one missing":
        val, right = names[1:] + more[:1], None
    return kind, sorted(train), sorted(val), right


@pytest.mark.parametrize("part", range(4))
def test_random_image_sets_are_judged_right(part):
    """All of 50 wrong sets are found, and none of 50 right ones is refused."""
    rng = np.random.default_rng(part)
    counts = Counter()
    for _ in range(50):
        kind, before, after = draw_wrong_images(rng)
        clause = find_differences(before, after, [f"image {number}" for number in range(len(after))])
        counts[kind] += 1
        assert clause, kind
        kind, before, after = draw_right_images(rng)
        assert find_differences(before, after, []) is None, kind
    print(part, dict(counts))


@pytest.mark.parametrize("part", range(4))
def test_random_folders_are_judged_right(part):
    """In 100 pairs of folders right names give the right pairs, and others are refused."""
    rng = np.random.default_rng(part)
    for _ in range(100):
        kind, train, val, right = draw_folders(rng)
        if right is None:
            with pytest.raises(InputError):
                pair_names(val, train, None, kind)
            continue
        places, _ = pair_names(val, train, None, kind)
        found = {name: train[place] for name, place in zip(val, places, strict=True) if place is not None}
        assert found == right, kind
