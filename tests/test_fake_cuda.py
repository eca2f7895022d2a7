"""A training step runs on "cuda" tensors without values, so that no GPU is needed, and never synchronises.

PyTorch's FakeTensorMode knows the shape and the device of every tensor. It raises if a host tensor meets a device
tensor, and if the host reads a value (`.item()`, `.tolist()`, `if tensor:`, indexing by a mask), which would be a
synchronisation on a GPU. It has no backward passes: the tests set the gradients.

A step that is captured in a CUDA graph must not copy from the host either: `HostTensorsRefused` finds such copies.
"""

from contextlib import nullcontext

import pytest
import torch
from small_network import BareStudent
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from train_FKD_parallel import evaluate, train_step
from utils.config import ENSEMBLE_RULES, LOSS_TYPES, TEMPERED_LOSSES
from utils.data.device import DeviceBatch, Gallery, mixing_of
from utils.data.replay import Normalise
from utils.labels.types import Mix, TopK
from utils.run.checkpoint import Progress, load_checkpoint, restore, save_checkpoint
from utils.system.distributed import ALONE
from utils.training import teachers
from utils.training.losses import LastMicroBatch, build_loss, soft_cross_entropy
from utils.training.metrics import Metrics, MetricSums
from utils.training.models import build_student
from utils.training.optimizer import AveragedModel, build_optimizer
from utils.training.precision import Precision
from utils.training.schedules import Temperatures

fake_tensor = pytest.importorskip("torch._subclasses.fake_tensor")
DEVICE = torch.device("cuda", 0)
CLASSES, ROWS, SIZE = 6, 8, 32
NO_RANDOM_STREAM = nullcontext()  # a `RandomStream` saves states on the host
WAITS_AND_MIXES = (fake_tensor.DataDependentOutputException, fake_tensor.DynamicOutputShapeException, RuntimeError)


def works():
    """Return whether this PyTorch supports it: the first versions of the mode need a real device in some operators."""
    try:
        with fake_tensor.FakeTensorMode():
            images = torch.zeros(2, 3, 8, 8, device=DEVICE)
            nn.functional.conv2d(images, torch.zeros(4, 3, 3, 3, device=DEVICE)).relu().sum()
            images[torch.zeros(2, dtype=torch.int64, device=DEVICE)].half()
            weight = nn.Parameter(torch.zeros(2, 2, device=DEVICE))
            weight.grad = torch.zeros_like(weight)
            torch.optim.AdamW([weight], fused=True).step()
    except Exception:
        return False
    return True


pytestmark = pytest.mark.skipif(not works(), reason="this PyTorch's FakeTensorMode needs a real CUDA device")


@pytest.fixture
def mode():
    with fake_tensor.FakeTensorMode() as mode:
        yield mode


class HostTensorsRefused(TorchDispatchMode):
    """Refuse every host tensor in an operator, even a scalar."""

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        for value in tree_flatten((args, kwargs))[0]:
            assert not isinstance(value, torch.Tensor) or value.device == DEVICE, f"{operator} takes a host tensor"
        return operator(*args, **(kwargs or {}))


def on_device(*tensors):
    for tensor in tensors:
        assert tensor.device == DEVICE
    return tensors[0]


def gallery():
    normalise = Normalise((0.5, 0.5, 0.5), (0.2, 0.2, 0.2), DEVICE)
    images = torch.zeros(20, 40, 3, 50, dtype=torch.uint8, device=DEVICE)
    targets = torch.zeros(20, dtype=torch.int64, device=DEVICE)
    return Gallery(images, torch.zeros(20, 2, dtype=torch.int64), targets, SIZE, normalise)


def answers(kind="dense"):
    if kind == "none":
        return None
    if kind == "dense":
        return torch.zeros(ROWS, CLASSES, dtype=torch.float16, device=DEVICE)
    classes = torch.zeros(ROWS, 3, dtype=torch.int64, device=DEVICE)
    return TopK(torch.zeros(ROWS, 3, device=DEVICE), classes, torch.zeros(ROWS, 2, device=DEVICE))


def a_batch(kind="dense"):
    geometry = torch.zeros(ROWS, 7, dtype=torch.int64, device=DEVICE)
    return DeviceBatch(gallery(), geometry, torch.zeros(5, device=DEVICE), answers(kind))


