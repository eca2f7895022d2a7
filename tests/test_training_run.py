"""The main script writes its files, its flags have an effect, and it resumes."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import EPOCHS, make_labels, read_run, run, same_weights
from PIL import Image

import train_FKD_parallel
from utils.config import EARLIER, FIXED_ON_RESUME, FKDConfig, KDConfig
from utils.run.checkpoint import flag
from utils.run.folder import RUN_FILES
from utils.run.student import Student
from utils.run.summary import COLUMNS

SMALL = "convnet1_w8_bn"  # for tests of rates and files, which any student passes


def test_a_run_leaves_its_files(whole_run, tiny):
    """All files exist, metrics.csv has its columns, and the checkpoint has the reference's keys."""
    assert {path.name for path in whole_run.path.iterdir()} == set(RUN_FILES)
    assert list(whole_run.rows[0]) == list(COLUMNS)
    assert [row["epoch"] for row in whole_run.rows] == [0, 1, 2]
    assert all(value is not None for row in whole_run.rows for value in row.values())
    assert [row["lr"] for row in whole_run.rows] == pytest.approx([1e-3, 2e-3 / 3, 1e-3 / 3])
    assert all(row["train_top5"] == 100 for row in whole_run.rows)  # of 3 classes
    checkpoint = torch.load(whole_run.path / "checkpoint.pth.tar", weights_only=True)
    assert {"epoch", "state_dict", "best_acc1", "optimizer"} <= checkpoint.keys()
    assert checkpoint["epoch"] == EPOCHS
    assert Image.open(whole_run.path / "curves.png").width > 2000  # drawn, since `whole_run` has the scope of a session
    assert "epoch   3/3" in (whole_run.path / "train.log").read_text()


@pytest.mark.parametrize("name", FIXED_ON_RESUME)
def test_a_refused_resume_names_flags_that_exist(name):
    """The words for a changed setting are a flag that one of the training scripts takes, or no flag at all."""
    known = set()
    for config in (FKDConfig, KDConfig):
        known.update(re.findall(r"--[\w-]+", config.parser().format_help()))
    words = flag(name)
    assert words in known or not words.startswith("-")


def test_the_summary_agrees_with_the_metrics(whole_run):
    """`last` is the last row and `best` the best one; provenance and versions are included."""
    summary, rows = whole_run.summary, whole_run.rows
    best = max(rows, key=lambda row: row["val_top1"])
    for part, row in (("last", rows[-1]), ("best", best)):
        for key in ("epoch", "top1", "top5", "loss"):
            assert summary[part][key] == pytest.approx(row["epoch" if key == "epoch" else f"val_{key}"], rel=1e-6)
    assert "validation" in summary["best"]["note"]
    assert summary["epochs_done"] == EPOCHS
    assert summary["seconds"] > sum(row["train_seconds"] for row in rows)
    labels = summary["labels"]
    assert (labels["dialect"], labels["mix_type"], labels["num_images"], labels["epochs"]) == ("prism", "cutmix", 12, 3)
    assert summary["versions"]["torch"] == torch.__version__
    best_weights = torch.load(whole_run.path / "model_best.pth.tar", weights_only=True)
    assert best_weights["epoch"] == best["epoch"] + 1


def test_args_json(whole_run, tiny):
    """Every resolved argument is there, except the key."""
    args = json.loads((whole_run.path / "args.json").read_text())
    assert args == whole_run.summary["args"]
    assert "wandb_api_key" not in args
    assert args["batch_size"] == 5
    assert (args["mix_type"], args["schedule"], args["fkd_seed"]) == ("cutmix", "linear", 42)
    assert args["train_dir"] == str(tiny.train)


def test_a_run_is_reproducible_and_workers_do_not_matter(whole_run, tiny, tmp_path):
    """A run with two worker processes ends with bit-identical weights."""
    again = tiny.train_run(tmp_path / "run", loader="workers", workers=2, model="resnet18")
    assert same_weights(again.weights(), whole_run.weights())
    assert [row["train_loss"] for row in again.rows] == [row["train_loss"] for row in whole_run.rows]


