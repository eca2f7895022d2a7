"""The plan for a device follows its free memory, and labels in parts give the same batches."""

from copy import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers import CPU, LIGHT, SIDE, make_images, read_run, run
from small_network import BareStudent, small_model
from view_batches import batches_of, dataset_of, normalise_on

import train_FKD_parallel
import train_KD_parallel
from utils.config import Findings, FKDConfig
from utils.data.augment import Dsa
from utils.data.device import DeviceBatches
from utils.data.workers import WorkerBatches
from utils.data.zca import Zca
from utils.labels.training_views import TrainingViews
from utils.labels.views import DrawnViews, ViewPolicy
from utils.run import loading
from utils.run.loading import Budget, Plan, TrainingData, plan_memory, plan_on_device
from utils.system.distributed import ALONE
from utils.system.errors import InputError
from utils.training.memory_estimate import MemoryEstimate, saved_activation_bytes
from utils.training.models import build_student
from utils.training.precision import Precision

GB = 10**9
IMAGENET = Budget(images=1.5 * GB, labels=0.02 * GB, validation=7.5 * GB, training=1 * GB, free=140 * GB)


def at(free, **changed):
    return Budget(**(vars(IMAGENET) | {"free": free * GB} | changed))


@pytest.fixture
def planned(monkeypatch):
    """Return a function: (`Budget`, batches per epoch, --loader) -> the `Plan` of a run that takes so much."""

    def plan(budget, batches_per_epoch, loader):
        monkeypatch.setattr(loading, "Budget", lambda **_: budget)  # such a run is too large for a test
        words = [
            "--train-dir",
            "train",
            "--val-dir",
            "val",
            "--fkd-path",
            "labels",
            "--batch-size",
            "1",
            "--loader",
            loader,
        ]
        views = DrawnViews(ViewPolicy(42, 8, 0.08, 1.0, "none", 0.8, 1.0), batches_per_epoch, 1)
        data = TrainingData([], [], TrainingViews(views), 6, [])
        student = BareStudent(small_model(), None, None)
        return plan_on_device(FKDConfig.parse(words), Findings(input_size=8), data, [student], ALONE)

    return plan


@pytest.fixture
def pretended_gpu(monkeypatch):
    """Return a function that has runs on CPU tensors planned for, and fed as on, a GPU with so many free bytes."""

    def plan(config, found, data, students, world):
        gpu = SimpleNamespace(type="cuda")
        pretended = []
        for student in students:
            pretended.append(copy(student))
            pretended[-1].precision = SimpleNamespace(device=gpu, real=student.precision)
        return plan_memory(config, found, data, pretended, world)

    def estimate(model, input_size, precision, in_channels):
        return MemoryEstimate(model, input_size, precision.real, in_channels)

    def pretend(free):
        for script in (train_FKD_parallel, train_KD_parallel):
            monkeypatch.setattr(script, "plan_memory", plan)
        monkeypatch.setattr(loading, "MemoryEstimate", estimate)
        monkeypatch.setattr(loading, "free_memory", lambda device: (free, "device"))
        kinds = {True: DeviceBatches, False: WorkerBatches}
        monkeypatch.setattr(loading, "batch_class", lambda resident, device: kinds[resident])

    return pretend


def test_all_fits_on_a_large_device():
    assert at(140).plan(200) == Plan(True, 200, "device")


@pytest.mark.parametrize(
    ("free", "resident", "in_parts", "validation"),
    [
        (12, True, False, "device"),
        (11.15, True, True, "device"),
        (8, True, False, "host"),
        (2, False, False, "host"),
    ],
)
def test_labels_give_way_before_validation_and_images(free, resident, in_parts, validation):
    """First labels are uploaded in parts, then validation stays on the host, then workers decode the images."""
    found = at(free).plan(200)
    assert (found.resident, found.labels_at_once < 200, found.validation) == (resident, in_parts, validation)


@pytest.mark.parametrize("free", [3, 4, 6, 8, 11, 12, 24, 80])
@pytest.mark.parametrize("labels", [0.001, 0.02, 4.4])
def test_a_plan_fits(free, labels):  # GB
    one = at(free, labels=labels * GB)
    plan = one.plan(4180)
    parts = loading.IN_FLIGHT * one.labels * plan.labels_at_once / 4180
    taken = one.training + plan.resident * (one.images + parts)
    on_device = plan.validation == "device"
    if plan.resident or on_device:
        assert taken + on_device * one.validation <= loading.USABLE * one.free + 1