def a_model():
    with DEVICE:
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=4),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, CLASSES),
        )


def give_gradients(model):
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)


def without_fused(make):
    def build(groups, **settings):
        if settings.pop("fused", False):
            raise TypeError("no fused one here")
        return make(groups, **settings)

    return build


class Waits(nn.Module):
    def forward(self, x):
        return x * x.sum().item()


class Mixes(nn.Module):
    def forward(self, x):
        return x + torch.ones(3)


@pytest.mark.parametrize("wrong", [Waits(), Mixes(), lambda x: x[x > 0], lambda x: x if x.any() else -x])
def test_host_tensors_and_synchronisation_are_noticed(mode, wrong):
    """Without this check nothing below could fail."""
    with pytest.raises(WAITS_AND_MIXES):
        wrong(torch.zeros(2, 3, device=DEVICE))


@pytest.mark.parametrize(
    "wrong", [lambda x: x + torch.ones(()), lambda x: x + torch.tensor([1.0, 2, 3], device=DEVICE)]
)
def test_copies_from_the_host_are_noticed(mode, wrong):
    images = torch.zeros(2, 3, device=DEVICE)
    with pytest.raises(AssertionError, match="host tensor"), HostTensorsRefused():
        wrong(images)


@pytest.mark.parametrize("kind", ["dense", "topk", "none"])
def test_a_batch_is_replayed_on_the_device(mode, kind):
    """One replay serves every mix type, because they differ only in values, which `mixing_of` puts into a tensor."""
    batch = a_batch(kind)
    assert on_device(batch.images).shape == (ROWS, 3, SIZE, SIZE)
    assert on_device(batch.targets).shape == (ROWS,)
    parts = list(batch.split(3))
    assert [len(part) for part in parts] == [3, 3, 2]
    for part in parts:
        on_device(*(tensor for tensor in part.tensors() if tensor is not None))


def test_mixing_is_a_tensor_of_one_shape():
    """Every mix type takes the same path on the device."""
    for lam, box in ((None, None), (0.3, None), (0.3, (1, 2, 3, 4))):
        mixing = mixing_of(Mix(None, lam, box))
        assert (mixing.shape, mixing.dtype) == ((5,), torch.float32)


@pytest.mark.parametrize("kind", ["dense", "topk"])
@pytest.mark.parametrize("keep_topk", [None, 2])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_losses_do_not_wait_for_the_host(mode, loss_type, keep_topk, kind):
    outputs = a_model()(a_batch().images)
    targets = torch.zeros(ROWS, dtype=torch.int64, device=DEVICE)
    loss_fn = build_loss(loss_type, 4.0, 0.1, keep_topk)
    with HostTensorsRefused():
        assert on_device(loss_fn(outputs, answers(kind), targets)).shape == ()


@pytest.mark.parametrize("mass", ["renormalised", "kept"])
@pytest.mark.parametrize("student", ["calibrated", 0.5])
@pytest.mark.parametrize("loss_type", TEMPERED_LOSSES)
def test_losses_whose_temperatures_change(mode, loss_type, student, mass):
    """Temperatures are device tensors that are filled per epoch; calibration synchronises once, after an epoch."""
    last = LastMicroBatch(ROWS, CLASSES, DEVICE)
    temperatures = Temperatures(lambda epoch: 4.0 - epoch, student, True, last, DEVICE)
    how = temperatures.teacher, 0.1, 2, "logits", temperatures.student, mass == "renormalised", last
    loss_fn, outputs = build_loss(loss_type, *how), a_model()(a_batch().images)
    targets = torch.zeros(ROWS, dtype=torch.int64, device=DEVICE)
    with HostTensorsRefused():
        for kind in ("dense", "topk"):
            assert on_device(loss_fn(outputs, answers(kind), targets)).shape == ()
    assert temperatures.start_epoch(1, 0.3) == (3.0, 0.3 if student == "calibrated" else 0.5)
    on_device(last.outputs, last.probabilities, last.rows, last.divergences([0.5, 1.0]), temperatures.teacher)


