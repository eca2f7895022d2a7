"""Folder names that are not UTF-8 or very long cause no traceback and lose nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import LIGHT, SIDE, make_images, read_run, run
from PIL import Image
from safetensors.torch import save_file

import relabel_FKD
import train_FKD_parallel
from utils.config import FKDConfig, KDConfig
from utils.labels.formats import open_labels
from utils.run.wandb_log import NoTracker, RunMetadata, start_tracker
from utils.system.errors import InputError, one_line, printable, printable_all, shorten
from utils.training.models import build_model

CAT = os.fsdecode("猫".encode("gbk"))  # an archive from Windows unpacks to such a name
LATIN = os.fsdecode("né".encode("latin-1"))


def renamed(folder, **options):
    """Make images whose last class folder has a name in GBK."""
    make_images(folder, **options)
    (folder / "class_2").rename(folder / CAT)
    return folder


@pytest.fixture
def folders(tmp_path):
    """Make training and validation images below a folder whose name is not UTF-8."""
    try:
        train = renamed(tmp_path / LATIN / "train")
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    return train, renamed(tmp_path / LATIN / "val", per_class=2, seed=1)


def test_printable():
    """Surrogates are shown as the bytes that they stand for; other text is unchanged."""
    assert printable("plain é 猫 …") == "plain é 猫 …"
    assert printable(LATIN) == "n\\xe9"
    assert printable("\ud800") == "\\ud800"
    assert printable_all({LATIN: [1, (LATIN, None)]}) == {"n\\xe9": [1, ("n\\xe9", None)]}
    assert one_line(f"a\nb{LATIN}") == "a\\nbn\\xe9"


@pytest.mark.parametrize(
    ("text", "width", "short"),
    [
        ("one two three", 13, "one two three"),
        ("one two three", 12, "one two …"),
        ("one two, three", 11, "one two …"),
        ("one\n  two", 7, "one two"),
        ("abcdefgh", 5, "abcd…"),
        ("one two three", 9, "one two …"),
    ],
)
def test_shorten(text, width, short):
    """Text is cut at a word, in one line, and never exceeds the width."""
    assert shorten(text, width) == short
    assert len(short) <= width


def test_a_run_on_names_that_are_not_utf_8(folders, tiny, tmp_path, real_curves):
    """Dry run, training and resume draw pictures, print the headline, and read every file back."""
    train, val = folders
    output = tmp_path / LATIN / f"run {LATIN}"
    flags = tiny.flags(output, train_dir=train, val_dir=val, epochs=1)
    dry = run(train_FKD_parallel, *flags, "--dry-run")
    assert dry.code == 0, dry.err
    assert Image.open(output / "views.png").width > 1000
    result = run(train_FKD_parallel, *flags)
    assert result.code == 0, result.err
    assert "last epoch  top-1" in result.out
    assert f"results in {printable(str(output))}" in result.out
    done = read_run(output)
    assert done.summary["args"]["train_dir"] == str(train)
    assert json.loads((output / "args.json").read_text())["train_dir"] == str(train)
    assert Image.open(output / "curves.png").width > 2000
    assert "n\\xe9" in (output / "train.log").read_text(encoding="utf-8")
    resumed = run(train_FKD_parallel, *flags, "--resume")
    assert resumed.code == 0, resumed.err
    assert read_run(output).summary["last"] == done.summary["last"]


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_process_whose_output_lacks_letters(encoding, folders, tiny, tmp_path):
    """With stdout in ASCII or strict UTF-8, every line is printed, and an error is one line."""
    train, val = folders
    command = [sys.executable, train_FKD_parallel.__file__]
    flags = tiny.flags(tmp_path / f"run{LATIN}", train_dir=train, val_dir=val, dry_run=True)
    environment = os.environ | {"PYTHONIOENCODING": f"{encoding}:strict"}
    done = subprocess.run([*command, *flags], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert b"Logging error" not in done.stderr
    assert b"dry run: everything is in place" in done.stdout
    assert b"n\\xe9" in done.stdout
    flags = tiny.flags(tmp_path / "run", train_dir=tmp_path / f"no\n{LATIN}")
    done = subprocess.run([*command, *flags], capture_output=True, env=environment)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert b"no\\nn\\xe9 does not exist" in done.stderr


@pytest.mark.parametrize("kind", ["packed", "tar"])
def test_labels_in_a_folder_that_is_not_utf_8(kind, folders, tmp_path):
    """Labels are written and read back; the log names the teachers, not the classes."""
    train, _ = folders
    labels = tmp_path / f"labels {LATIN}"
    save, suffix = (save_file, "safetensors") if kind == "packed" else (torch.save, "pth")
    save(build_model(LIGHT, 3).state_dict(), tmp_path / "teacher")
    teacher = (tmp_path / "teacher").rename(tmp_path / f"{LATIN}.{suffix}")
    words = ["--data", train, "-a", LIGHT, "--checkpoint", teacher, "-b", 6, "--epochs", 1, "--input-size", SIDE]
    words += ["--fkd-path", labels, "--format", kind, "--device", "cpu", "--workers", 0]
    result = run(relabel_FKD, *words)
    assert result.code == 0, result.err
    assert f"with {LIGHT} (" in result.out
    store = open_labels(labels)
    assert len(store.image_digests) == store.num_images == 12
    assert store.read(0, 0).logits.shape == (6, 3)


def test_wandb_and_a_folder_that_is_not_utf_8(tmp_path, monkeypatch):
    """W&B cannot write there; the run continues without it, and says so."""
    said = []  # pytest's workers cannot send such a name to each other
    monkeypatch.setattr("utils.run.wandb_log.log.info", lambda text, *words: said.append(text))
    folder = Path(tmp_path, LATIN)
    assert isinstance(start_tracker("p", "offline", None, folder, {}, RunMetadata("run", "group", "train")), NoTracker)
    assert any("the run goes on without W&B" in text for text in said)


LONG = "long-" * 60


@pytest.mark.parametrize(
    "flag", ["output_dir", "train_dir", "val_dir", "fkd_path", "resume", "class_order", "class_map"]
)
def test_a_name_longer_than_file_systems_take(flag, tiny, tmp_path):
    """Each flag gives one sentence, in a dry run and in a real run."""
    for dry in (True, None):
        changed = {"output_dir": tmp_path / "run", "dry_run": dry} | {flag: tmp_path / LONG}
        result = run(train_FKD_parallel, *tiny.flags(changed.pop("output_dir"), **changed))
        assert result.code == 2, result.err
        assert len(result.err.splitlines()) == 1
        assert "long-" in result.err


def test_the_default_folder_of_many_models():
    """The name names some models and counts the others, so that it fits."""
    names = [f"some_architecture_{number}" for number in range(14)]
    for models, expected in (
        (["resnet18"], "kd-resnet18-"),
        (["resnet18", "vgg16"], "kd-resnet18+vgg16-"),
        (names, f"kd-{'+'.join(names[:5])}+9-more-"),
        (["m" * 200, "n"], f"kd-{'m' * 200}+1-more-"),
    ):
        config = KDConfig.parse(["--train-dir", "train", "--val-dir", "val", "--model", *models])
        name = Path(config.output_dir).name
        assert name.startswith(expected)
        assert len(name) < 255


def test_a_thousand_names_are_a_few_and_a_count():
    """A pattern that the shell expanded, for example."""
    with pytest.raises(InputError) as error:
        FKDConfig.parse(["--fkd-path", "labels", *(f"image_{number}.png" for number in range(1000))])
    names = "image_0.png, image_1.png, image_2.png, image_3.png, image_4.png and 995 more"
    assert str(error.value) == f"unrecognized arguments: {names}; see --help"
