"""The moving average of the weights has the right values, is evaluated and saved, and resumes."""

import copy
import signal

import pytest
import torch
from helpers import read_run, run, signal_in_step
from small_network import FP32, BareStudent, batches_on, small_model
from timm.utils import ModelEmaV3

import train_FKD_parallel
from train_FKD_parallel import evaluate
from utils.system.distributed import ALONE
from utils.training import cuda_graph
from utils.training.losses import build_loss
from utils.training.optimizer import AveragedModel, build_optimizer

NEW_FLAGS = (  # of a run since the first release
    "temperature_schedule temperature_step_size temperature_gamma temperature_min student_temperature topk_mass "
    "ema_decay hard_epochs hard_batch_size label_smoothing ema_buffers sync_bn loss_scale_t2 warmup_epochs "
    "warmup_factor"
).split()


@pytest.mark.parametrize("graphed", [False, True])
def test_average_of_every_step(graphed, recording):
    """a = D a + (1 - D) w after each step, for weights and running statistics; counters are the model's."""
    model = small_model()
    average = AveragedModel(model, 0.75)
    optimizer = build_optimizer(model, True, 0.1, 0, 0.9)
    graph = cuda_graph.CapturedStep() if graphed else None
    student = BareStudent(model, optimizer, build_loss("kl"), graph=graph, average=average)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    for batch in batches_on(FP32.device):
        student.take_step(batch)
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                expected[name] = 0.75 * expected[name] + 0.25 * value
            else:
                expected[name] = value.clone()
    for name, value in average.model.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    assert len(recording) == (3 if graphed else 0)
    assert not any(parameter.requires_grad for parameter in average.model.parameters())


@pytest.mark.parametrize("graphed", [False, True])
def test_the_average_of_edc(graphed, recording):
    """Five steps of EDC's formula, ema = .99 ema + .01 weight from the initial weights; statistics are the model's."""
    model = small_model()
    average = AveragedModel(model, 0.99, "live")
    graph = cuda_graph.CapturedStep() if graphed else None
    student = BareStudent(
        model, build_optimizer(model, True, 0.1, 0, 0.9), build_loss("kl"), graph=graph, average=average
    )
    ema = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    data = list(batches_on(FP32.device))
    for batch in [data[number % len(data)] for number in range(5)]:
        student.take_step(batch)
        for name, parameter in model.named_parameters():
            ema[name] = 0.99 * ema[name] + 0.01 * parameter.detach()
    found = dict(average.model.named_parameters())
    for name, value in ema.items():
        torch.testing.assert_close(found[name].detach(), value, rtol=1e-6, atol=1e-7)
        assert not torch.equal(value, model.get_parameter(name))
    statistics = [name for name, _ in model.named_buffers() if "running" in name]
    assert statistics
    for name in statistics:
        assert torch.equal(average.model.get_buffer(name), model.get_buffer(name))
    data = [(torch.randn(8, 3, 8, 8), torch.arange(8) % 6)]
    exchanged = copy.deepcopy(model).eval()
    exchanged.load_state_dict({**model.state_dict(), **ema})
    loss = torch.nn.functional.cross_entropy(exchanged(data[0][0]), data[0][1]).item()
    assert evaluate([student], data, ALONE)[0].loss == pytest.approx(loss)


@pytest.mark.parametrize("buffers", ["averaged", "live"])
def test_bit_equal_to_the_average_of_timm(buffers):
    """`ModelEmaV3` of the same decay, with averaged or copied buffers, after each of five steps."""
    model = small_model()
    average = AveragedModel(model, 0.99, buffers)
    timms = ModelEmaV3(model, 0.99, exclude_buffers=buffers == "live")
    student = BareStudent(model, build_optimizer(model, True, 0.1, 0, 0.9), build_loss("kl"), average=average)
    data = list(batches_on(FP32.device))
    for number in range(5):
        student.take_step(data[number % len(data)])
        timms.update(model)
        ours = average.model.state_dict()
        assert all(torch.equal(ours[name], value) for name, value in timms.module.state_dict().items())
    assert not torch.equal(ours["0.weight"], model.state_dict()["0.weight"])


