"""A training step takes the mean over its micro-batches, decays the right weights, and keeps its precision."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import CPU, ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from small_network import FP32, BareStudent, train_epoch
from torch import nn

from train_FKD_parallel import evaluate, train_step
from utils.data.batch import Batch
from utils.system.distributed import ALONE, World
from utils.system.errors import InputError
from utils.training.losses import LOSS_TYPES, SoftLoss, build_loss
from utils.training.metrics import MetricSums
from utils.training.models import build_student
from utils.training.optimizer import build_optimizer
from utils.training.precision import Precision, pick_device, without_cudnn_benchmark


class NoStep:
    """Stands in for an optimizer that leaves the gradients unchanged."""

    def __init__(self, model):
        self.model = model

    def zero_grad(self, set_to_none):
        self.model.zero_grad(set_to_none=set_to_none)

    def step(self):
        pass


def random_batch(rows, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(rows, 3, 4, 4, generator=generator)
    return Batch(images, torch.randn(rows, classes, generator=generator), torch.arange(rows) % classes)


@pytest.mark.parametrize("loss_type", sorted(set(LOSS_TYPES) - {"dist"}))  # dist correlates over the micro-batch
@pytest.mark.parametrize(("rows", "micro"), [(8, 4), (8, 2), (8, 8), (7, 4), (3, 2), (1, 4)])
def test_accumulation_is_one_true_mean(loss_type, rows, micro):
    """Gradients and loss of a split batch equal those of the whole one, also if the last part is short."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 4))
    loss_fn = build_loss(loss_type, 2.0, 0.1, keep_topk=3)
    batch = random_batch(rows)
    model.zero_grad()
    expected_loss = loss_fn(model(batch.images), batch.soft_labels, batch.targets)
    expected = torch.autograd.grad(expected_loss, list(model.parameters()))

    student = BareStudent(model, NoStep(model), loss_fn, micro_batch=micro)
    train_step(student, batch)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)
    assert student.sums.result().samples == rows
    assert student.sums.result().loss == pytest.approx(expected_loss.item(), rel=1e-5)


@settings(deadline=None)
@given(st.integers(1, 50), st.integers(1, 60), st.booleans())
def test_split_loses_and_repeats_nothing(rows, size, labelled):
    """Micro-batches together are the batch, in order, none larger than the limit."""
    numbers = torch.arange(rows)
    batch = Batch(numbers.view(rows, 1), numbers.view(rows, 1) if labelled else None, numbers)
    pieces = list(batch.split(size))
    assert all(0 < len(piece) <= size for piece in pieces)
    assert torch.equal(torch.cat([piece.targets for piece in pieces]), numbers)
    assert torch.equal(torch.cat([piece.images for piece in pieces])[:, 0], numbers)
    for piece in pieces:
        assert piece.soft_labels is None if not labelled else torch.equal(piece.soft_labels, piece.images)


@pytest.mark.parametrize("sgd", [True, False])
def test_weight_decay_groups(sgd):
    """Only weights of convolutions and linear layers decay; every parameter is in one group."""
    model = build_student("resnet18", 5, 0)
    optimizer = build_optimizer(model, sgd, lr=0.1, weight_decay=0.5, momentum=0.9)
    assert isinstance(optimizer, torch.optim.SGD if sgd else torch.optim.AdamW)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decay) == sum(len(group["params"]) for group in optimizer.param_groups)
    modules = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert {name for name, p in model.named_parameters() if decay[id(p)] == 0.5} == modules
    assert {name for name, p in model.named_parameters() if decay[id(p)] == 0} == dict(
        model.named_parameters()
    ).keys() - modules
    if sgd:
        assert optimizer.param_groups[0]["momentum"] == 0.9


@pytest.mark.parametrize("sgd", [True, False])
def test_weight_decay_on_all_parameters(sgd):
    """With `decay_all`, a step is that of PyTorch's own optimizer with one group of parameters."""
    ours, theirs = (build_student("resnet18", 5, 0) for _ in range(2))
    options = {"lr": 0.1, "weight_decay": 0.5}
    plain = torch.optim.SGD(theirs.parameters(), momentum=0.9, **options) if sgd else None
    optimizers = [
        build_optimizer(ours, sgd, momentum=0.9, decay_all=True, **options),
        plain or torch.optim.AdamW(theirs.parameters(), **options),
    ]
    before = ours.bn1.weight.clone()
    for model, optimizer in zip((ours, theirs), optimizers, strict=True):
        for number, parameter in enumerate(model.parameters()):
            parameter.grad = torch.full_like(parameter, number / 100)
        optimizer.step()
        optimizer.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other)
    assert (ours.bn1.weight - before).abs().min() > 0.05


