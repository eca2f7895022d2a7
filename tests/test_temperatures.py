"""Teacher's and student's temperature act in the loss, in captured steps, over a run and over ranks."""

import pytest
import torch
from helpers import CPU, run, same_weights, stop_and_resume
from small_network import BareStudent, train_epoch

import train_FKD_parallel
from utils.data.batch import Batch
from utils.labels.types import TopK
from utils.training import cuda_graph
from utils.training.losses import LastMicroBatch, build_loss
from utils.training.optimizer import build_optimizer
from utils.training.schedules import CANDIDATES, Temperatures

generator = torch.Generator().manual_seed(0)
OUTPUTS, LOGITS = (3 * torch.randn(6, 7, generator=generator) for _ in range(2))
TARGETS = torch.tensor([0, 1, 2, 3, 4, 6])


def kl_of(outputs, probabilities, temperature):
    """Return KL, written out in float64."""
    q, p = (outputs.double() / temperature).softmax(1), probabilities.double()
    return torch.xlogy(p, p / q).sum(1).mean().item()


@pytest.mark.parametrize("name", ["kl", "dist", "mse_gt", "mae_gt"])
@pytest.mark.parametrize("temperature", [1.0, 3.0, 7.3])
def test_a_filled_tensor_is_the_number(name, temperature):
    """A temperature in a tensor gives bit-equal loss and gradient."""
    found = []
    for value in (temperature, torch.zeros(()).fill_(temperature)):
        outputs = OUTPUTS.clone().requires_grad_()
        loss = build_loss(name, value, 0.1)(outputs, LOGITS, TARGETS)
        loss.backward()
        found.append((loss.detach(), outputs.grad))
    assert all(map(torch.equal, *found))


def test_two_temperatures():
    """The teacher's logits are divided by one, the student's by the other."""
    loss = build_loss("kl", 5.0, student_temperature=0.5)(OUTPUTS, LOGITS, TARGETS).item()
    assert loss == pytest.approx(kl_of(OUTPUTS, (LOGITS / 5).softmax(1), 0.5), rel=1e-5)
    assert loss != pytest.approx(build_loss("kl", 5.0)(OUTPUTS, LOGITS, TARGETS).item(), rel=0.1)


@pytest.mark.parametrize("stored", [None, 3, 5])
def test_renormalised_mass(stored):
    """The softmax runs over the 3 kept logits, whether the labels or a flag keep them."""
    values, classes = LOGITS.topk(3, dim=1)
    wanted = torch.zeros(6, 7).scatter(1, classes, (values / 2).softmax(1))
    labels = LOGITS if stored is None else TopK(*LOGITS.topk(stored, dim=1), None)
    loss = build_loss("kl", 2.0, keep_topk=3, renormalise=True)(OUTPUTS, labels, TARGETS).item()
    assert loss == pytest.approx(kl_of(OUTPUTS, wanted, 2.0), rel=1e-5)
    assert loss != pytest.approx(build_loss("kl", 2.0, keep_topk=3)(OUTPUTS, LOGITS, TARGETS).item(), rel=1e-3)


@pytest.mark.parametrize("true", [0.03, 0.37, 1.0])
def test_calibration_finds_the_temperature(true):
    """The teacher is the student divided by a temperature; rows of an earlier, larger micro-batch do not count."""
    last = LastMicroBatch(6, 7, CPU)
    temperatures = Temperatures(lambda _: 4.0, "calibrated", False, last, CPU)
    loss = build_loss("kl", temperatures.teacher, student_temperature=temperatures.student, last=last)
    loss(9 * OUTPUTS, LOGITS, TARGETS)
    loss(OUTPUTS[:2], 4 * OUTPUTS[:2] / true, TARGETS[:2])
    assert temperatures.calibrate() == true
    divergences = last.divergences(CANDIDATES)
    probabilities = (OUTPUTS[:2] / true).softmax(1)
    assert divergences[9].item() / 2 == pytest.approx(kl_of(OUTPUTS[:2], probabilities, 0.1), rel=1e-4)


