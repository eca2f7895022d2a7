"""Hard epochs come between soft ones, with the right views and targets, and resume at any step."""

import json
import re

import pytest
import rank_jobs
import torch
from helpers import (
    BATCH,
    CLASSES,
    CPU,
    EPOCHS,
    LIGHT,
    SIDE,
    make_images,
    make_labels,
    read_run,
    run,
    same_weights,
    stop_and_resume,
)
from hypothesis import given
from hypothesis import strategies as st
from label_folders import make_hald
from rank_jobs import launch
from torchvision.datasets import ImageFolder
from view_batches import views_from_files

import train_FKD_parallel
from utils.config import IMAGENET_MEAN, IMAGENET_STD, KDConfig
from utils.data.device import DeviceBatches
from utils.data.replay import Normalise
from utils.data.workers import ViewDataset, WorkerBatches
from utils.labels.formats import open_labels
from utils.labels.hard import HardViews, Phases
from utils.run.loading import TrainingBatches
from utils.system.errors import InputError
from utils.training.losses import soft_cross_entropy
from utils.training.schedules import lr_factor

pytestmark = pytest.mark.usefixtures("small_student")
FLAGS = {"epochs": 5, "hard_epochs": 2, "hard_batch_size": 8, "loss_type": "kl"}  # 1 soft, 2 hard, 2 soft
SOFT_STEPS, HARD_STEPS = 3, 2


