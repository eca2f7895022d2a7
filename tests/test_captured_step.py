"""A captured training step equals the eager one. Without CUDA, replays are eager calls."""

import copy
import warnings

import pytest
import torch
from helpers import CPU
from small_network import FP32, BareStudent, batches_on, small_model, train_epoch
from torch import nn

from train_FKD_parallel import train_step
from utils.training import cuda_graph
from utils.training.losses import build_loss
from utils.training.optimizer import build_optimizer, set_lr
from utils.training.precision import Precision

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def train(graph, device, sgd, model=None, epochs=3):
    """Train a few epochs at falling learning rates; return (weights, metrics of each epoch, optimizer)."""
    precision = Precision("fp32", device)
    model = (model or small_model()).to(device)
    optimizer = build_optimizer(model, sgd, 0.05, 0.01, momentum=0.9)
    student, history = BareStudent(model, optimizer, build_loss("mse_gt", ce_weight=0.1), precision, graph=graph), []
    for epoch in range(epochs):
        set_lr(optimizer, 0.05 / (epoch + 1))
        train_epoch([student], batches_on(device))
        history.append(student.sums.result())
    return copy.deepcopy(model.state_dict()), history, optimizer


def assert_equal_training(graph, device, sgd, **tolerance):
    eager, recorded = train(None, device, sgd), train(graph, device, sgd)
    for name, value in eager[0].items():
        torch.testing.assert_close(recorded[0][name], value, **tolerance)
    for a, b in zip(eager[1], recorded[1], strict=True):
        assert b.samples == a.samples == 27
        assert b.loss == pytest.approx(a.loss, rel=1e-4)
        assert (b.top1, b.top5) == (a.top1, a.top5)
    assert all(type(group["lr"]) is float for group in recorded[2].param_groups)
    assert not any(group.get("capturable") for group in recorded[2].param_groups)


@pytest.mark.parametrize("sgd", [True, False])
def test_captured_step_equals_eager_step(recording, sgd):
    """Warm-up changes nothing, batches and rates reach the fixed tensors, and the short last batch runs eagerly."""
    step = cuda_graph.CapturedStep()
    assert_equal_training(step, CPU, sgd, rtol=1e-5, atol=1e-6)
    assert len(recording) == 9  # three full batches in each of three epochs
    assert [rate.item() for rate in step.rates] == pytest.approx([0.05 / 3] * 2)
    assert torch.equal(step.inputs[0], list(batches_on(CPU))[2].images)


def test_resumed_optimizer_state_survives_recording(recording):
    model = small_model()
    _, _, optimizer = train(None, CPU, False, model, epochs=1)
    before = copy.deepcopy(optimizer.state_dict()["state"])
    weights, rng = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    batch = next(batches_on(CPU))
    cuda_graph.CapturedStep().capture(train_step, BareStudent(model, optimizer, build_loss("ce")), batch)
    for number, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            assert torch.equal(value, before[number][key])
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)


def test_failed_recording_falls_back_and_says_so(recording, monkeypatch, program_log):
    def refuse(*_):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(cuda_graph, "capture_graph", refuse)
    assert_equal_training(cuda_graph.CapturedStep(), CPU, False, rtol=1e-5, atol=1e-6)
    assert "eager" in program_log.text
    assert "not permitted" in program_log.text


def test_the_warm_up_hides_one_expected_warning(recording, recwarn):
    """PyTorch's warning about a capturable optimizer that is not captured is hidden; other warnings are shown."""

    def step(*arguments):
        warnings.warn("some of all the param_groups came with capturable=True, but step() is running", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
        train_step(*arguments)

    optimizer = build_optimizer(small_model(), False, 0.05, 0.01)
    model, batch = small_model(), next(batches_on(CPU))
    cuda_graph.CapturedStep().capture(step, BareStudent(model, optimizer, build_loss("ce")), batch)
    assert {str(one.message) for one in recwarn} == {"something else"}


def test_a_larger_batch_is_recorded_anew(recording):
    """If the first batch was short, as after a resume near the end of an epoch, the step is captured again."""
    step = cuda_graph.CapturedStep()
    model = small_model()
    optimizer = build_optimizer(model, False, 0.05, 0.01)
    student = BareStudent(model, optimizer, build_loss("mse_gt", ce_weight=0.1), graph=step)
    train_epoch([student], batches_on(CPU, (3, 8, 8, 3, 8)))
    assert len(recording) == 4  # all batches except the second short one
    assert student.sums.samples == 30
    assert step.rows == 8
    model = small_model()
    eager = BareStudent(model, build_optimizer(model, False, 0.05, 0.01), student.loss_fn)
    train_epoch([eager], batches_on(CPU, (3, 8, 8, 3, 8)))
    assert student.sums.result().loss == pytest.approx(eager.sums.result().loss, rel=1e-5)


def test_an_optimizer_that_waits_is_not_recorded(recording, program_log):
    """An optimizer that is not fused reads its rate on the host, which would break the capture."""
    model, step = small_model(), cuda_graph.CapturedStep()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    train_epoch([BareStudent(model, optimizer, build_loss("ce"), graph=step)], batches_on(CPU))
    assert step.failed
    assert not recording
    assert "eager" in program_log.text


def test_no_graph_on_the_cpu():
    assert not cuda_graph.captures(FP32)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("sgd", [True, False])
def test_graph_equals_eager_on_cuda(sgd):
    step = cuda_graph.CapturedStep()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the user sees no warning of the capture
        assert_equal_training(step, torch.device("cuda"), sgd, rtol=1e-3, atol=1e-4)
    assert step.launch is not None
    assert not step.failed


@pytest.mark.gpu
@needs_cuda
def test_no_graph_with_loss_scaling():
    assert not cuda_graph.captures(Precision("fp16", torch.device("cuda")))


@pytest.mark.gpu
@needs_cuda
def test_a_model_that_waits_for_the_device_trains_eagerly():
    class Waits(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = small_model()

        def forward(self, images):
            images.sum().item()
            return nn.functional.dropout(self.inner(images), 0.1)

    step, before = cuda_graph.CapturedStep(), torch.cuda.current_stream()
    _, history, _ = train(step, torch.device("cuda"), False, Waits())
    assert step.failed
    assert torch.cuda.current_stream() == before  # uploads and replays use this stream
    step = cuda_graph.CapturedStep()
    train(step, torch.device("cuda"), False)
    assert not step.failed
    assert history[-1].loss < history[0].loss