def stop_after(monkeypatch, epoch):
    """Stop a run like Ctrl-C, right after `epoch` was recorded."""
    finish = Student.finish_epoch

    def finish_and_stop(self, *evaluation):
        finish(self, *evaluation)
        if self.progress.epoch == epoch + 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Student, "finish_epoch", finish_and_stop)
    monkeypatch.setattr("utils.run.student.CHECKPOINT_SECONDS", -1)


@pytest.mark.parametrize("epoch", [0, 1])
def test_resumed_is_the_same_as_uninterrupted(epoch, whole_run, tiny, tmp_path):
    """Weights and losses are bit-identical, whichever epoch was the last one."""
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, epoch)
        assert run(train_FKD_parallel, *tiny.flags(tmp_path / "run", model="resnet18")).code == 130
    assert torch.load(tmp_path / "run" / "checkpoint.pth.tar", weights_only=True)["epoch"] == epoch + 1

    wrong = run(
        train_FKD_parallel, *tiny.flags(tmp_path / "run", model="resnet18", resume=True, temperature=5, adamw_lr=0.1)
    )
    assert wrong.code == 2
    assert "--temperature was 3.0 and is 5.0" in wrong.err
    assert "--adamw-lr was 0.001 and is 0.1" in wrong.err

    resumed = tiny.train_run(tmp_path / "run", model="resnet18", resume=True)
    assert same_weights(resumed.weights(), whole_run.weights())
    for column in ("epoch", "lr", "train_loss", "val_loss", "val_top1"):
        assert [row[column] for row in resumed.rows] == [row[column] for row in whole_run.rows], column
    assert {k: v for k, v in resumed.summary["best"].items() if k != "loss"} == {
        k: v for k, v in whole_run.summary["best"].items() if k != "loss"
    }


def test_a_run_of_an_earlier_release_is_resumed(whole_run, tiny, tmp_path):
    """Its checkpoint lacks later settings, some of which this command does not have at all."""
    shutil.copytree(whole_run.path, tmp_path / "run")
    path = tmp_path / "run" / "checkpoint.pth.tar"
    state = torch.load(path, weights_only=True)
    assert state["arguments"]["shuffle_patches"] is None
    for name in EARLIER:
        state["arguments"].pop(name, None)
    torch.save(state, path)
    tiny.train_run(tmp_path / "run", model="resnet18", resume=True)
    changed = run(train_FKD_parallel, *tiny.flags(tmp_path / "run", model="resnet18", resume=True, warmup_epochs=1))
    assert (changed.code, "--warmup-epochs was 0 and is 1" in changed.err) == (2, True)


def test_a_warm_up_and_gift_resume_exactly(tiny, tmp_path):
    """The run is stopped after the first epoch of the warm-up; another factor is refused."""
    flags = {"model": SMALL, "loss_type": "gift", "warmup_epochs": 2, "warmup_factor": 0.1, "schedule": "cos2"}
    whole = tiny.train_run(tmp_path / "whole", **flags)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 0)
        assert run(train_FKD_parallel, *tiny.flags(tmp_path / "run", **flags)).code == 130
    other = run(train_FKD_parallel, *tiny.flags(tmp_path / "run", resume=True, **(flags | {"warmup_factor": 0.2})))
    assert (other.code, "--warmup-factor was 0.1 and is 0.2" in other.err) == (2, True)
    resumed = tiny.train_run(tmp_path / "run", resume=True, **flags)
    assert same_weights(resumed.weights(), whole.weights())
    for column in ("lr", "train_loss", "val_loss"):
        assert [row[column] for row in resumed.rows] == [row[column] for row in whole.rows], column


