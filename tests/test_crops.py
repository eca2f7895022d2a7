"""Crops of a whole batch equal those computed row by row, and those of earlier releases, to the pixel."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.data.device import geometry_of
from utils.labels.types import BatchLabels, Mix
from utils.labels.views import CROP_DRAWS, DrawnViews, ViewPolicy, fractions


def policy_of(low=0.08, high=1.0):
    """Return a policy for 32 px views with cutmix."""
    return ViewPolicy(3, 32, low, high, "cutmix", 0.8, 1.0)


def one_by_one(batches, sizes):
    """Return the crop that `view` gives for every row."""
    slots = [(one, slot) for one in batches for slot in range(len(one))]
    views = [one.view(slot, size) for (one, slot), size in zip(slots, sizes.tolist(), strict=True)]
    return [[*box, flip] for box, flip in views]


def crop_of_release_1(policy, draws, image_size):
    """One drawn crop as earlier releases computed it, in Python's own arithmetic; drawn stores rely on it."""
    height, width = image_size
    flip = bool(draws[2] < policy.hflip)
    for u_area, u_ratio in zip(draws[3::2], draws[4::2], strict=True):
        area = height * width * (policy.min_scale + (policy.max_scale - policy.min_scale) * u_area)
        aspect = (3 / 4) ** (1 - 2 * u_ratio)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return [int(draws[0] * (height - h + 1)), int(draws[1] * (width - w + 1)), h, w, flip]
    w = min(width, max(1, round(height * 4 / 3)))
    h = min(height, max(1, round(width * 4 / 3)))
    return [(height - h) // 2, (width - w) // 2, h, w, flip]


def pixels_of_release_1(start, length, size):
    """One axis of a stored crop as earlier releases computed it."""
    first = min(round(start * size), size - 1)
    last = min(round(start * size + length * size), size)
    return first, max(last - first, 1)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**31), side=st.integers(1, 300), low=st.floats(0.01, 1.0))
def test_drawn_crops_equal_those_of_single_rows(seed, side, low):
    """Images are as small as one pixel, where often no attempt fits; sides of exactly half a pixel are frequent."""
    rng = np.random.default_rng(seed)
    draws, sizes = rng.random((40, CROP_DRAWS)), rng.integers(1, side + 1, (40, 2))
    draws[:20] = np.floor(draws[:20] * 8) / 8
    policy = policy_of(low)
    crops = policy.crops(draws, sizes)
    rows = zip(draws, sizes.tolist(), strict=True)
    assert crops.tolist() == [crop_of_release_1(policy, one, size) for one, size in rows]
    alone = [policy.crops(draws[row : row + 1], sizes[row : row + 1]) for row in range(40)]
    assert np.array_equal(np.concatenate(alone), crops)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_stored_crops_equal_those_of_single_rows(dtype):
    """The fractions include halves of pixels and the edges."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 400, (3000, 2), generator=generator)
    start = torch.rand(3000, 2, generator=generator)
    start[:500] = (start[:500] * 8).floor() / 8  # halves of even sizes
    length = (1 - start) * torch.rand(3000, 2, generator=generator)
    coords = torch.cat([start, length], dim=1).to(dtype)
    flip = torch.rand(3000, generator=generator) < 0.5
    labels = BatchLabels(coords, flip, Mix(), torch.zeros(3000, 2))
    expected = []
    for (top, left, height, width), (rows, columns) in zip(coords.tolist(), sizes.tolist(), strict=True):
        down, across = pixels_of_release_1(top, height, rows), pixels_of_release_1(left, width, columns)
        expected.append([down[0], across[0], down[1], across[1]])
    crops = labels.crops(sizes.numpy())
    assert crops[:, :4].tolist() == expected
    assert crops[:, 4].tolist() == flip.tolist()
    assert one_by_one([labels], sizes) == crops.tolist()


@pytest.mark.parametrize("mix_type", ["none", "cutmix"])
def test_crop_parameters_of_an_epoch(mix_type):
    """Image, crop, flip and mix partner of every row are right, also in the short last batch."""
    views = DrawnViews(ViewPolicy(3, 32, 0.08, 1.0, mix_type, 0.8, 1.0), 23, 5)
    sizes = torch.randint(20, 60, (23, 2), generator=torch.Generator().manual_seed(1))
    batches = [views.read(1, batch) for batch in range(5)]
    geometry = geometry_of(batches, sizes)
    index = torch.cat([one.index for one in batches])
    partners = [one.mix.partner if mix_type == "cutmix" else torch.arange(len(one.index)) for one in batches]
    assert torch.equal(geometry[:, 0], index)
    assert geometry[:, 1:6].tolist() == one_by_one(batches, sizes[index])
    assert torch.equal(geometry[:, 6], torch.cat(partners))


def test_labelled_views_have_the_fractions_of_their_crops():
    drawn = DrawnViews(policy_of(), 11, 11).read(0, 0)
    sizes = torch.randint(5, 500, (11, 2), generator=torch.Generator().manual_seed(1)).tolist()
    labels = drawn.labelled(torch.zeros(11, 2), sizes)
    views = [drawn.view(slot, size) for slot, size in enumerate(sizes)]
    assert torch.equal(
        labels.coords, torch.stack([fractions(box, size) for (box, _), size in zip(views, sizes, strict=True)])
    )
    assert labels.flip.tolist() == [flip for _, flip in views]


@pytest.mark.parametrize(
    ("mix", "kind", "share"),
    [
        (Mix(), "none", 1.0),
        (Mix(torch.arange(2), 0.3), "mixup", 0.3),
        (Mix(torch.arange(2), 0.3, (0, 2, 4, 6)), "cutmix", 0.75),
    ],
)
def test_a_mix_knows_its_type_and_its_share(mix, kind, share):
    """A cutmix box decides the share, not the ratio that it was drawn for."""
    assert (mix.type, mix.own_share(8)) == (kind, share)
