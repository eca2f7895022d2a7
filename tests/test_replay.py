"""Views are drawn as stated and replayed like torchvision's, for any image size."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from utils.config import IMAGENET_MEAN, IMAGENET_STD
from utils.data.replay import Normalise, mix_images, replay_view
from utils.labels.types import BatchLabels, Mix
from utils.labels.views import CROP_DRAWS, ViewPolicy, random_box

sides = st.integers(1, 600)


def crop_of(policy, draws, image_size):
    """((top, left, height, width), flip) of one row of uniform numbers."""
    *box, flip = policy.crops(draws[None], np.array([image_size]))[0].tolist()
    return tuple(box), bool(flip)


draws = st.lists(st.floats(0, 1, exclude_max=True), min_size=CROP_DRAWS, max_size=CROP_DRAWS).map(np.array)


def policy(mix_type="none", seed=0, min_scale=0.08, max_scale=1.0):
    """Return a policy for views of 32 px."""
    return ViewPolicy(seed, 32, min_scale, max_scale, mix_type, 0.8, 1.0)


def photo(height=48, width=64):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("box", [(0, 0, 48, 64), (5, 7, 20, 31), (40, 60, 1, 1), (3, 0, 45, 9)])
@pytest.mark.parametrize("size", [16, 32, 80])
def test_replay_is_torchvisions_resized_crop(box, size, flip):
    """Views are bit-identical, both shrunk and enlarged."""
    expected = TF.resized_crop(photo(), *box, [size, size], InterpolationMode.BILINEAR)
    expected = TF.hflip(expected) if flip else expected
    assert torch.equal(replay_view(photo(), box, flip, size).permute(2, 0, 1), TF.pil_to_tensor(expected))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_normalise_is_torchvisions(memory_format):
    """uint8 pixels become ImageNet-normalised floats in the wanted layout; the input does not change."""
    views = torch.from_numpy(np.array(photo()))[None]
    before = views.clone()
    images = Normalise(IMAGENET_MEAN, IMAGENET_STD, "cpu", memory_format)(views)
    expected = TF.normalize(TF.to_tensor(photo()), IMAGENET_MEAN, IMAGENET_STD)
    torch.testing.assert_close(images[0], expected, rtol=0, atol=1e-6)
    assert images.is_contiguous(memory_format=memory_format)
    assert torch.equal(views, before)


@settings(max_examples=200)
@given(draws, sides, sides, st.floats(0.01, 1), st.floats(0.01, 1))
def test_crops_lie_inside_the_image(draws, height, width, scale, other):
    """Every draw gives a crop inside the image, and the same draw gives the same crop."""
    drawer = policy(min_scale=min(scale, other), max_scale=max(scale, other))
    (top, left, h, w), flip = crop_of(drawer, draws, (height, width))
    assert 0 <= top <= top + h <= height
    assert 0 <= left <= left + w <= width
    assert h >= 1 <= w
    assert ((top, left, h, w), flip) == crop_of(drawer, draws.copy(), (height, width))


def test_crops_follow_the_stated_distribution():
    """On a large square image the area is uniform, the log ratio is centred, and half of the views are flipped."""
    drawer = policy(min_scale=0.2, max_scale=0.5)
    crops = [crop_of(drawer, row, (1000, 1000)) for row in drawer.draw_crops(0, 0, 4000)]
    area = np.array([h * w for (_, _, h, w), _ in crops]) / 1e6
    ratio = np.log([w / h for (_, _, h, w), _ in crops])
    assert 0.198 < area.min() < 0.21 < 0.49 < area.max() < 0.502
    assert area.mean() == pytest.approx(0.35, abs=0.01)
    assert ratio.mean() == pytest.approx(0, abs=0.02)
    assert np.abs(ratio).max() == pytest.approx(np.log(4 / 3), abs=0.01)
    assert np.mean([flip for _, flip in crops]) == pytest.approx(0.5, abs=0.04)
    free = np.array([(top / (1000 - h), left / (1000 - w)) for (top, left, h, w), _ in crops])
    assert free.mean(axis=0) == pytest.approx([0.5, 0.5], abs=0.03)


def test_an_image_too_long_for_any_crop_gets_the_central_one():
    """RandomResizedCrop falls back to a central crop of an allowed ratio."""
    box, _ = crop_of(policy(min_scale=1.0), np.full(CROP_DRAWS, 0.5), (10, 1000))
    assert box == (0, (1000 - 13) // 2, 10, 13)


@given(st.integers(0, 2**32), st.integers(1, 300), st.floats(0, 1))
def test_boxes_lie_inside_the_view(seed, size, lam):
    """Rows and columns are ordered, and the box is no larger than the drawn share."""
    y1, x1, y2, x2 = random_box(np.random.default_rng(seed), size, lam)
    assert 0 <= y1 <= y2 <= size
    assert 0 <= x1 <= x2 <= size
    assert (y2 - y1) * (x2 - x1) <= (1 - lam) * size**2 + 1e-6


@pytest.mark.parametrize("mix_type", ["none", "mixup", "cutmix"])
def test_draws_are_a_function_of_seed_epoch_and_batch(mix_type):
    """The same arguments give the same draw; each other argument gives another."""

    def drawn(seed, epoch, batch):
        drawer = policy(mix_type, seed)
        mix_index, *rest = drawer.draw_mix(epoch, batch, 8)
        return drawer.draw_crops(epoch, batch, 8).tolist(), None if mix_index is None else mix_index.tolist(), rest

    first = drawn(3, 1, 2)
    assert first == drawn(3, 1, 2)
    for other in ((4, 1, 2), (3, 2, 2), (3, 1, 3), (3, 2, 1)):
        assert first[0] != drawn(*other)[0]
        assert mix_type == "none" or first[1:] != drawn(*other)[1:]


def test_each_mix_type_draws_its_parameters():
    """A permutation of the rows and a ratio in [0, 1], and for cutmix a box."""
    assert policy("none").draw_mix(0, 0, 6) == Mix()
    for mix_type in ("mixup", "cutmix"):
        mix_index, mix_lam, mix_bbox = policy(mix_type).draw_mix(0, 0, 6)
        assert sorted(mix_index.tolist()) == list(range(6))
        assert 0 <= mix_lam <= 1
        assert (mix_bbox is not None) == (mix_type == "cutmix")


def test_mix():
    """cutmix pastes rows y1:y2 and columns x1:x2 of the partner; mixup averages; none returns the images."""
    images = torch.rand(4, 3, 8, 8)
    mix_index = torch.tensor([1, 2, 3, 0])
    assert mix_images(images, Mix()) is images
    torch.testing.assert_close(mix_images(images, Mix(mix_index, 0.3)), 0.3 * images + 0.7 * images[mix_index])

    before, expected = images.clone(), images.clone()
    for row in range(4):
        for y in range(1, 3):
            for x in range(4, 8):
                expected[row, :, y, x] = images[mix_index[row], :, y, x]
    assert torch.equal(mix_images(images, Mix(mix_index, 0.3, (1, 4, 3, 8))), expected)
    assert torch.equal(images, before)
    assert torch.equal(mix_images(images, Mix(mix_index, 0.3, (2, 5, 2, 5))), images)  # an empty box


@settings(max_examples=200)
@given(draws, sides, sides)
def test_stored_fractions_are_the_same_pixels(draws, height, width):
    """A crop stored as float32 fractions gives the same pixels again."""
    box, flip = crop_of(policy(), draws, (height, width))
    coords = torch.tensor([[box[0] / height, box[1] / width, box[2] / height, box[3] / width]])
    labels = BatchLabels(coords, torch.tensor([flip]), Mix(), torch.zeros(1, 2))
    assert labels.view(0, (height, width)) == (box, flip)