def test_a_checkpoint_with_damaged_settings(whole_run, tiny, tmp_path):
    """A setting that is a table of numbers is quoted in one short line."""
    shutil.copytree(whole_run.path, tmp_path / "run")
    path = tmp_path / "run" / "checkpoint.pth.tar"
    state = torch.load(path, weights_only=True)
    state["arguments"]["schedule"] = {0: torch.zeros(50, 50)}
    torch.save(state, path)
    refused = run(train_FKD_parallel, *tiny.flags(tmp_path / "run", model="resnet18", resume=True))
    assert refused.code == 2
    assert "--schedule was {0: tensor([[0., 0., 0.," in refused.err
    assert (len(refused.err.splitlines()), len(refused.err) < 800) == (1, True)


def test_a_run_is_not_overwritten_by_accident(tiny, tmp_path):
    """A used folder is refused and left alone; --overwrite starts anew and removes the old run."""
    tiny.train_run(tmp_path, epochs=2)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    refused = run(train_FKD_parallel, *tiny.flags(tmp_path))
    assert refused.code == 2
    assert "--resume" in refused.err
    assert "--overwrite" in refused.err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    again = tiny.train_run(tmp_path, epochs=1, overwrite=True)
    assert len(again.rows) == again.summary["epochs_done"] == 1
    assert "epoch   2/2" not in (tmp_path / "train.log").read_text()


def test_a_dry_run_trains_nothing(tiny, tmp_path):
    """It runs preflight and draws a picture; bad input still fails."""
    result = run(train_FKD_parallel, *tiny.flags(tmp_path / "run", dry_run=True))
    assert result.code == 0
    assert "12 images, 3 classes" in result.out
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["views.png"]
    assert run(train_FKD_parallel, *tiny.flags(tmp_path / "run", dry_run=True, epochs=9)).code == 2


FLAGS = {
    "sgd": {"sgd": True, "learning_rate": 0.05},
    "sgd, momentum": {"sgd": True, "learning_rate": 0.05, "momentum": 0.1},
    "sgd, weight decay": {"sgd": True, "learning_rate": 0.05, "weight_decay": 5},
    "adamw-lr": {"adamw_lr": 0.01},
    "adamw-weight-decay": {"adamw_weight_decay": 50},
    "temperature": {"temperature": 1},
    "dist": {"loss_type": "dist"},
    "mse_gt": {"loss_type": "mse_gt"},
    "mse_gt, ce-weight": {"loss_type": "mse_gt", "ce_weight": 0.9},
    "mae_gt": {"loss_type": "mae_gt"},
    "softce": {"loss_type": "softce"},
    "loss-scale-t2": {"loss_scale_t2": True},
    "gift": {"loss_type": "gift"},
    "gift, ce-weight": {"loss_type": "gift", "ce_weight": 0.9},
    "cosine": {"loss_type": "cosine"},
    "ce": {"loss_type": "ce"},
    "keep-topk": {"keep_topk": 1},
    "seed": {"seed": 1},
    "model": {"model": "resnet18"},
    "stem": {"model": "resnet18", "stem": "small"},
    "mean": {"mean": [0.5, 0.5, 0.5]},
    "start-epoch": {"start_epoch": 1},
    "precision": {"precision": "bf16"},
}


@pytest.fixture(scope="module")
def two_epochs(tiny, tmp_path_factory):
    """Return the training loss of the second epoch for each set of flags, and for none."""

    def loss(flags):
        flags = dict(flags)
        patch.setattr("utils.run.folder.draw_curves", lambda *_: None)
        mean = flags.pop("mean", None)
        words = tiny.flags(tmp_path_factory.mktemp("flag") / "run", epochs=2, eval_every=9, **flags)
        result = run(train_FKD_parallel, *words, *(["--mean", *mean] if mean else []))
        assert result.code == 0, result.err
        return read_run(words[words.index("--output-dir") + 1]).rows[-1]["train_loss"]

    with pytest.MonkeyPatch.context() as patch:
        return {name: loss(flags) for name, flags in {"none": {}, **FLAGS}.items()}