def test_hard_epochs_and_averages(mode, monkeypatch):
    """The loss on `HardViews`' probabilities and the update of the average do not synchronise."""
    model, batch, probabilities = a_model(), a_batch(), answers().float()
    with monkeypatch.context() as patch:  # deepcopy fails on tensors without values
        patch.setattr("copy.deepcopy", lambda *_: a_model())
        average = AveragedModel(model, 0.9)
    with HostTensorsRefused():
        assert on_device(soft_cross_entropy(model(batch.images), probabilities, batch.targets)).shape == ()
        average.update()
    on_device(*average.model.state_dict().values())


@pytest.mark.parametrize("sgd", [True, False])
@pytest.mark.parametrize("kind", ["dense", "topk"])
def test_a_whole_step(mode, monkeypatch, sgd, kind):
    """A step from uploaded labels to updated weights and sums, as a CUDA graph captures it, does not synchronise."""
    model = a_model()
    if sgd:  # the fused SGD fails on tensors without values
        monkeypatch.setattr(torch.optim, "SGD", without_fused(torch.optim.SGD))
    optimizer = build_optimizer(model, sgd, 0.1, 0.01, momentum=0.9)
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: on_device(loss) is loss and give_gradients(model))
    loss_fn, precision = build_loss("kl", 4.0), Precision("fp32", DEVICE)
    student = BareStudent(model, optimizer, loss_fn, precision, 3, random=NO_RANDOM_STREAM)
    sums = student.sums
    for _ in range(2):
        batch = a_batch(kind)
        with HostTensorsRefused():
            train_step(student, batch)
        sums.end_batch()
    on_device(sums.sums, *sums.losses, *model.parameters(), *model.buffers())
    assert sums.samples == 2 * ROWS
    on_device(*(t for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)))


def test_evaluation_waits_once_a_pass(mode, monkeypatch):
    """Only `MetricSums.result` synchronises: it reads the sums of a whole pass."""
    passes = []

    def result(sums):
        passes.append(on_device(sums.sums))
        return Metrics(0.0, 0.0, 0.0, sums.samples)

    monkeypatch.setattr(MetricSums, "result", result)
    model = a_model()
    optimizer, precision = build_optimizer(model, True, 0.1, 0), Precision("fp32", DEVICE)
    student = BareStudent(model, optimizer, None, precision, ROWS, random=NO_RANDOM_STREAM)
    images, targets = torch.zeros(4, 3, SIZE, SIZE, device=DEVICE), torch.zeros(4, dtype=torch.int64, device=DEVICE)
    assert evaluate([student], [(images, targets)] * 3, ALONE)[0].samples == 12
    assert len(passes) == 1


@pytest.mark.parametrize("rule", ENSEMBLE_RULES)
@pytest.mark.parametrize("number", [1, 3])
def test_teachers_answer_without_waiting(mode, monkeypatch, rule, number):
    monkeypatch.setattr(teachers, "build_teacher", lambda *_, **__: a_model().eval().requires_grad_(False))
    ensemble = teachers.Ensemble(["resnet18"] * number, [None] * number, rule, Precision("fp32", DEVICE))
    logits = ensemble(torch.zeros(ROWS, 3, SIZE, SIZE, device=DEVICE))
    assert on_device(logits).shape == (ROWS, CLASSES)


def test_a_checkpoint_goes_to_the_device(tmp_path):
    """Weights and optimizer state of a CPU run are moved as well; the file is read on the host."""
    real = build_student("shufflenet_v2_x0_5", CLASSES, 0)
    optimizer = build_optimizer(real, False, 0.1, 0.01)
    give_gradients(real)
    optimizer.step()
    save_checkpoint(tmp_path / "c", Progress(), real, optimizer, Precision("fp32", torch.device("cpu")).scaler, {})
    state = load_checkpoint(tmp_path / "c", {})
    with fake_tensor.FakeTensorMode(allow_non_fake_inputs=True):
        with DEVICE:
            model = build_student("shufflenet_v2_x0_5", CLASSES, 0)
        optimizer = build_optimizer(model, False, 0.1, 0.01)
        restore(state, model, optimizer, Precision("fp32", DEVICE).scaler)
        on_device(*model.state_dict().values())
        on_device(*(tensor for state in optimizer.state.values() for tensor in state.values()))
        give_gradients(model)
        optimizer.step()