def test_live_statistics_are_stated_and_survive_a_resume(tiny, tmp_path):
    """The summary names them; another choice is refused; a resumed run equals an uninterrupted one."""
    flags = {"ema_decay": 0.5, "ema_buffers": "live"}
    whole = tiny.train_run(tmp_path / "whole", **flags)
    weights = "averaged over all steps, decay 0.5, with the running statistics of the last step"
    assert whole.summary["evaluated_weights"] == weights
    words = tiny.flags(tmp_path / "run", **flags)
    with pytest.MonkeyPatch.context() as patch:
        signal_in_step(patch, signal.SIGTERM, 4)
        assert run(train_FKD_parallel, *words).code == 128 + signal.SIGTERM
    other = run(train_FKD_parallel, *tiny.flags(tmp_path / "run", ema_decay=0.5), "--resume")
    assert (other.code, "--ema-buffers was live and is averaged" in other.err) == (2, True)
    assert run(train_FKD_parallel, *words, "--resume").code == 0
    again = read_run(tmp_path / "run")
    assert [row["val_loss"] for row in again.rows] == [row["val_loss"] for row in whole.rows]
    averaged = tiny.train_run(tmp_path / "averaged", ema_decay=0.5)
    assert [row["val_loss"] for row in averaged.rows] != [row["val_loss"] for row in whole.rows]
    assert [row["train_loss"] for row in averaged.rows] == [row["train_loss"] for row in whole.rows]


def test_the_average_is_evaluated():
    """The model, which differs, is not evaluated."""
    model = small_model()
    average = AveragedModel(model, 0.9)
    student = BareStudent(model, build_optimizer(model, True, 0.1, 0), build_loss("ce"), average=average)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-1)
    data = [(torch.randn(8, 3, 8, 8), torch.arange(8) % 6)]
    wanted = copy.deepcopy(average.model).eval()(data[0][0])
    loss = torch.nn.functional.cross_entropy(wanted, data[0][1]).item()
    assert evaluate([student], data, ALONE)[0].loss == pytest.approx(loss)
    assert not average.model.training


@pytest.fixture(scope="module")
def averaged(tiny, tmp_path_factory):
    return tiny.train_run(tmp_path_factory.mktemp("averaged") / "run", ema_decay=0.5)


def test_a_run_names_the_evaluated_weights(averaged, tiny, tmp_path):
    """Training itself is unchanged; the best saved weights are those that were evaluated."""
    assert averaged.summary["evaluated_weights"] == "averaged over all steps, decay 0.5"
    state = torch.load(averaged.path / "checkpoint.pth.tar", weights_only=True)
    differs = [name for name, value in state["average"].items() if not torch.equal(value, state["state_dict"][name])]
    assert differs
    assert not [name for name in differs if name.endswith("num_batches_tracked")]
    plain = tiny.train_run(tmp_path / "run")
    assert plain.summary["evaluated_weights"] == "of the last step"
    for name, value in plain.weights().items():
        assert torch.equal(value, state["state_dict"][name])
    assert [row["val_loss"] for row in plain.rows] != [row["val_loss"] for row in averaged.rows]
    if averaged.summary["best"]["epoch"] == 2:
        best = torch.load(averaged.path / "model_best.pth.tar", weights_only=True)["state_dict"]
        assert all(torch.equal(value, state["average"][name]) for name, value in best.items())


def test_resume_is_exact(averaged, tiny, tmp_path):
    """The run is stopped in the middle of an epoch; another decay is refused."""
    words = tiny.flags(tmp_path / "run", ema_decay=0.5)
    with pytest.MonkeyPatch.context() as patch:
        signal_in_step(patch, signal.SIGTERM, 4)
        assert run(train_FKD_parallel, *words).code == 128 + signal.SIGTERM
    other = run(train_FKD_parallel, *tiny.flags(tmp_path / "run"), "--resume")
    assert (other.code, "--ema-decay was 0.5 and is None" in other.err) == (2, True)
    assert run(train_FKD_parallel, *words, "--resume").code == 0
    again = read_run(tmp_path / "run")
    assert [row["val_loss"] for row in again.rows] == [row["val_loss"] for row in averaged.rows]
    states = [torch.load(one.path / "checkpoint.pth.tar", weights_only=True) for one in (again, averaged)]
    assert all(torch.equal(value, states[1]["average"][name]) for name, value in states[0]["average"].items())


def test_older_checkpoints_resume(tiny, tmp_path):
    """A checkpoint from before these flags has neither the flags nor their state."""
    words = tiny.flags(tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        signal_in_step(patch, signal.SIGTERM, 4)
        assert run(train_FKD_parallel, *words).code == 128 + signal.SIGTERM
    path = tmp_path / "run" / "checkpoint.pth.tar"
    state = torch.load(path, weights_only=True)
    del state["average"]
    for name in ("student_temperature", "next_student_temperature"):
        del state["progress"][name]
    for name in (*NEW_FLAGS, "val_ipc", "eval_from"):
        state["arguments"].pop(name)
    for row in state["progress"]["history"]:
        del row["teacher_temperature"], row["student_temperature"]
    torch.save(state, path)
    result = run(train_FKD_parallel, *words, "--resume")
    assert result.code == 0, result.err
    assert read_run(tmp_path / "run").rows[0]["teacher_temperature"] is None
