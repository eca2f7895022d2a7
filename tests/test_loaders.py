"""Resident batches equal the workers' on the CPU, and on a device they differ from PIL by at most one level of 255."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import CPU
from PIL import Image
from small_network import FP32
from view_batches import SIZES, batches_of, dataset_of, normalise_on

from utils.config import IMAGENET_MEAN, IMAGENET_STD, Findings, FKDConfig
from utils.data import device, replay, resident
from utils.data.batch import LiveTeacher
from utils.data.replay import mix_images, replay_view
from utils.data.workers import WorkerBatches
from utils.labels.types import Mix
from utils.run.loading import PIL_BYTES, TrainingData, batch_class, decoded_bytes, plan_images, plan_memory
from utils.system.distributed import ALONE
from utils.system.errors import InputError

gpu = pytest.mark.gpu
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def levels(images):
    """Return normalised images as pixel values from 0 to 255."""
    std, mean = (torch.tensor(x).view(1, 3, 1, 1) for x in (IMAGENET_STD, IMAGENET_MEAN))
    return (images.cpu() * std + mean) * 255


def assert_alike(ours, theirs):
    """Assert that images differ by at most one level (mixing of two roundings included) and all else is equal."""
    assert len(ours) == len(theirs) == 6
    for a, b in zip(ours, theirs, strict=True):
        assert (levels(a.images) - levels(b.images)).abs().max() <= 1.001
        assert torch.equal(a.targets.cpu(), b.targets)
        assert (a.soft_labels is None) == (b.soft_labels is None)
        assert a.soft_labels is None or torch.equal(a.soft_labels.cpu(), b.soft_labels)


@pytest.mark.parametrize("answered", [True, False])
@pytest.mark.parametrize("mix_type", ["none", "mixup", "cutmix"])
def test_host_batches_equal_the_workers(uneven_images, mix_type, answered):
    dataset = dataset_of(uneven_images, mix_type, answered=answered)
    for ours, theirs in zip(
        batches_of(resident.ResidentBatches, dataset),
        batches_of(WorkerBatches, dataset_of(uneven_images, mix_type, answered=answered)),
        strict=True,
    ):
        assert torch.equal(ours.images, theirs.images)
        assert ours.images.stride() == theirs.images.stride()
        assert torch.equal(ours.targets, theirs.targets)
        assert (ours.soft_labels is None) if not answered else torch.equal(ours.soft_labels, theirs.soft_labels)


@pytest.mark.parametrize("size", [24, 64])
@pytest.mark.parametrize("mix_type", ["none", "mixup", "cutmix"])
def test_matrix_batches_are_alike_on_cpu_tensors(uneven_images, mix_type, size):
    for answered in (True, False):
        dataset = dataset_of(uneven_images, mix_type, size, answered)
        assert_alike(batches_of(device.DeviceBatches, dataset), batches_of(WorkerBatches, dataset))


def test_a_live_teacher_answers_device_batches(uneven_images):
    batches = device.DeviceBatches(
        dataset_of(uneven_images, "mixup", answered=False), range(1), normalise_on(CPU), 0, CPU
    )
    answered = list(LiveTeacher(batches, lambda images: images.mean(dim=(2, 3))).epoch(0))
    assert [len(batch) for batch in answered] == [3, 3, 1]
    assert all(torch.equal(batch.soft_labels, batch.images.mean(dim=(2, 3))) for batch in answered)


@gpu
@needs_cuda
@pytest.mark.parametrize("mix_type", ["none", "mixup", "cutmix"])
def test_matrix_batches_are_alike_on_cuda(uneven_images, mix_type):
    dataset = dataset_of(uneven_images, mix_type)
    ours = batches_of(device.DeviceBatches, dataset, torch.device("cuda"))
    assert ours[0].images.is_cuda
    assert_alike(ours, batches_of(WorkerBatches, dataset))


def compare_with_pil(device, dtype=None, rounds=12):
    """Return (largest difference from PIL in levels, share of unequal values) over random boxes, sizes and flips."""
    rng = np.random.default_rng(1)
    worst, unequal = 0, []
    for size in (7, 32, 96):
        for height, width in [(224, 224), (61, 97), (33, 20)]:
            pixels = rng.integers(0, 256, (rounds, height, width, 3), dtype=np.uint8)
            boxes, flips = [], rng.integers(0, 2, rounds)
            for _ in range(rounds):
                h, w = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
                boxes.append((int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w))
            wanted = torch.stack(
                [
                    replay_view(Image.fromarray(image), box, bool(flip), size)
                    for image, box, flip in zip(pixels, boxes, flips, strict=True)
                ]
            )
            images = torch.from_numpy(pixels).permute(0, 1, 3, 2).contiguous().to(device)
            geometry = torch.tensor(boxes, device=device).unbind(1)
            found = replay.resize_views(images, *geometry, torch.from_numpy(flips).to(device), size, dtype)
            difference = (found.cpu().float() - wanted).abs()
            worst = max(worst, difference.max().item())
            unequal.append((difference > 0).float().mean().item())
    return worst, np.mean(unequal)


def test_matrices_stay_within_one_level_of_pil():
    worst, unequal = compare_with_pil(CPU)
    assert worst <= 1
    assert unequal < 0.2


def test_half_precision_stays_within_one_level_of_pil():
    try:
        torch.ones(1, 2, 2).half() @ torch.ones(1, 2, 2).half()
    except RuntimeError:
        pytest.skip("this PyTorch multiplies no float16 matrices on the CPU")
    assert compare_with_pil(CPU, torch.float16, rounds=4)[0] <= 1


@gpu
@needs_cuda
def test_matrices_on_cuda_stay_within_one_level_of_pil():
    assert compare_with_pil("cuda")[0] <= 1


@pytest.mark.parametrize(
    ("lam", "box"), [(None, None), (0.3, None), (0.9, (2, 3, 7, 11)), (1.0, (0, 0, 0, 0)), (0.0, (0, 0, 12, 12))]
)
def test_mixing_by_mask_equals_mixing_by_slices(lam, box):
    images, partner = torch.randn(6, 3, 12, 12), torch.randperm(6)
    mix = Mix(partner, lam, box)
    found = replay.mix_by_mask(images, partner, device.mixing_of(mix))
    torch.testing.assert_close(found, mix_images(images, mix), rtol=0, atol=1e-6)


def plans(loader, samples, validation=()):
    """Return the `Plan` of --loader on the CPU for training on some images."""
    config = FKDConfig.parse(["--train-dir", "train", "--val-dir", "val", "--fkd-path", "labels", "--loader", loader])
    data = TrainingData(samples, validation, None, 2, [])
    return plan_memory(config, Findings(input_size=32), data, [SimpleNamespace(precision=FP32)], ALONE)


def relabels(loader, samples):
    """Return whether relabelling on the CPU keeps its images in memory."""
    return plan_images(loader, samples, Findings(), CPU, ALONE)


def have_free(monkeypatch, number):
    """Pretend that so many bytes of host memory are free."""
    for place in ("utils.system.machine.free_host_memory", "utils.run.loading.free_host_memory"):
        monkeypatch.setattr(place, lambda: number)


@pytest.mark.parametrize(
    "keeps", [lambda *how: plans(*how).resident, relabels], ids=["students learn", "teachers answer"]
)
def test_auto_keeps_what_fits_and_says_so(keeps, uneven_images, monkeypatch, program_log):
    samples = uneven_images.samples
    needed = sum(h * w for h, w in SIZES) * PIL_BYTES[3]
    have_free(monkeypatch, 2 * needed + 1)
    assert keeps("auto", samples)
    assert "loader  resident: decoded images take" in program_log.messages[-1]
    have_free(monkeypatch, 2 * needed)
    assert not keeps("auto", samples)
    assert "loader  workers: decoded images exceed half of the free host memory" in program_log.messages[-1]
    assert keeps("resident", samples)
    have_free(monkeypatch, needed)
    with pytest.raises(InputError, match=r"--loader resident.*--loader workers"):
        keeps("resident", samples)
    assert not keeps("workers", samples)
    assert "loader  workers: as --loader says" in program_log.messages[-1]


@pytest.mark.parametrize(
    ("resident", "device_type", "kind"),
    [
        (True, "cpu", resident.ResidentBatches),
        (False, "cpu", WorkerBatches),
        (True, "cuda", device.DeviceBatches),
        (False, "cuda", WorkerBatches),
    ],
)
def test_a_plan_gives_the_batches(resident, device_type, kind):
    assert batch_class(resident, torch.device(device_type)) is kind


@pytest.mark.parametrize("loader", ["workers", "resident"])
def test_validation_images_take_a_third_of_what_is_free(loader, uneven_images, monkeypatch):
    """They stay in host memory if they need less, beside the training images that are kept there."""
    validation = 3 * 32 * 32 * 5
    trained = sum(h * w for h, w in SIZES) * PIL_BYTES[3] if loader == "resident" else 0
    for free, place in ((3 * validation + 1, "host"), (3 * validation, "files")):
        have_free(monkeypatch, trained + free)
        assert plans(loader, uneven_images.samples, [("image.png", 0)] * 5).validation == place


@pytest.mark.parametrize("keeps", [plans, relabels])
def test_a_broken_image_is_named(keeps, uneven_images):
    path = uneven_images.samples[2][0]
    with open(path, "wb") as file:
        file.write(b"nothing")
    with pytest.raises(InputError, match=path):
        keeps("auto", uneven_images.samples)


def test_padded_estimate_on_a_device(uneven_images):
    cuda = torch.device("cuda")
    assert decoded_bytes(uneven_images.samples, Findings(), cuda, 10**9) == 3 * len(SIZES) * 90 * 90
    assert decoded_bytes(uneven_images.samples, Findings(), cuda, 100) < 3 * len(SIZES) * 90 * 90  # stops counting
