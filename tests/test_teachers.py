"""Ensembles are combined and stored, relabelling resumes, and naive KD trains like stored labels."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import BATCH, CPU, LIGHT, ROOT, SIDE, make_images, read_run, relabel_flags, run, same_weights, save_teacher

import relabel_FKD
import train_FKD_parallel
import train_KD_parallel
from utils.config import PRESETS
from utils.labels.formats import open_labels
from utils.system.errors import InputError
from utils.training.models import build_model, build_student
from utils.training.precision import Precision
from utils.training.teachers import Ensemble, combine

FP32 = Precision("fp32", CPU)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """Files of two small teachers of three classes."""
    root = tmp_path_factory.mktemp("teachers")
    return [save_teacher(root / f"{name}.pth", name, seed=seed) for seed, name in enumerate(("resnet18", LIGHT))]


def relabel_words(tiny, teachers, target, *more, epochs=2):
    """Return the command line that labels the tiny images with the first teacher, with cutmix."""
    return relabel_flags(tiny.train, teachers[0], target, "--mix-type", "cutmix", *more, epochs=epochs)


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
    for number, (name, file) in enumerate(zip(("resnet18", LIGHT), teachers, strict=True)):
        words = relabel_words(tiny, teachers, tmp_path / f"one{number}", epochs=1)
        words[words.index("resnet18")], words[words.index(str(teachers[0]))] = name, str(file)
        assert run(relabel_FKD, *words).code == 0
        single.append(open_labels(tmp_path / f"one{number}").read(0, 0).logits)
    more = ["-a", LIGHT, "--checkpoint", teachers[1], "--ensemble", "norm-mean"]
    assert run(relabel_FKD, *relabel_words(tiny, teachers, tmp_path / "two", *more, epochs=1)).code == 0
    store = open_labels(tmp_path / "two")
    torch.testing.assert_close(store.read(0, 0).logits, combine(torch.stack(single), "norm-mean"))
    described = store.provenance()["settings"]
    assert [teacher["arch"] for teacher in described["teachers"]] == ["resnet18", LIGHT]
    assert described["ensemble"] == "norm-mean"


def test_an_empty_share_of_a_batch_is_answered_without_the_model(teachers):
    """Some models cannot take 0 images: a reshape to [0, -1, 4, 4] is ambiguous."""
    ensemble = Ensemble(["resnet18"], [teachers[0]], "mean", FP32)
    ensemble.teachers = [lambda images: images.view(len(images), -1, SIDE, SIDE).mean(dim=(2, 3))]
    assert ensemble(torch.zeros(2, 3, SIDE, SIDE)).shape == (2, 3)
    answers = ensemble(torch.zeros(0, 3, SIDE, SIDE))
    assert answers.shape == (0, 3)
    assert answers.dtype == torch.float32


def test_presets_take_the_first_candidates(tiny, teachers, tmp_path):
    assert set(PRESETS) == {"r18", "r50", "r101", "edc", "cvdd", "fadrm"}
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
    stored = tiny.train_run(tmp_path / "fkd", fkd_path=tmp_path / "labels", epochs=2, model=LIGHT)
    words = tiny.flags(tmp_path / "kd", fkd_path=None, epochs=2, mix_type="cutmix", model=LIGHT)
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


def test_hard_labels_need_no_teacher(tiny, tmp_path, library):
    """--loss-type ce without weights loads nothing, and there is one output per class folder."""
    flags = tiny.flags(tmp_path / "ce", fkd_path=None, epochs=2, loss_type="ce")
    result = run(train_KD_parallel, *flags)
    assert result.code == 0, result.err
    assert "hard labels: no teacher answers on unmixed views" in result.out
    alone = read_run(tmp_path / "ce")
    assert alone.summary["labels"]["dialect"] == "hard labels"
    assert alone.summary["labels"]["bytes"] == 0
    assert run(train_KD_parallel, *flags, "--overwrite", "--dry-run").code == 0
    assert (tmp_path / "ce" / "views.png").exists()
    assert not library


def test_a_teacher_that_no_loss_uses_changes_nothing(tiny, teachers, tmp_path):
    """--loss-type ce with --teacher-checkpoint still takes its number of classes and checks the folders."""
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
    """With --teacher-stem small, weights of a ResNet with a 3x3 stem fit; without it they do not."""
    torch.save(build_student("resnet18", 3, 0, "small").state_dict(), tmp_path / "small.pth")
    words = tiny.flags(tmp_path / "kd", fkd_path=None, dry_run=True)
    words += ["--teacher-checkpoint", str(tmp_path / "small.pth")]
    assert run(train_KD_parallel, *words, "--teacher-stem", "small").code == 0
    refused = run(train_KD_parallel, *words)
    assert refused.code == 2
    assert "does not hold the weights of --teacher-model resnet18" in refused.err


@pytest.fixture
def library(monkeypatch):
    """Replace pretrained weights by a small model of 3 classes; return the list of requested weights."""
    asked = []

    def build(name, weights, *_):
        asked.append((name, weights))
        torch.manual_seed(len(weights))
        return build_model("resnet18", 3)

    monkeypatch.setattr("utils.training.models.build_pretrained", build)  # the real one downloads
    return asked


def library_words(tiny, target, *more):
    words = relabel_words(tiny, [None], target, *more)
    place = words.index("-a")
    return words[:place] + words[place + 4 :]  # without -a and --checkpoint


def test_the_manifest_names_the_pretrained_weights(tiny, library, tmp_path):
    """Manifest and log give the full name, also if the flag is missing or DEFAULT."""
    for more, expected in (
        (["-a", "resnet50"], ["IMAGENET1K_V1"]),
        (["-a", "resnet50", "--weights", "DEFAULT"], ["IMAGENET1K_V2"]),
        (["-a", "resnet50", "-a", "alexnet", "--weights", "IMAGENET1K_V2", "--weights", "DEFAULT"],
         ["IMAGENET1K_V2", "IMAGENET1K_V1"]),
        (["--preset", "r50", "--candidate-number", "2"], ["IMAGENET1K_V1", "IMAGENET1K_V1"]),
        (["--preset", "r50", "--candidate-number", "2", "--weights", "DEFAULT", "--weights", "IMAGENET1K_V1"],
         ["IMAGENET1K_V2", "IMAGENET1K_V1"]),
    ):  # fmt: skip
        library.clear()
        target = tmp_path / "-".join([*more, "labels"])
        result = run(relabel_FKD, *library_words(tiny, target, *more))
        assert result.code == 0, result.err
        teachers = open_labels(target).provenance()["settings"]["teachers"]
        assert [teacher["weights"] for teacher in teachers] == expected
        assert [weights for _, weights in library] == expected
        assert f"{teachers[0]['arch']} ({expected[0]})" in result.out


def test_weights_for_the_teachers_without_a_file(tiny, teachers, library, tmp_path):
    """--weights apply in turn; one too many contradicts a --checkpoint."""
    ensemble = ["-a", "resnet18", "-a", "resnet50", "--checkpoint", teachers[0], "--checkpoint", "pretrained"]
    done = run(relabel_FKD, *library_words(tiny, tmp_path / "a", *ensemble, "--weights", "IMAGENET1K_V2"))
    assert done.code == 0, done.err
    assert library == [("resnet50", "IMAGENET1K_V2")]
    both = [*ensemble, "--weights", "IMAGENET1K_V1", "--weights", "IMAGENET1K_V1"]
    for words, sentence in (
        (both, f"contradicts --checkpoint {teachers[0]}"),
        (["-a", "resnet18", "--checkpoint", teachers[0], "--weights", "DEFAULT"], "contradicts --checkpoint"),
        (["-a", "resnet18", "-a", "resnet50", "--weights", "DEFAULT"], "1 --weights for 2 teachers"),
        (["-a", "resnet18", "--weights", "V7"], "--weights V7: resnet18 has no such weights"),
    ):
        refused = run(relabel_FKD, *library_words(tiny, tmp_path / "b", *words))
        assert (refused.code, sentence in refused.err) == (2, True), refused.err


def test_a_store_of_other_weights_is_not_continued(tiny, library, tmp_path):
    """A store that does not name its weights was made with the newest ones."""
    words = library_words(tiny, tmp_path / "labels", "-a", "resnet50")
    assert run(relabel_FKD, *words).code == 0
    other = run(relabel_FKD, *words, "--weights", "IMAGENET1K_V2")
    assert other.code == 2
    assert "teachers is resnet50 (IMAGENET1K_V1), not resnet50 (IMAGENET1K_V2); use the same, or another" in other.err
    manifest = tmp_path / "labels" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("IMAGENET1K_V1", "pretrained"))
    earlier = run(relabel_FKD, *words)
    assert earlier.code == 2
    assert "teachers is resnet50 (pretrained, without a name), not resnet50 (IMAGENET1K_V1)" in earlier.err


def test_weights_of_a_live_teacher(tiny, teachers, library, tmp_path):
    """The summary names them, and a resumed run cannot have others."""
    words = [*tiny.flags(tmp_path / "kd", fkd_path=None, epochs=1), "--teacher-model", "resnet50"]
    done = run(train_KD_parallel, *words, "--teacher-weights", "DEFAULT")
    assert done.code == 0, done.err
    described = [{"arch": "resnet50", "weights": "IMAGENET1K_V2"}]
    assert json.loads((tmp_path / "kd" / "summary.json").read_text())["labels"]["teachers"] == described
    assert "teacher resnet50 (IMAGENET1K_V2) answers live" in done.out
    resumed = run(train_KD_parallel, *words, "--resume")
    assert (resumed.code, "IMAGENET1K_V2" in resumed.err, "IMAGENET1K_V1" in resumed.err) == (2, True, True)
    for more, sentence in (
        (["--teacher-checkpoint", teachers[0]], "contradicts --teacher-checkpoint"),
        (["--loss-type", "ce"], "--teacher-weights has no effect with --loss-type ce"),
    ):
        refused = run(train_KD_parallel, *words, "--teacher-weights", "DEFAULT", *more)
        assert (refused.code, sentence in refused.err) == (2, True)


def test_teachers_of_fewer_classes_than_folders(tiny, teachers, tmp_path):
    """Both scripts refuse them before the first epoch."""
    more = make_images(tmp_path / "more", classes=4)
    words = tiny.flags(tmp_path / "kd", fkd_path=None, train_dir=more, val_dir=more)
    refused = run(train_KD_parallel, *words, "--teacher-checkpoint", teachers[0])
    assert refused.code == 2
    assert f"--teacher-model resnet18 has 3 classes, but --train-dir {more} has 4 class folders" in refused.err
    words = relabel_words(tiny, teachers, tmp_path / "labels")
    words[1] = str(more)
    refused = run(relabel_FKD, *words)
    assert refused.code == 2
    assert f"--arch resnet18 has 3 classes, but --data {more} has 4 class folders" in refused.err
    assert not (tmp_path / "labels").exists()


def test_teachers_of_different_numbers_of_classes(tmp_path):
    """The error names each teacher with its number."""
    for name, classes in (("resnet18", 3), ("alexnet", 4)):
        torch.save(build_student(name, classes, 0).state_dict(), tmp_path / name)
    names = ["resnet18", "alexnet"]
    with pytest.raises(InputError, match=r"--arch: teachers .* \(resnet18 3, alexnet 4\)"):
        Ensemble(names, [tmp_path / name for name in names], "mean", FP32, input_size=64)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_transformers_at_32_px(name, tiny, tmp_path):
    """They work as students and as teachers."""
    torch.save(build_student(name, 3, 0, input_size=SIDE).state_dict(), tmp_path / "teacher.pth")
    words = tiny.flags(tmp_path / "kd", fkd_path=None, epochs=1, model=name)
    done = run(train_KD_parallel, *words, "--teacher-model", name, "--teacher-checkpoint", tmp_path / "teacher.pth")
    assert done.code == 0, done.err


def test_models_that_cannot_take_the_size(tiny, tmp_path):
    """One sentence names both flags, for students and for teachers."""
    torch.save(build_student("inception_v3", 3, 0).state_dict(), tmp_path / "teacher.pth")
    words = tiny.flags(tmp_path / "kd", fkd_path=None, epochs=1)
    teacher = ["--teacher-model", "inception_v3", "--teacher-checkpoint", tmp_path / "teacher.pth"]
    for result, flags in (
        (run(train_KD_parallel, *words, *teacher), "--teacher-model inception_v3"),
        (run(train_KD_parallel, *words, "--loss-type", "ce", "--model", "inception_v3"), "--model inception_v3"),
        (run(train_KD_parallel, *words, "--loss-type", "ce", "--model", "maxvit_t"), "--model maxvit_t"),
    ):
        assert result.code == 2
        assert len(result.err.splitlines()) == 1
        assert flags in result.err
        assert f"--input-size {SIDE}" in result.err
        assert ". " not in result.err


@pytest.fixture
def loud(teachers, tmp_path):
    """Write a teacher whose first class has logits near 70,000."""
    state = torch.load(teachers[0], weights_only=True)
    state["fc.bias"][0] += 70000
    torch.save(state, tmp_path / "loud.pth")
    return [tmp_path / "loud.pth"]


@pytest.mark.parametrize(
    "more",
    [["--use-fp16"], ["--format", "tar", "--use-fp16"], ["--bits", 16, "--keep-topk", 2], ["--use-fp16", "--dry-run"]],
    ids=lambda more: " ".join(map(str, more)),
)
def test_logits_beyond_half_precision_are_refused(more, tiny, loud, tmp_path):
    """Nothing is written; 32 bits, and 8 bits with ranges in single precision, can hold them."""
    refused = run(relabel_FKD, *relabel_words(tiny, loud, tmp_path / "labels", *more))
    assert refused.code == 2
    assert "is 70000" in refused.err or "is 69999" in refused.err or "is 70001" in refused.err
    assert "is 65504; use --bits 32" in refused.err
    assert not (tmp_path / "labels").exists()
    for bits in (32, 8):
        target = tmp_path / f"bits{bits}"
        assert run(relabel_FKD, *relabel_words(tiny, loud, target, "--bits", bits)).code == 0
        assert open_labels(target).read(0, 0).logits[:, 0].min() > 65504


def test_a_last_batch_of_one_image(tiny, teachers, tmp_path):
    """Relabelling warns and names the flag, training refuses; other batch sizes give no warning."""
    words = relabel_words(tiny, teachers, tmp_path / "labels")
    for size, warned in ((11, True), (5, False), (12, False)):
        words[words.index("-b") + 1] = str(size)
        done = run(relabel_FKD, *words, "--dry-run")
        assert done.code == 0, done.err
        assert ("is a single image" in done.out + done.err) == warned
    words[words.index("-b") + 1] = "11"
    assert run(relabel_FKD, *words).code == 0
    flags = tiny.flags(tmp_path / "run", fkd_path=tmp_path / "labels", batch_size=11, epochs=1)
    refused = run(train_FKD_parallel, *flags)
    assert (refused.code, "cannot train on a micro-batch of 1" in refused.err) == (2, True)