def test_flags_have_an_effect(two_epochs):
    """No two sets of flags give the same loss."""
    assert len(set(two_epochs.values())) == len(FLAGS) + 1, two_epochs


@pytest.mark.parametrize(
    ("flags", "rates"),
    [
        ({}, [1, 2 / 3, 1 / 3]),
        ({"cos": True}, [1, 0.75, 0.25]),
        ({"schedule": "cos"}, [1, 0.75, 0.25]),
        ({"schedule": "smoothed", "smoothing": 1}, [1, 0.75, 0.25]),
        ({"warmup_epochs": 2, "warmup_factor": 0.1}, [0.1, 0.55, 1]),
        ({"schedule": "prism", "adamw_lr": 0.01}, [10, 10 * 0.9567727288, 10 * 0.8345653032]),
    ],
)
def test_schedules_set_the_rate(flags, rates, tiny, tmp_path):
    """The lr column has the rates."""
    rows = tiny.train_run(tmp_path / "run", model=SMALL, **flags).rows
    assert [row["lr"] for row in rows] == pytest.approx([1e-3 * rate for rate in rates], rel=1e-5)


def test_start_epoch_trains_the_later_epochs(tiny, tmp_path):
    """A new student gets the later labels and the later rates."""
    rows = tiny.train_run(tmp_path / "run", model=SMALL, start_epoch=1).rows
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[0]["lr"] == pytest.approx(2e-3 / 3)


def test_eval_every(tiny, tmp_path):
    """Evaluation runs every N epochs and at the end; other cells are empty."""
    labels = make_labels(tmp_path / "labels", epochs=6)
    done = tiny.train_run(tmp_path / "run", model=SMALL, fkd_path=labels, epochs=6, eval_every=2)
    assert [row["epoch"] for row in done.rows if row["val_top1"] is not None] == [0, 2, 4, 5]
    assert done.rows[1]["val_loss"] is done.rows[1]["val_seconds"] is None


def test_the_micro_batch_follows_the_accumulation(tiny, tmp_path, monkeypatch):
    """--batch-size 4 in 2 steps gives micro-batches of 2 rows."""
    seen = []
    train_step = train_FKD_parallel.train_step

    def note(student, batch):
        seen.append(student.micro_batch_size)
        train_step(student, batch)

    monkeypatch.setattr(train_FKD_parallel, "train_step", note)
    labels = make_labels(tmp_path / "labels", "mixup", epochs=1, batch_size=4)
    flags = {"fkd_path": labels, "batch_size": 4, "gradient_accumulation_steps": 2, "epochs": 1, "mix_type": "mixup"}
    done = tiny.train_run(tmp_path / "run", model=SMALL, **flags)
    assert seen == [2] * 3  # batches
    assert done.summary["labels"]["mix_type"] == "mixup"


@pytest.mark.gpu
def test_a_run_on_cuda(tiny, tmp_path):
    """A run with a GPU's defaults writes its summary."""
    done = tiny.train_run(tmp_path / "run", device="cuda", precision="auto", workers=2)
    assert "step    one CUDA graph of" in (done.path / "train.log").read_text()
    assert done.summary["args"]["arithmetic"].startswith(("bf16", "fp32"))
    assert done.summary["epochs_done"] == EPOCHS


def test_no_more_workers_than_cores(tiny, tmp_path):
    """On a small machine the default -j would make PyTorch warn; one line of our log replaces the warning."""
    words = tiny.flags(tmp_path / "run", workers=999, loader="workers", epochs=1)
    command = [sys.executable, "-W", "always", str(Path(train_FKD_parallel.__file__)), *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"loader  \d+ processes, not -j 999: this process may use \d+ cores", done.stdout)
    assert "DataLoader" not in done.stderr
