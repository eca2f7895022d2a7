"""Ensembles, resumed relabelling, and naive KD."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import BATCH, SIDE, read_run, run, same_weights

import relabel_FKD
import train_FKD_parallel
import train_KD_parallel
from utils.labels.opening import open_labels
from utils.training.models import build_student
from utils.training.precision import Precision
from utils.training.teachers import PRESETS, Ensemble, combine

ROOT = Path(__file__).parents[1]
STUDENT = "shufflenet_v2_x0_5"  # small weights: little to write and compare


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """Two small teachers of three classes in files."""
    root = tmp_path_factory.mktemp("teachers")
    files = []
    for seed, name in enumerate(("resnet18", "shufflenet_v2_x0_5")):
        model = build_student(name, 3, seed)
        with torch.no_grad():
            for _ in range(3):
                model(torch.randn(8, 3, SIDE, SIDE))
        files.append(root / f"{name}.pth")
        torch.save(model.state_dict(), files[-1])
    return files


def relabel_words(tiny, teachers, target, *more, epochs=2):
    words = ["--data", tiny.train, "-a", "resnet18", "--checkpoint", teachers[0], "-b", BATCH, "--epochs", epochs]
    words += ["-j", 0, "--input-size", SIDE, "--mix-type", "cutmix", "--precision", "fp32", "--device", "cpu"]
    return [str(word) for word in [*words, "--fkd-path", target, *more]]


def test_mean_of_answers():
    logits = torch.randn(3, 4, 5)
    torch.testing.assert_close(combine(logits, "mean"), (logits[0] + logits[1] + logits[2]) / 3)


def test_norm_mean_gives_every_teacher_the_same_norm():
    logits = torch.randn(2, 4, 5) * torch.tensor([1.0, 10.0])[:, None, None]
    norms = [logits[i].square().sum().sqrt() for i in range(2)]
    mean_norm = (norms[0] + norms[1]) / 2
    expected = (logits[0] / norms[0] * mean_norm + logits[1] / norms[1] * mean_norm) / 2
    torch.testing.assert_close(combine(logits, "norm-mean"), expected)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_main_weighted_rows_have_the_mean_row_norm(count):
    logits = torch.randn(count, 6, 5)
    blend = logits[0] if count == 1 else 0.5 * logits[0] + sum(0.5 / (count - 1) * other for other in logits[1:])
    norms = torch.stack([row.square().sum().sqrt() for row in blend])
    expected = torch.stack([row / norm for row, norm in zip(blend, norms, strict=True)]) * norms.mean()
    torch.testing.assert_close(combine(logits, "main-weighted"), expected)


def test_an_ensemble_is_stored_as_combined(tiny, teachers, tmp_path):
    single = []
    for number, (name, file) in enumerate(zip(("resnet18", "shufflenet_v2_x0_5"), teachers, strict=True)):
        words = relabel_words(tiny, teachers, tmp_path / f"one{number}", epochs=1)
        words[words.index("resnet18")], words[words.index(str(teachers[0]))] = name, str(file)
        assert run(relabel_FKD, *words).code == 0
        single.append(open_labels(tmp_path / f"one{number}").read(0, 0).logits)
    more = ["-a", "shufflenet_v2_x0_5", "--checkpoint", teachers[1], "--ensemble", "norm-mean"]
    assert run(relabel_FKD, *relabel_words(tiny, teachers, tmp_path / "two", *more, epochs=1)).code == 0
    store = open_labels(tmp_path / "two")
    torch.testing.assert_close(store.read(0, 0).logits, combine(torch.stack(single), "norm-mean"))
    described = store.provenance()["settings"]
    assert [teacher["arch"] for teacher in described["teachers"]] == ["resnet18", "shufflenet_v2_x0_5"]
    assert described["ensemble"] == "norm-mean"


def test_an_empty_share_of_a_batch_is_answered_without_the_model(teachers):
    """Some models cannot take 0 images: a reshape to [0, -1, 4, 4] is ambiguous."""
    ensemble = Ensemble(["resnet18"], [teachers[0]], "mean", Precision("fp32", torch.device("cpu")))
    ensemble.teachers = [lambda images: images.view(len(images), -1, SIDE, SIDE).mean(dim=(2, 3))]
    assert ensemble(torch.zeros(2, 3, SIDE, SIDE)).shape == (2, 3)
    answers = ensemble(torch.zeros(0, 3, SIDE, SIDE))
    assert answers.shape == (0, 3)
    assert answers.dtype == torch.float32


def test_presets_take_the_first_candidates(tiny, teachers, tmp_path):
    assert set(PRESETS) == {"r18", "r50", "r101"}
    words = ["--data", tiny.train, "--preset", "r18", "--candidate-number", 1, "--checkpoint", teachers[0]]
    words += ["-b", BATCH, "--epochs", 1, "-j", 0, "--input-size", SIDE, "--fkd-path", tmp_path / "labels"]
    assert run(relabel_FKD, *words).code == 0
    assert open_labels(tmp_path / "labels").provenance()["settings"]["ensemble"] == "norm-mean"


@pytest.mark.parametrize(
    ("more", "names"),
    [
        (["-a", "resnet18"], "--checkpoint"),
        (["--preset", "r18"], "--preset"),
        (["--use-fp16", "--bits", "8"], "--use-fp16"),
        (["--format", "tar", "--bits", "4"], "--format"),
        (["--min-scale-crops", "0.9", "--max-scale-crops", "0.5"], "--min-scale-crops"),
    ],
)
def test_contradictions_are_named(more, names, tiny, teachers, tmp_path):
    result = run(relabel_FKD, *relabel_words(tiny, teachers, tmp_path / "labels", *more))
    assert result.code == 2
    assert result.err.startswith("error: ")
    assert names in result.err


def files_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_relabelling_killed_three_times_ends_with_the_same_bytes(tiny, teachers, tmp_path):
    words = relabel_words(tiny, teachers, "{}", "--use-fp16", epochs=12)
    command = [sys.executable, str(ROOT / "relabel_FKD.py"), *words]

    def start(target):
        return subprocess.Popen([str(target) if word == "{}" else word for word in command], stdout=subprocess.DEVNULL)

    assert start(tmp_path / "whole").wait() == 0
    target, kills, draw = tmp_path / "killed", 0, random.Random(0)
    while kills < 3:
        process = start(target)
        seen = len(list(target.glob("epoch_*"))) if target.exists() else 0
        while process.poll() is None and len(list(target.glob("epoch_*"))) < seen + draw.randint(1, 3):
            time.sleep(0.002)
        if process.poll() is not None:
            break
        time.sleep(draw.random() * 0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
    assert kills == 3
    assert start(target).wait() == 0
    assert files_of(target) == files_of(tmp_path / "whole")


def test_other_arguments_are_refused_with_the_difference(tiny, teachers, tmp_path):
    assert run(relabel_FKD, *relabel_words(tiny, teachers, tmp_path / "labels")).code == 0
    result = run(relabel_FKD, *relabel_words(tiny, teachers, tmp_path / "labels", "--fkd-seed", "7"))
    assert result.code == 2
    assert "seed is 42, not 7" in result.err


@pytest.mark.parametrize("views", ["stored", "drawn"])
def test_naive_kd_and_fkd_train_the_same_student(views, tiny, teachers, tmp_path):
    assert run(relabel_FKD, *relabel_words(tiny, teachers, tmp_path / "labels", "--views", views)).code == 0
    stored = tiny.train_run(tmp_path / "fkd", fkd_path=tmp_path / "labels", epochs=2, model=STUDENT)
    words = tiny.flags(tmp_path / "kd", fkd_path=None, epochs=2, mix_type="cutmix", model=STUDENT)
    result = run(train_KD_parallel, *words, "--teacher-checkpoint", teachers[0])
    assert result.code == 0, result.err
    live = read_run(tmp_path / "kd")
    assert same_weights(live.weights(), stored.weights())
    columns = ("train_loss", "val_loss", "val_top1")
    assert [[row[c] for c in columns] for row in live.rows] == [[row[c] for c in columns] for row in stored.rows]
    assert live.summary["labels"]["teachers"][0]["arch"] == "resnet18"


def test_ipc_takes_the_first_images_of_each_class(tiny, teachers, tmp_path):
    words = tiny.flags(tmp_path / "kd", fkd_path=None, epochs=1)
    result = run(train_KD_parallel, *words, "--teacher-checkpoint", teachers[0], "--IPC", 3)
    assert result.code == 0, result.err
    assert "9 images" in result.out


def test_smaller_labels_train(tiny, teachers, tmp_path):
    more = ["--bits", 4, "--keep-topk", 2, "--views", "drawn"]
    assert run(relabel_FKD, *relabel_words(tiny, teachers, tmp_path / "small", *more)).code == 0
    assert run(relabel_FKD, *relabel_words(tiny, teachers, tmp_path / "full")).code == 0
    sizes = [sum(path.stat().st_size for path in (tmp_path / name).glob("epoch_*")) for name in ("small", "full")]
    assert sizes[0] < sizes[1]
    flags = tiny.flags(tmp_path / "run", fkd_path=tmp_path / "small", epochs=2)
    assert run(train_FKD_parallel, *flags).code == 0


def test_hard_labels_need_no_teacher(tiny, tmp_path, monkeypatch):
    """--loss-type ce without weights: nothing is loaded, and there are as many outputs as folders."""
    monkeypatch.setattr(train_KD_parallel, "Ensemble", None)
    flags = tiny.flags(tmp_path / "ce", fkd_path=None, epochs=2, loss_type="ce")
    result = run(train_KD_parallel, *flags)
    assert result.code == 0, result.err
    assert "hard labels: no teacher answers on unmixed views" in result.out
    alone = read_run(tmp_path / "ce")
    assert alone.summary["labels"]["dialect"] == "hard labels"
    assert alone.summary["labels"]["bytes"] == 0
    assert run(train_KD_parallel, *flags, "--overwrite", "--dry-run").code == 0
    assert (tmp_path / "ce" / "views.png").exists()


def test_a_teacher_whose_answers_no_loss_uses_changes_nothing(tiny, teachers, tmp_path):
    """--loss-type ce with --teacher-checkpoint still asks it how many classes there are, and checks the folders."""
    flags = {"fkd_path": None, "epochs": 2, "loss_type": "ce"}
    results = [
        run(train_KD_parallel, *tiny.flags(tmp_path / "alone", **flags)),
        run(train_KD_parallel, *tiny.flags(tmp_path / "asked", **flags), "--teacher-checkpoint", teachers[0]),
    ]
    assert [result.code for result in results] == [0, 0]
    alone, asked = (read_run(tmp_path / name) for name in ("alone", "asked"))
    assert same_weights(asked.weights(), alone.weights())
    assert asked.summary["labels"]["bytes"] == Path(teachers[0]).stat().st_size


def test_teacher_stem(tiny, tmp_path):
    """--teacher-stem small: weights of a ResNet with a 3x3 stem fit, and do not without it."""
    torch.save(build_student("resnet18", 3, 0, "small").state_dict(), tmp_path / "small.pth")
    words = tiny.flags(tmp_path / "kd", fkd_path=None, dry_run=True)
    words += ["--teacher-checkpoint", str(tmp_path / "small.pth")]
    assert run(train_KD_parallel, *words, "--teacher-stem", "small").code == 0
    refused = run(train_KD_parallel, *words)
    assert refused.code == 2
    assert "does not hold the weights of --teacher-model resnet18" in refused.err
