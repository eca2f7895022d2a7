"""Floating-point and grey images reach the student unrounded and equal with every loader."""

import pickle

import numpy as np
import pytest
import torch
from helpers import make_images
from PIL import Image
from torchvision.transforms import functional as TF

from utils.data.device import DeviceBatches
from utils.data.folders import open_folder
from utils.data.images import Container, Member, image_size, load_image
from utils.data.replay import Normalise, replay_view
from utils.data.resident import ResidentBatches
from utils.data.validation import ValidationBatches
from utils.data.workers import ViewDataset, WorkerBatches
from utils.data.zca import Zca, fit, fitted_zca
from utils.labels.views import DrawnViews, ViewPolicy, WholeImages
from utils.system.errors import InputError

CPU = torch.device("cpu")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
N, SIDE = 12, 16


class Tensors(Container):
    """Images in a tensor [N, C, H, W], of floats or of bytes."""

    path = "tensors"
    holds_files = False

    def __init__(self, images):
        self.images = images

    def name(self, number):
        return f"{number:05d}"

    def read(self, number):
        return self.images[number].numpy().tobytes()

    def load(self, number):
        image = self.images[number]
        if image.is_floating_point():
            return image
        return Image.fromarray(image[0].numpy()) if len(image) == 1 else Image.fromarray(image.permute(1, 2, 0).numpy())


def samples_of(images):
    container = Tensors(images)
    return [(Member(container, number), number % 3) for number in range(len(images))]