def test_an_epoch_learns_and_evaluation_leaves_no_trace():
    """Training lowers the loss; evaluation changes no weight and no running statistic."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4))
    optimizer = build_optimizer(model, sgd=False, lr=0.01, weight_decay=0.0)
    batches = [random_batch(8, seed=1), random_batch(5, seed=2)]
    student, losses = BareStudent(model, optimizer, build_loss("kl")), []
    for _ in range(20):
        train_epoch([student], batches)
        losses.append(student.sums.result().loss)
    assert losses[-1] < 0.5 * losses[0]

    before = {name: value.clone() for name, value in model.state_dict().items()}
    [metrics] = evaluate([student], [(batch.images, batch.targets) for batch in batches], ALONE)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with torch.no_grad():
        outputs = torch.cat([model(batch.images) for batch in batches])
    targets = torch.cat([batch.targets for batch in batches])
    assert metrics.loss == pytest.approx(nn.functional.cross_entropy(outputs, targets).item(), rel=1e-5)
    assert metrics.top1 == pytest.approx(100 * (outputs.argmax(1) == targets).double().mean().item())


def test_precision_on_the_cpu():
    """bf16 computes in bf16, fp32 does not, and fp16 is refused by flag."""
    linear, images = nn.Linear(4, 2), torch.zeros(1, 4)
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with Precision(name, CPU).autocast():
            assert linear(images).dtype == dtype
    assert Precision("auto", CPU).name in ("fp32", "bf16")
    with pytest.raises(InputError, match="--precision fp16"):
        Precision("fp16", CPU)


def test_fp32_on_cuda_is_fp32(monkeypatch):
    """TF32 is off and cuDNN autotuning is on; the name says what fp32 means."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    torch.set_float32_matmul_precision("high")
    device = pick_device("auto")
    assert device == torch.device("cuda", 0)
    assert torch.get_float32_matmul_precision() == "highest"
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark) == (False, True)
    assert not torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction
    with without_cudnn_benchmark():
        assert not torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.benchmark
    names = {name: str(Precision(name, torch.device("cuda"))) for name in ("fp32", "bf16")}
    assert names == {"fp32": "fp32 without TF32 NCHW", "bf16": "bf16 channels-last"}
    assert str(FP32) == "fp32 NCHW"  # old checkpoints have this name


def test_the_cpu_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    assert pick_device("cpu") == CPU
    assert not torch.backends.cudnn.benchmark


@pytest.mark.parametrize(("capability", "name"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_bf16_that_is_emulated_is_not_picked(capability, name, monkeypatch):
    """PyTorch reports bf16 support for a T4, which only emulates it."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert Precision("auto", torch.device("cuda", 0)).name == name


def test_one_of_several_gpus_is_chosen(monkeypatch):
    """`cuda:1` is GPU 1 of the machine; several processes take one GPU each."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # `pick_device` changes both
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    assert chosen == [1]
    assert pick_device("cuda", World(1, 2, 1)) == torch.device("cuda", 1)
    with pytest.raises(InputError, match="--device cuda:2: this machine has 2 CUDA devices; give a lower N"):
        pick_device("cuda:2")
    with pytest.raises(InputError, match="--device cuda:1 trains in one process, not in 2"):
        pick_device("cuda:1", World(1, 2, 1))


def test_apple_gpus_get_no_float64(monkeypatch):
    """Sums over batches are float64 elsewhere."""
    made = []
    monkeypatch.setattr(torch, "tensor", lambda _, dtype, device: made.append((dtype, device)))
    for device in ("mps", "cpu"):
        MetricSums(device)
    assert made == [(torch.float32, "mps"), (torch.float64, "cpu")]


@pytest.mark.gpu
def test_convolutions_on_cuda_have_all_their_bits():
    """TF32 would round the inputs to ten bits, and 1 + 2**-12 to 1."""
    device = pick_device("cuda")
    images = torch.full((1, 32, 8, 8), 1 + 2**-12, device=device)
    kernels = torch.ones(32, 32, 3, 3, device=device)
    found = nn.functional.conv2d(images, kernels)  # Winograd's algorithm rounds as well
    torch.testing.assert_close(found, torch.full_like(found, 288 * (1 + 2**-12)), rtol=2**-16, atol=0)
    ones = torch.ones(32, 32, device=device)
    found = images[0, :, :, 0].mT @ ones
    torch.testing.assert_close(found, torch.full_like(found, 32 * (1 + 2**-12)), rtol=2**-16, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_a_step_on_cuda(name):
    """A GPU step in each precision is close to the CPU's fp32 step."""
    steps = []
    for precision in (FP32, Precision(name, torch.device("cuda"))):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4)).to(precision.device)
        optimizer = build_optimizer(model, sgd=True, lr=0.1, weight_decay=0.0)
        batch = random_batch(8)
        batch = Batch(*(getattr(batch, part).to(precision.device) for part in ("images", "soft_labels", "targets")))
        train_epoch([BareStudent(model, optimizer, build_loss("kl"), precision)], [batch])
        steps.append(model[3].weight.detach().cpu())
    torch.testing.assert_close(*steps, rtol=0.05, atol=2e-3)


PAGE_FAULTS = """
import resource
import torch
from utils.system.machine import keep_freed_memory

def faults():  # page faults of filling and freeing a tensor of 64 MB (16,384 pages)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
before, can = faults(), keep_freed_memory()
print(before, can, [faults() for _ in range(20)][-1])  # the first few allocations may still fault
"""


def test_freed_memory_is_used_again():
    """Memory that one step frees is reused by the next, and the system does not clear it again."""
    answer = subprocess.run([sys.executable, "-c", PAGE_FAULTS], capture_output=True, text=True, check=True)
    before, can, after = answer.stdout.split()
    if can == "False":
        pytest.skip("this C library has no mallopt")
    assert int(after) < int(before) / 10


def test_the_loss_is_three_calls_below_main(tiny, tmp_path, monkeypatch):
    """A reader gets from `main` to the loss of a micro-batch by `train` and `train_step`."""
    paths, loss = set(), SoftLoss.__call__

    def spy(*arguments):
        frames = [(Path(frame.filename), frame.function) for frame in inspect.stack()]
        own = [(path.relative_to(ROOT), name) for path, name in frames if path.is_relative_to(ROOT)]
        names = [name for path, name in own if path.parts[0] not in ("tests", ".venv", ".venv-oldest")]
        paths.add(tuple(names[: names.index("main") + 1]))
        return loss(*arguments)

    monkeypatch.setattr(SoftLoss, "__call__", spy)
    tiny.train_run(tmp_path / "run", epochs=1)
    assert paths == {("train_step", "train", "main")}