@given(epochs=st.integers(1, 40), data=st.data())
def test_soft_then_hard_then_soft(epochs, data):
    """Half of the soft epochs (rounded down) come first, then all hard ones; each kind counts from 0 without a gap."""
    hard = data.draw(st.integers(0, epochs - 1))
    phases, soft = Phases(epochs, hard), epochs - hard
    kinds = [phases.is_hard(epoch) for epoch in range(epochs)]
    assert kinds == [False] * (soft // 2) + [True] * hard + [False] * (soft - soft // 2)
    assert [phases.hard_before(e) for e in range(epochs) if kinds[e]] == list(range(hard))
    assert [phases.soft_before(e) for e in range(epochs) if not kinds[e]] == list(range(soft))


def views_of(targets=(0, 1, 2) * 7, batch_size=8):
    return HardViews(targets, 4, SIDE, batch_size, 0.8, 42)


def test_targets_equal_timms():
    """y1 lam + y2 (1 - lam) with 0.8 / C off and 0.2 + 0.8 / C on the class; lam is the area outside the box."""
    views = views_of()
    for epoch in range(2):
        for batch in range(views.batches_per_epoch):
            drawn = views.read(epoch, batch)
            y1, x1, y2, x2 = drawn.mix.box
            lam = 1 - (y2 - y1) * (x2 - x1) / SIDE**2
            for row, partner in enumerate(range(len(drawn.index) - 1, -1, -1)):
                wanted = torch.full((4,), 0.8 / 4)
                wanted[views.labels[drawn.index[row]]] += 0.2 * lam
                wanted[views.labels[drawn.index[partner]]] += 0.2 * (1 - lam)
                torch.testing.assert_close(drawn.logits[row], wanted)
                assert drawn.mix.partner[row] == partner


def test_an_odd_image_is_left_out():
    """21 images give batches of 8, 8 and 4, in another order in each epoch, and no image twice."""
    views = views_of()
    shown = []
    for epoch in range(2):
        batches = [views.read(epoch, batch) for batch in range(views.batches_per_epoch)]
        assert [len(one.index) for one in batches] == [8, 8, 4] == [views.rows(epoch, b) for b in range(3)]
        shown.append(torch.cat([one.index for one in batches]).tolist())
        assert len(set(shown[-1])) == 20
    assert shown[0] != shown[1]
    assert HardViews([0] * 17, 1, SIDE, 8, 0.8, 1).batches_per_epoch == 2  # none of one row


def test_the_loss_of_a_hard_epoch_is_reproduced(tiny, tmp_path):
    """The loss is recomputed from image files, views and targets; the run starts with that epoch."""
    done = tiny.train_run(tmp_path / "run", start_epoch=1, sgd=True, learning_rate=1e-12, **FLAGS)
    samples = ImageFolder(tiny.train).samples
    hard = HardViews([target for _, target in samples], CLASSES, SIDE, 8, 0.8, 42)
    model, total, rows = rank_jobs.small_student("", CLASSES, 0, "").train(), 0.0, 0
    for batch in range(hard.batches_per_epoch):
        drawn = hard.read(0, batch)
        assert drawn.mix.partner.tolist() == list(range(len(drawn.index)))[::-1]
        outputs = model(views_from_files(samples, drawn)).double()
        total -= (drawn.logits * outputs.log_softmax(dim=1)).sum().item()
        rows += len(outputs)
    assert rows == CLASSES * 4
    assert done.rows[0]["epoch"] == 1
    assert done.rows[0]["train_loss"] == pytest.approx(total / rows, rel=1e-4)


def test_the_loss_is_a_batch_mean():
    outputs, answers = torch.randn(6, 4), torch.rand(6, 4).softmax(dim=1)
    wanted = -(answers * outputs.log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(soft_cross_entropy(outputs, answers, torch.zeros(6)), wanted)


@pytest.fixture(scope="module")
def phased(tiny, tmp_path_factory):
    """A run with 3 of 5 epochs on stored labels and calibrated temperature; returns (run, flags)."""
    flags = FLAGS | {"student_temperature": "calibrated"}
    return tiny.train_run(tmp_path_factory.mktemp("phased") / "run", **flags), flags


def test_phases_in_order(phased):
    """Soft epochs have temperatures, hard ones have none; the rate falls over all epochs."""
    done, _ = phased
    assert [row["teacher_temperature"] is None for row in done.rows] == [False, True, True, False, False]
    rates = [0.001 * lr_factor("linear", epoch, 5) for epoch in range(5)]
    assert [row["lr"] for row in done.rows] == pytest.approx(rates)
    assert EPOCHS == 3
    args = done.summary["args"]
    assert (args["hard_epochs"], args["hard_batch_size"], args["label_smoothing"]) == (2, 8, 0.8)


@pytest.mark.parametrize(
    "stops",
    [[SOFT_STEPS], [SOFT_STEPS + 1, 1], [SOFT_STEPS + 2 * HARD_STEPS, 1]],
    ids=["before the hard epochs", "within one, and between two", "after them"],
)
def test_resume_is_exact(stops, phased, tiny, tmp_path):
    """A run that is stopped repeatedly ends with the same weights, metrics and calibrated temperatures."""
    whole, flags = phased
    words = tiny.flags(tmp_path / "run", **flags)
    again = stop_and_resume(words, tmp_path / "run", stops)
    for column in ("train_loss", "val_loss", "student_temperature"):
        assert [row[column] for row in again.rows] == [row[column] for row in whole.rows]
    assert same_weights(again.weights(), whole.weights())


def test_workers_and_students_side_by_side(phased, tiny, tmp_path):
    """Workers give the batches of resident images; of two students, each trains as if it were alone."""
    done, flags = phased
    words = tiny.flags(tmp_path / "run", **flags | {"loader": "workers", "workers": 1})
    assert run(train_FKD_parallel, *words, "--seeds", 0, 1).code == 0
    found = read_run(tmp_path / "run" / f"{LIGHT}-seed0")
    assert [row["train_loss"] for row in found.rows] == [row["train_loss"] for row in done.rows]


@pytest.mark.parametrize("at_once", [None, 1])
def test_a_device_keeps_the_images_once(at_once, tiny):
    """Soft and hard batches share one image cache and come in the order of the run, as from workers."""
    samples, phases = ImageFolder(tiny.train).samples, Phases(4, 2)
    hard = HardViews([target for _, target in samples], CLASSES, SIDE, 8, 0.8, 42)
    sets = [ViewDataset(samples, source, SIDE) for source in (open_labels(tiny.labels), hard)]
    normalise = Normalise(IMAGENET_MEAN, IMAGENET_STD, CPU)
    found = []
    for make, more in ((WorkerBatches, ()), (DeviceBatches, (at_once,))):
        soft = make(sets[0], range(2), normalise, 0, CPU, *more)
        batches = TrainingBatches(soft, soft.of_same_images(sets[1], range(2)), phases)
        found.append([batch for epoch in range(4) for batch in batches.epoch(epoch)])
        assert batches.steps(range(4)) == len(found[-1]) == 2 * SOFT_STEPS + 2 * HARD_STEPS
        assert batches.steps(range(2, 4)) == HARD_STEPS + SOFT_STEPS
    assert batches.soft.gallery is batches.hard.gallery
    for one, other in zip(*found, strict=True):
        assert torch.equal(one.targets, other.targets)
        torch.testing.assert_close(one.soft_labels, other.soft_labels)
        assert (one.images - other.images).abs().max() < 1.1 / 255 / min(IMAGENET_STD)


def test_two_processes_do_what_one_does(tiny, tmp_path):
    """Hard batches are sharded like soft ones; weights are equal up to rounding."""
    flags = FLAGS | {"sgd": True, "learning_rate": 0.1, "sync_bn": True, "model": "resnet18", "hard_batch_size": 10}
    (tmp_path / "jobs.json").write_text(json.dumps([["train_FKD_parallel", *tiny.flags(tmp_path / "two", **flags)]]))
    done = launch(2, tmp_path / "jobs.json")
    assert done.returncode == 0, done.stderr[-2000:]
    assert run(train_FKD_parallel, *tiny.flags(tmp_path / "one", **flags)).code == 0
    one, two = read_run(tmp_path / "one"), read_run(tmp_path / "two")
    assert [r["train_loss"] for r in two.rows] == pytest.approx([r["train_loss"] for r in one.rows], rel=1e-4)
    weights = two.weights()
    for key, value in one.weights().items():
        torch.testing.assert_close(weights[key], value, rtol=1e-4, atol=1e-5)


def test_recorded_steps_of_both_kinds(tiny, tmp_path, recording, monkeypatch):
    """Each kind has its own captured step, with another loss and batch size; metrics equal those of eager steps."""
    flags = FLAGS | {"batch_size": BATCH, "sgd": True, "learning_rate": 0.01}
    eager = tiny.train_run(tmp_path / "eager", **flags)
    monkeypatch.setattr("utils.run.student.captures", lambda *_: True)  # capture needs CUDA
    recorded = tiny.train_run(tmp_path / "recorded", **flags)
    said = re.findall("step    (.*?);", (recorded.path / "train.log").read_text())
    assert said == ["one CUDA graph of 5 images", "one CUDA graph of 8 images"]
    assert len(recording) == 3 * (SOFT_STEPS - 1) + 2 * (HARD_STEPS - 1)  # the last batch of an epoch is shorter
    for column in ("train_loss", "val_loss"):
        assert [r[column] for r in recorded.rows] == pytest.approx([r[column] for r in eager.rows], rel=1e-4)


def test_halds_labels(tiny, tmp_path):
    """HALD's folder and its recipe's flags train; the two stored epochs are drawn from."""
    make_hald(tmp_path / "labels")
    flags = {"fkd_path": tmp_path / "labels", "reuse_labels": True, "temperature": 20, "epochs": 6, "hard_epochs": 3}
    done = tiny.train_run(tmp_path / "run", schedule="smoothed", smoothing=2, ema_decay=0.9, **flags)
    assert [row["teacher_temperature"] is None for row in done.rows] == [False, True, True, True, False, False]
    assert done.summary["labels"]["dialect"] == "hald"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"epochs": 6, "hard_epochs": 2}, "--epochs 6 without the 2 of --hard-epochs is more than the 3 epochs"),
        ({"epochs": 3, "hard_epochs": 3}, "--hard-epochs 3 leaves none of --epochs 3"),
        ({"hard_epochs": 1, "hard_batch_size": 5}, "--hard-batch-size 5 is odd"),
        ({"hard_batch_size": 8}, "--hard-batch-size has no effect without --hard-epochs"),
        ({"label_smoothing": 0.1}, "--label-smoothing has no effect without --hard-epochs"),
        ({"hard_epochs": 1, "label_smoothing": 1.1}, "--label-smoothing"),
    ],
)
def test_wrong_flags(changed, said, tiny, tmp_path):
    result = run(train_FKD_parallel, *tiny.flags(tmp_path / "run", **changed))
    assert result.code == 2
    assert said in result.err


def test_one_image_has_no_partner(tiny, tmp_path):
    make_images(tmp_path / "train", classes=1, per_class=1)
    make_images(tmp_path / "val", classes=1, per_class=1)
    make_labels(tmp_path / "labels", batch_size=1, images=1)
    flags = {"train_dir": tmp_path / "train", "val_dir": tmp_path / "val", "fkd_path": tmp_path / "labels"}
    result = run(train_FKD_parallel, *tiny.flags(tmp_path / "run", **flags, batch_size=1, hard_epochs=1))
    assert (result.code, "--hard-epochs mixes images in pairs" in result.err) == (2, True)


def test_other_hard_epochs_do_not_resume(phased, tiny):
    done, flags = phased
    result = run(train_FKD_parallel, *tiny.flags(done.path, **flags | {"label_smoothing": 0.5}), "--resume")
    assert result.code == 2
    assert "--label-smoothing was 0.8 and is 0.5" in result.err


def test_a_live_teacher_has_no_hard_epochs():
    """Hard epochs belong to stored labels only."""
    with pytest.raises(InputError, match="--hard-epochs"):
        KDConfig.parse(["--hard-epochs", "1"])