@pytest.mark.parametrize(
    ("side", "expected"), [(64, "they are uploaded in parts of"), (224, "workers decode them in every epoch")]
)
def test_imagenet_21k_on_24_gb(side, expected, planned, program_log):
    """209,000 images, 10,450 classes: 4.4 GB of labels per epoch, 31 GB of images at 224 px, 2.6 GB at 64 px."""
    images, validation = 209_000 * 3 * side**2, 522_500 * 3 * side**2
    plan = planned(Budget(images, 209_000 * 10_450 * 2, validation, 2 * GB, 24 * GB), 4180, "auto")
    assert expected in program_log.text
    assert plan.resident == (side == 64)
    assert "4.37 GB an epoch" in program_log.text


def test_parts_are_no_larger_than_a_gigabyte():
    """The limit holds however much memory is free, because the parts are pinned on the host."""
    assert at(140, labels=4 * GB).plan(4180) == Plan(True, 1045, "device")


def test_resident_as_asked(planned, program_log):
    """--loader resident is obeyed if images fit, but not beside the estimated memory of training."""
    assert planned(at(2), 200, "resident") == Plan(True, 1, "host")
    assert "because --loader resident was given" in program_log.text
    assert not planned(at(2), 200, "auto").resident


def test_resident_that_does_not_fit(planned, program_log):
    """Without room for the images alone, --loader resident is refused, and auto leaves them to workers."""
    with pytest.raises(InputError, match=r"--loader resident needs more than the .* free in device memory"):
        planned(at(1.4), 200, "resident")
    assert "was given" not in program_log.text
    assert planned(at(1.4), 200, "auto") == Plan(False, 200, "host")


def test_labels_in_parts_are_the_same_batches(uneven_images):
    """Parts have one batch, two of three batches, or whole epochs."""
    dataset = dataset_of(uneven_images, "cutmix")
    whole = batches_of(DeviceBatches, dataset)
    for at_once in (1, 2):
        batches = DeviceBatches(dataset, range(2), normalise_on(CPU), 0, CPU, at_once)
        parts = [batch for epoch in range(2) for batch in batches.epoch(epoch)]
        assert len(parts) == len(whole) == 6
        for a, b in zip(parts, whole, strict=True):
            assert torch.equal(a.images, b.images)
            assert torch.equal(a.soft_labels, b.soft_labels)
    resumed = DeviceBatches(dataset, range(1, 2), normalise_on(CPU), 0, CPU, 1)
    assert all(torch.equal(a.images, b.images) for a, b in zip(resumed.epoch(1, 2), whole[5:], strict=True))


def test_saved_activations_are_counted():
    """A convolution saves its input, ReLU its output, a linear layer its input; weights do not count."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(256, 2))
    precision = Precision("fp32", CPU)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert saved_activation_bytes(model, 2, 8, precision) == 4 * 2 * 64 * (3 + 4)
    weights = 4 * (3 * 4 + 4 + 512 + 2)
    assert (
        MemoryEstimate(model, 8, precision).training_bytes(10, 5)
        == 4 * weights + 1.5 * 5 * 4 * 64 * 7 + 4 * 3 * 4 * 10 * 64
    )
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_weights_in_bf16_are_kept_once_whatever_the_rows():
    """Matrix products in bf16 save their rows; the second one also saves a copy of its weight, two bytes per value."""
    first, second = torch.nn.Linear(192, 100, bias=False), torch.nn.Linear(100, 500, bias=False)
    model, precision = torch.nn.Sequential(torch.nn.Flatten(), first, second), Precision("bf16", CPU)
    assert saved_activation_bytes(model, 2, 8, precision) == 2 * (2 * (192 + 100) + 100 * 500)
    kept = 2 * (1024 * (192 + 100) + 100 * 500)
    assert MemoryEstimate(model, 8, precision).training_bytes(0, 1024) == 4 * 4 * (192 * 100 + 100 * 500) + 1.5 * kept


def test_memory_of_an_evaluation():
    """It is three outputs of the largest layer, here the convolution, plus the views."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.Flatten(), torch.nn.Linear(256, 2))
    assert MemoryEstimate(model, 8, Precision("fp32", CPU)).evaluation_bytes(512) == 512 * (
        3 * 4 * 4 * 64 + 4 * 3 * 4 * 64
    )
    assert model.training
    assert not model[0]._forward_hooks


