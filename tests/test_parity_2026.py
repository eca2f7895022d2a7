"""The metrics of LPQLD's reference code are reproduced from its label folders, with batches in its order."""

import json
from pathlib import Path

import pytest
from helpers import read_run, run, threads

import train_FKD_parallel
from utils.labels import training_views

REFERENCE = Path(__file__).parent / "data" / "reference_2026"
EXPECTED = json.loads((REFERENCE / "expected.json").read_text())
FLAGS = {  # theirs: ours
    "--temperature 4": "-T 4",
    "--temperature 20 --temp_scheduler step --temp_step_size 1 --temp_step_gamma 0.7 --temp_stu_dynamic 1.0": (
        "-T 20 --temperature-schedule step --temperature-step-size 1 --temperature-gamma 0.7 "
        "--student-temperature calibrated"
    ),
    "--temperature 20 --temp_scheduler cosine --temp_min 2": (
        "-T 20 --temperature-schedule cosine --temperature-min 2"
    ),
}
RUNS = EXPECTED["runs"]
# What the order of floating-point sums makes of these few steps: training loss of epochs 1 and 2, validation loss after
# epoch 0. It depends on PyTorch and on the processor: the reference ran with 2.15 on an AMD EPYC, to which 2 % and 1 %
# hold; 2.4 % and 1.1 % were seen with 2.0.1, 2.7 % on an Intel Xeon, before and after the same change alike.
DRIFT = (0.05, 0.02)


@pytest.fixture(autouse=True)
def _threads_of_the_reference():
    """Use two threads, like the reference: another order of sums drifts by more than 2 % within these few steps."""
    with threads(2):
        yield


@pytest.mark.parametrize("expected", RUNS, ids=[f"{one['labels']} {one['flags']}" for one in RUNS])
def test_figures_are_those_of_the_reference(expected, tmp_path, monkeypatch):
    """Epoch 0 is the same computation; later epochs drift with the order of floating-point sums."""
    # the reference's own order of batches was recorded with its metrics
    monkeypatch.setattr(training_views, "draw_batches", lambda _order, _seed, epoch, *_: expected["batches"][epoch])
    images = REFERENCE / "images"
    result = run(
        train_FKD_parallel,
        *("--train-dir", images / "train", "--val-dir", images / "val", "--fkd-path", REFERENCE / expected["labels"]),
        *"--batch-size 8 --epochs 3 --reuse-labels --num-classes 1000 --cos --loss-type kl --seed 0".split(),
        *"--device cpu --precision fp32 -j 0 --eval-every 1".split(),
        *("--output-dir", tmp_path / "run", *FLAGS[expected["flags"]].split()),
    )
    assert result.code == 0, result.err
    rows = read_run(tmp_path / "run").rows
    assert rows[0]["train_loss"] == pytest.approx(expected["train_loss"][0], rel=1e-4)
    for row, loss in zip(rows[1:], expected["train_loss"][1:], strict=True):
        assert row["train_loss"] == pytest.approx(loss, rel=DRIFT[0])
    assert [row["teacher_temperature"] for row in rows] == pytest.approx(expected["temperature"])
    calibrated = [1.0, *expected.get("student_temperature_after_epoch", [])][: len(rows)]
    wanted = calibrated if len(calibrated) == len(rows) else [row["teacher_temperature"] for row in rows]
    assert [row["student_temperature"] for row in rows] == pytest.approx(wanted, abs=0.03)
    assert rows[0]["val_loss"] == pytest.approx(expected["val_loss"][0], rel=DRIFT[1])
