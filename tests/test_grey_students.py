"""Grey images of 28 px reach networks with one channel in a whole run: training, evaluation, resume, teachers."""

import json

import numpy as np
import pytest
import torch
from helpers import relabel_flags, run
from PIL import Image

import relabel_FKD
import train_KD_parallel
from utils.labels.command import main as labels_command
from utils.labels.formats import open_labels
from utils.run import teacher_check
from utils.training.models import build_student

CLASSES, SIDE = 3, 28


def write_set(folder, channels, per_class=4):
    """Write folders of noise, grey or coloured."""
    rng = np.random.default_rng(0)
    for name in "abc"[:CLASSES]:
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            pixels = rng.integers(0, 256, (SIDE, SIDE, channels), dtype=np.uint8)
            Image.fromarray(pixels.squeeze()).save(folder / name / f"{i}.png")


def train(tmp_path, *flags, channels=1, model="convnet3_w8"):
    """Train one epoch; return the result and the number of channels of the saved model."""
    for name in ("train", "val"):
        if not (tmp_path / name).exists():
            write_set(tmp_path / name, channels)
    done = run(
        train_KD_parallel,
        *("--train-dir", tmp_path / "train", "--val-dir", tmp_path / "val", "--model", model, "--input-size", SIDE),
        *("--epochs", 1, "--batch-size", 12, "--augment", "none", "--device", "cpu", "-j", 0),
        *("--output-dir", tmp_path / "out", *flags),
    )
    if done.code:
        return done, None
    state = torch.load(tmp_path / "out" / "checkpoint.pth.tar", weights_only=True)["state_dict"]
    return done, min(tensor.shape[1] for tensor in state.values() if tensor.dim() == 4)


@pytest.mark.parametrize(
    ("model", "channels", "expected"), [("convnet3_w8", 1, 1), ("dc_lenet", 1, 1), ("ConvNetD3", 3, 3)]
)
def test_the_model_has_the_channels_of_the_images(tmp_path, model, channels, expected):
    """A whole run on plain labels; the settings say how many channels."""
    done, found = train(tmp_path, "--loss-type", "ce", channels=channels, model=model)
    assert done.code == 0, done.err
    assert found == expected
    assert json.loads((tmp_path / "out" / "args.json").read_text())["channels"] == expected
    again, _ = train(tmp_path, "--loss-type", "ce", "--resume", channels=channels, model=model)
    assert again.code == 0, again.err


def test_a_model_of_three_channels_gets_grey_values_in_all(tmp_path):
    done, _ = train(tmp_path, "--loss-type", "ce", model="shufflenet_v2_x0_5")
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "out" / "args.json").read_text())["channels"] == 3


def save_teacher_of(channels, file, seed=1):
    """Save the weights of a ConvNet for images of `channels` channels; return the file."""
    torch.save(build_student("convnet3_w8", CLASSES, seed, input_size=SIDE, in_channels=channels).state_dict(), file)
    return file


@pytest.mark.parametrize("channels", [1, 3])
def test_a_live_teacher_of_grey_images(tmp_path, channels):
    """The file of the teacher decides how many channels the teacher and the student get."""
    flags = ["--loss-type", "kl", "--teacher-model", "convnet3_w8"]
    flags += ["--teacher-checkpoint", save_teacher_of(channels, tmp_path / "teacher.pth")]
    done, found = train(tmp_path, *flags, "--accept-labels")
    assert done.code == 0, done.err
    assert found == channels


@pytest.mark.parametrize("channels", [1, 3])
def test_stored_labels_of_grey_images(tmp_path, channels, capsys):
    """A teacher of three channels gets the grey values in all; `verify` asks it in the same way."""
    images = tmp_path / "train"
    write_set(images, 1)
    teachers = [save_teacher_of(channels, tmp_path / f"{seed}.pth", seed) for seed in (1, 2)]
    words = relabel_flags(images, teachers[0], tmp_path / "labels", "--accept-labels", arch="convnet3_w8", epochs=1)
    done = run(relabel_FKD, *words)
    assert done.code == 0, done.err
    assert len(open_labels(tmp_path / "labels").settings["mean"]) == channels
    asked = ["verify", str(tmp_path / "labels"), "--images", str(images), "--arch", "convnet3_w8", "--checkpoint"]
    assert labels_command([*asked, str(teachers[0])], teacher_check.run) == 0
    assert "these labels are this teacher's answers to these images" in capsys.readouterr().out
    assert labels_command([*asked, str(teachers[1])], teacher_check.run) == 2
    assert "these labels are not this teacher's answers" in capsys.readouterr().err