def test_the_probe_leaves_the_random_state(tiny):
    model = build_student(LIGHT, 3, 0)
    state = torch.get_rng_state()
    assert saved_activation_bytes(model, 2, SIDE, Precision("fp32", CPU)) > 10**5
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("free", "at_once"), [(10**9, 3), (3 * 10**6, 1)])
def test_a_run_follows_its_plan(tiny, tmp_path, monkeypatch, pretended_gpu, free, at_once):
    """A whole run on CPU tensors is planned as if they were a device's, with a pretended amount of free memory."""
    pretended_gpu(free)
    plans, real_plan = [], Budget.plan

    def plan(budget, *how, **more):
        plans.append(real_plan(replace(budget, labels=10**6, training=10**6), *how, **more))
        return plans[-1]

    monkeypatch.setattr(Budget, "plan", plan)
    made, real = [], DeviceBatches.upload

    def upload(batches, epoch, numbers):
        made.append(len(numbers))
        return real(batches, epoch, numbers)

    monkeypatch.setattr(DeviceBatches, "upload", upload)
    done = tiny.train_run(tmp_path / "run")
    assert plans == [Plan(True, at_once, "device")]
    assert set(made) == {at_once}
    assert done.summary["epochs_done"] == 3


def test_parameters_of_the_augmentation_are_counted_as_labels():
    """DSA uploads 17 numbers per view: a flag for each of six operations, and eleven parameters."""
    policy = ViewPolicy(42, SIDE, 0.08, 1.0, "none", 0.8, 1.0)
    plain, augmented = DrawnViews(policy, 10, 5), DrawnViews(policy, 10, 5, Dsa(0, SIDE))
    taken = [loading.label_bytes(TrainingViews(source), 0) for source in (plain, augmented)]
    assert taken == [10 * loading.GEOMETRY_BYTES, 10 * (loading.GEOMETRY_BYTES + 17 * 4)]


def test_zca_is_copied_to_the_device_once(tiny, tmp_path, monkeypatch, pretended_gpu):
    """The matrix is copied before the memory is planned, so that the free memory is known without it."""
    pretended_gpu(10**9)
    events, move, free_memory = [], Zca.to, loading.free_memory
    monkeypatch.setattr(Zca, "to", lambda *args: events.append("copied") or move(*args))
    monkeypatch.setattr(loading, "free_memory", lambda device: events.append("planned") or free_memory(device))
    real = make_images(tmp_path / "real", size=(16, 16))
    flags = tiny.flags(tmp_path / "run", fkd_path=None, loss_type="ce", zca=real, input_size=16, epochs=1)
    result = run(train_KD_parallel, *flags)
    assert result.code == 0, result.err
    assert events[:2] == ["copied", "planned"]
    assert events.count("copied") == 1


def test_a_plan_says_workers(tiny, tmp_path, pretended_gpu):
    pretended_gpu(10**4)
    result = run(train_FKD_parallel, *tiny.flags(tmp_path / "run", epochs=1))
    assert result.code == 0, result.err
    assert "memory  of 10 kB free on the device" in result.out
    assert "loader  workers: decoded images do not fit beside the training; 0 processes (-j)" in result.out
    assert "validation images do not fit" in result.out


@pytest.mark.parametrize(
    ("free", "loader", "expected"),
    [
        (10**4, "auto", "loader  workers: decoded images do not fit beside the training; 0 processes (-j)"),
        (10**4, "workers", "loader  workers: as --loader says; 0 processes (-j)"),
        (10**9, "auto", "loader  resident: decoded images stay on the device"),
        (10**9, "workers", "loader  workers: as --loader says; 0 processes (-j)"),
    ],
)
@pytest.mark.parametrize("script", [train_FKD_parallel, train_KD_parallel], ids=lambda script: script.__name__)
def test_a_dry_run_names_the_loader_that_the_run_takes(script, free, loader, expected, tiny, tmp_path, pretended_gpu):
    """Both make the same plan for the device and log the same lines."""
    pretended_gpu(free)
    flags = tiny.flags(tmp_path / "run", epochs=1, loader=loader)
    if script is train_KD_parallel:
        flags = tiny.flags(tmp_path / "run", epochs=1, loader=loader, fkd_path=None, loss_type="ce")
    said = []
    for more in (["--dry-run"], ["--overwrite"]):
        result = run(script, *flags, *more)
        assert result.code == 0, result.err
        said.append([line for line in result.out.splitlines() if line.startswith(("memory  ", "loader  "))])
    assert said[0][-1] == said[1][-1] == expected
    assert said[0] == said[1]


def test_a_run_stopped_after_its_last_epoch_is_finished(tiny, tmp_path, pretended_gpu):
    """No labels are left to be planned for: the process ended before it wrote summary.json."""
    pretended_gpu(10**9)
    done = tiny.train_run(tmp_path / "run")
    (done.path / "summary.json").unlink()
    result = run(train_FKD_parallel, *tiny.flags(tmp_path / "run"), "--resume")
    assert result.code == 0, result.err
    assert read_run(tmp_path / "run").summary["last"] == done.summary["last"]