def test_a_rank_without_rows_has_no_say(monkeypatch):
    """The last micro-batch has one row, and the second rank has none of it."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 7))
    last = LastMicroBatch(4, 7, CPU)
    loss = build_loss("kl", 4.0, last=last)
    monkeypatch.setattr(train_FKD_parallel, "sum_gradients", lambda *_: None)
    student = BareStudent(model, build_optimizer(model, True, 0.1, 0), loss, last_micro_batch=last)
    student.take_step(Batch(torch.randn(2, 3, 4, 4), LOGITS[:2], TARGETS[:2], ((2, 4), (0, 1))))
    assert last.divergences(CANDIDATES).abs().max() == 0
    student.take_step(Batch(torch.randn(2, 3, 4, 4), LOGITS[:2], TARGETS[:2], ((2, 4),)))
    assert last.divergences(CANDIDATES).abs().min() > 0


def test_captured_steps_follow_the_temperature(recording):
    """Replays use their epoch's temperatures and record the last micro-batch, like eager steps."""
    found = []
    for graph in (None, cuda_graph.CapturedStep()):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 7))
        last = LastMicroBatch(4, 7, CPU)
        temperatures = Temperatures(lambda epoch: 4.0 / (epoch + 1), "calibrated", True, last, CPU)
        loss = build_loss("kl", temperatures.teacher, student_temperature=temperatures.student, last=last)
        student = BareStudent(model, build_optimizer(model, True, 0.5, 0), loss, graph=graph, last_micro_batch=last)
        calibrated, values = 1.0, []
        for epoch in range(3):
            temperatures.start_epoch(epoch, calibrated)
            images = torch.randn(18, 3, 2, 2, generator=torch.Generator().manual_seed(epoch))
            labels = 30 * torch.randn(18, 7, generator=torch.Generator().manual_seed(9 - epoch))
            sizes = [8, 8, 2]
            parts = (images.split(sizes), labels.split(sizes), torch.arange(18).remainder(7).split(sizes))
            train_epoch([student], [Batch(*tensors) for tensors in zip(*parts, strict=True)][: 3 - epoch % 2])
            calibrated = temperatures.calibrate()
            values += [student.sums.result().loss, calibrated]
        found.append(values)
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert len(set(found[0][1::2])) > 1
    assert len(recording) == 6


FLAGS = {"temperature_schedule": "step", "temperature_step_size": 1, "temperature_gamma": 0.5, "temperature": 20}
FLAGS |= {"student_temperature": "calibrated", "loss_type": "kl"}


@pytest.fixture(scope="module")
def calibrated(tiny, tmp_path_factory):
    return tiny.train_run(tmp_path_factory.mktemp("calibrated") / "run", **FLAGS)


def test_temperatures_are_reported(calibrated):
    """Every epoch has them; the student's starts at 1 and is one of the candidates."""
    assert [row["teacher_temperature"] for row in calibrated.rows] == [10, 5, 2.5]
    students = [row["student_temperature"] for row in calibrated.rows]
    assert students[0] == 1
    assert set(students) <= set(CANDIDATES)


def test_resume_in_the_middle_and_at_the_end_of_an_epoch(calibrated, tiny, tmp_path):
    """The resumed run has the same weights and temperatures."""
    words = tiny.flags(tmp_path / "run", **FLAGS)
    steps = (2, 1, 2)  # in batch 2 of epoch 0, its last one, and batch 2 of epoch 1
    again = stop_and_resume(words, tmp_path / "run", steps)
    assert same_weights(again.weights(), calibrated.weights())
    for column in ("teacher_temperature", "student_temperature", "train_loss"):
        assert [row[column] for row in again.rows] == [row[column] for row in calibrated.rows]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"loss_type": "mse_gt", "temperature_schedule": "step"}, "--temperature-schedule step has no effect"),
        ({"loss_type": "ce", "student_temperature": "calibrated"}, "--student-temperature calibrated has no effect"),
        ({"temperature_schedule": "step", "temperature": 1}, "-T 1.0 is below 2.0"),
        ({"temperature_schedule": "cosine", "temperature": 3, "temperature_min": 4}, "--temperature-min 4.0; raise"),
        ({"student_temperature": "cold"}, "--student-temperature"),
        ({"temperature_gamma": 1.5}, "--temperature-gamma"),
    ],
)
def test_flags_without_effect_are_refused(changed, said, tiny, tmp_path):
    result = run(train_FKD_parallel, *tiny.flags(tmp_path / "run", **changed))
    assert result.code == 2
    assert said in result.err


def test_other_temperatures_do_not_resume(calibrated, tiny):
    words = tiny.flags(calibrated.path, **FLAGS | {"student_temperature": 0.5})
    result = run(train_FKD_parallel, *words, "--resume")
    assert result.code == 2
    assert "--student-temperature was calibrated and is 0.5" in result.err
