"""Crops computed for a whole epoch equal those computed row by row, to the pixel."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.labels import view_policy
from utils.labels.batch import BatchLabels
from utils.labels.crops import crops_of
from utils.labels.drawn import DrawnViews
from utils.labels.view_policy import CROP_DRAWS, ViewPolicy, fractions
from utils.views.device import geometry_of


def policy_of(low=0.08, high=1.0):
    """Return a policy for 32 px views with cutmix."""
    return ViewPolicy(3, 32, low, high, "cutmix", 0.8, 1.0)


def one_by_one(batches, sizes):
    """Return the crop that `view` gives for every row."""
    slots = [(one, slot) for one in batches for slot in range(len(one.index))]
    views = [one.view(slot, size) for (one, slot), size in zip(slots, sizes.tolist(), strict=True)]
    return torch.tensor([[*box, flip] for box, flip in views])


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**31), side=st.integers(1, 300), low=st.floats(0.01, 1.0))
def test_drawn_crops_equal_those_of_single_rows(seed, side, low):
    """Images are as small as one pixel, where often no attempt fits."""
    rng = np.random.default_rng(seed)
    draws, sizes = rng.random((40, CROP_DRAWS)), rng.integers(1, side + 1, (40, 2))
    rows = [policy_of(low).crop_from(one, size) for one, size in zip(draws, sizes.tolist(), strict=True)]
    assert policy_of(low).crops_from(draws, sizes).tolist() == [[*box, flip] for box, flip in rows]


def test_a_power_that_differs_in_its_last_bits_changes_no_crop(monkeypatch):
    """Sides of exactly one half are the worst case: 1.5 x 1.5 rounds to 2, and to 1 after an error of 1e-13."""
    draws = np.full((1, CROP_DRAWS), 0.5)
    sizes = np.array([[3, 3]])
    exact = policy_of(0.25, 0.25)
    box, _ = exact.crop_from(draws[0], (3, 3))
    assert box[2:] == (2, 2)
    real = np.sqrt
    monkeypatch.setattr(np, "sqrt", lambda x: real(x) * (1 - 1e-13))  # another library of mathematics
    assert exact.crops_from(draws, sizes)[0, 2:4].tolist() == [2, 2]
    monkeypatch.setattr(view_policy, "TOO_CLOSE", 0.0)  # without the margin the error shows
    assert exact.crops_from(draws, sizes)[0, 2:4].tolist() == [1, 1]  # so the fallback for one row was used


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
    index = torch.arange(3000)
    batches = [
        BatchLabels(coords[rows], flip[rows], None, None, None, torch.zeros(len(rows), 2), rows)
        for rows in index.split(700)
    ]
    assert torch.equal(crops_of(batches, sizes), one_by_one(batches, sizes))


@pytest.mark.parametrize("mix_type", ["none", "cutmix"])
def test_crop_parameters_of_an_epoch(mix_type):
    """Image, crop, flip and mix partner of every row are right, also in the short last batch."""
    views = DrawnViews(ViewPolicy(3, 32, 0.08, 1.0, mix_type, 0.8, 1.0), 23, 5)
    sizes = torch.randint(20, 60, (23, 2), generator=torch.Generator().manual_seed(1))
    batches = [views.read(1, batch) for batch in range(5)]
    geometry = geometry_of(batches, sizes)
    index = torch.cat([one.index for one in batches])
    partners = [one.mix_index if mix_type == "cutmix" else torch.arange(len(one.index)) for one in batches]
    assert torch.equal(geometry[:, 0], index)
    assert torch.equal(geometry[:, 1:6], one_by_one(batches, sizes[index]))
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


def test_rows_are_not_cropped_in_python(monkeypatch):
    """Hardly any of 20,000 rows is cropped on its own."""
    asked = []
    # counts the rows that take the slow path
    monkeypatch.setattr(ViewPolicy, "crop_from", lambda self, draws, size: asked.append(1) or ((0, 0, 1, 1), False))
    batches = [DrawnViews(policy_of(), 20000, 5000).read(0, batch) for batch in range(4)]
    crops_of(batches, torch.full((20000, 2), 224))
    assert len(asked) < 20