def floats(channels, height=SIDE, width=SIDE):
    """Return images from about -0.5 to 1.5, which no 8-bit image can hold."""
    return torch.randn(N, channels, height, width, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.5


def policy(mix="cutmix"):
    return ViewPolicy(3, SIDE, 0.3, 1.0, mix, 0.8, 1.0)


class Shift:
    """Augmentation that adds a drawn number to all pixels of an image."""

    def draw(self, epoch, batch, rows):
        return torch.from_numpy(np.random.default_rng((7, epoch, batch)).random((rows, 1), np.float32))

    def __call__(self, images, parameters):
        return images + parameters[:, :, None, None]


def batches(kind, images, values, channels, *, augment=None, workers=0, views=None, whiten=None):
    samples = samples_of(images)
    views = views or DrawnViews(policy(), len(samples), 5, augment)
    dataset = ViewDataset(samples, views, SIDE, channels)
    mean, std = (MEAN, STD) if channels == 3 else ((0.4,), (0.2,))
    normalise = Normalise(mean, std, CPU, values=values, augment=augment, whiten=whiten)
    source = kind(dataset, range(2), normalise, workers, CPU)
    return [batch for epoch in range(2) for batch in source.epoch(epoch)]


@pytest.mark.parametrize("augment", [None, Shift()], ids=["plain", "augmented"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("values", ["bytes", "unit", "normalised"])
def test_every_loader_gives_the_same_batches(values, channels, augment):
    images = floats(channels, 20, 24)
    if values == "bytes":
        images = (images * 255).clamp(0, 255).byte()
    given = {
        kind: batches(kind, images, values, channels, augment=augment) for kind in (WorkerBatches, ResidentBatches)
    }
    given["processes"] = batches(WorkerBatches, images, values, channels, augment=augment, workers=2)
    device = batches(DeviceBatches, images, values, channels, augment=augment)
    tolerance = 1.01 / 255 / 0.2 if values == "bytes" else 1e-4
    for one in given.values():
        for batch, other, third in zip(one, given[WorkerBatches], device, strict=True):
            assert batch.images.shape == (len(batch), channels, SIDE, SIDE)
            assert torch.equal(batch.images, other.images)
            assert torch.equal(batch.targets, third.targets)
            assert (batch.images - third.images).abs().max() < tolerance


@pytest.mark.parametrize("kind", [WorkerBatches, ResidentBatches, DeviceBatches])
def test_whole_images_arrive_to_the_last_bit(kind):
    """The view of a normalised image that is neither cropped nor flipped is the image itself."""
    images = floats(3)
    views = DrawnViews(WholeImages(3, SIDE, 1.0, 1.0, "none", 0.8, 1.0, 0.0), N, N)
    (batch, *_) = batches(kind, images, "normalised", 3, views=views)
    assert torch.equal(batch.images, images[views.order(0)])


def test_augmentation_comes_between_normalising_and_mixing():
    """The parts that cutmix pastes carry the number of the image that they come from."""
    images = torch.full((N, 1, SIDE, SIDE), 0.6)  # 1 after mean 0.4 and deviation 0.2
    shift = Shift()
    (first, *_) = batches(ResidentBatches, images, "unit", 1, augment=shift)
    views = DrawnViews(policy(), N, 5, shift).read(0, 0)
    added = 1 + views.augment[:, 0]
    y1, x1, y2, x2 = views.mix.box
    for row, image in enumerate(first.images):
        torch.testing.assert_close(image[0, y1, x1], added[views.mix.partner[row]])
        outside = image.clone()
        outside[:, y1:y2, x1:x2] = added[row]
        torch.testing.assert_close(outside, added[row].expand_as(outside))


def test_floats_are_resized_as_pil_resizes_bytes():
    """Bytes as floats give PIL's values within its rounding, for smaller and for larger results."""
    image = (floats(3, 30, 40)[0] * 255).clamp(0, 255).byte()
    pil = Image.fromarray(image.permute(1, 2, 0).numpy())
    for box, size in (((2, 3, 20, 30), 16), ((0, 0, 30, 40), 50), ((5, 5, 7, 9), 7)):
        for flip in (False, True):
            found = replay_view(image.float(), box, flip, size)
            assert found.dtype == torch.float32
            assert (found - replay_view(pil, box, flip, size)).abs().max() <= 1.01


@pytest.mark.parametrize("values", ["unit", "normalised"])
def test_validation_of_floats(values):
    """The shorter side is resized and the centre cropped; values are not rounded, and kept between passes."""
    images = floats(3, 24, 32)
    normalise = Normalise(MEAN, STD, CPU, values=values)
    validation = ValidationBatches(samples_of(images), 24, normalise, 0, CPU, batch_size=5)
    centre = images[:, :, :, 4:28].clone()
    first = torch.cat([batch for batch, _ in validation])
    images.zero_()
    again = torch.cat([batch for batch, _ in validation])
    if values == "unit":
        centre = (centre - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    assert torch.allclose(first, centre, atol=1e-6)
    assert torch.equal(first, again)
    resized = ValidationBatches(samples_of(images), 16, normalise, 0, CPU, resize=18)
    assert torch.cat([batch for batch, _ in resized]).shape == (N, 3, 16, 16)


def test_channels():
    """Grey values fill three channels; coloured images are not made grey."""
    grey, coloured = samples_of(floats(1)), samples_of(floats(3))
    image = load_image(grey[0][0])
    assert image.shape == (3, SIDE, SIDE)
    assert torch.equal(image[0], image[2])
    assert load_image(grey[0][0], 1).shape == (1, SIDE, SIDE)
    with pytest.raises(InputError, match=r"tensors: 00000 cannot be decoded \(it has 3 channels, not 1\)"):
        load_image(coloured[0][0], 1)
    with pytest.raises(InputError, match="it has colours, but the first images of its set are grey"):
        load_image(samples_of(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))[0][0], 1)


def test_shown_pixels_are_those_of_the_images():
    """`visible` undoes the normalisation to the last byte."""
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(-1, -1, -1, 3)
    normalise = Normalise(MEAN, STD, CPU)
    assert torch.equal(normalise.visible(normalise(pixels)), pixels)
    unit = Normalise(MEAN, STD, CPU, values="unit")
    assert torch.equal(unit.visible(unit(pixels / 255)), pixels)


def test_members_can_be_pickled():
    member = samples_of(floats(3, 5, 7))[4][0]
    again = pickle.loads(pickle.dumps(member))
    assert (image_size(again), str(again)) == ((7, 5), "tensors: 00004")
    assert torch.equal(load_image(again), load_image(member))


def test_zca_whitens_what_it_was_fitted_on(tmp_path):
    """The covariance of whitened images has eigenvalues s / (s + 0.1); the fit is kept and read again."""
    folder = make_images(tmp_path / "real", 2, 40, (8, 8))
    real = open_folder(folder, "--zca")
    zca = fitted_zca(real, 8, 3)
    pixels = torch.stack([TF.to_tensor(load_image(image)) for image, _ in real.samples])
    white = zca(pixels).flatten(1)
    assert white.mean(dim=0).abs().max() < 1e-5
    found = torch.linalg.eigvalsh(torch.cov(white.T))
    values = torch.linalg.eigvalsh(torch.cov(pixels.flatten(1).T.double())).clamp(min=0)
    assert torch.allclose(found.double(), values / (values + 0.1), atol=1e-4)
    kept = tmp_path / "real.zca-8.safetensors"
    before = kept.stat().st_mtime_ns
    again = fitted_zca(real, 8, 3)
    assert torch.equal(again(pixels), zca(pixels))
    assert kept.stat().st_mtime_ns == before
    next(iter((tmp_path / "real").rglob("*.png"))).unlink()  # another set: the file no longer holds
    assert not torch.equal(fitted_zca(open_folder(folder, "--zca"), 8, 3).matrix, zca.matrix)
    kept.write_bytes(b"broken")
    fewer = open_folder(folder, "--zca")
    assert torch.isfinite(fitted_zca(fewer, 8, 3).matrix).all()
    with pytest.raises(InputError, match="--zca whitens 3-channel images of at most 64 px, not of --input-size 96"):
        fitted_zca(fewer, 96, 3)
    with pytest.raises(InputError, match="--zca whitens 1-channel images of at most 110 px, not of --input-size 128"):
        fitted_zca(fewer, 128, 1)


def test_the_matrix_of_many_images_is_that_of_one_sum():
    """Rows are summed in parts."""
    rows = torch.rand(2500, 12, generator=torch.Generator().manual_seed(0))
    mean, matrix = fit(rows)
    values, vectors = torch.linalg.eigh(torch.cov(rows.double().T))
    assert torch.allclose(mean, rows.mean(dim=0), atol=1e-6)
    assert torch.allclose(matrix.double(), vectors * (values + 0.1).rsqrt() @ vectors.T, atol=1e-5)


def test_whitening_replaces_mean_and_standard_deviation():
    """Images of bytes and in [0, 1] are whitened; normalised ones are left as they are."""
    pixels = torch.randint(256, (4, SIDE, SIDE, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    doubled = lambda images: 2 * images  # noqa: E731
    wanted = 2 * (pixels / 255).permute(0, 3, 1, 2)
    assert torch.allclose(Normalise(MEAN, STD, CPU, whiten=doubled)(pixels), wanted)
    assert torch.allclose(Normalise(MEAN, STD, CPU, values="unit", whiten=doubled)(pixels / 255), wanted)
    kept = Normalise(MEAN, STD, CPU, values="normalised", whiten=doubled)(pixels.float())
    assert torch.equal(kept, pixels.float().permute(0, 3, 1, 2))


@pytest.mark.parametrize("mix", ["cutmix", "mixup"])
def test_every_loader_whitens_before_it_mixes(mix):
    """ZCA is not pixelwise: an image that is whitened after cutmix differs from the mix of two whitened images."""
    size = 3 * SIDE**2
    generator = torch.Generator().manual_seed(2)
    whiten = Zca(torch.rand(size, generator=generator), torch.randn(size, size, generator=generator) / SIDE, "")
    views = DrawnViews(policy(mix=mix), N, 5)
    worker, resident, device = (
        batches(kind, floats(3), "unit", 3, views=views, whiten=whiten)
        for kind in (WorkerBatches, ResidentBatches, DeviceBatches)
    )
    for one, other, third in zip(worker, resident, device, strict=True):
        assert torch.equal(one.images, other.images)
        assert (one.images - third.images).abs().max() < 1e-3
