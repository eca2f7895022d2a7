"""Grey images of 28 px reach networks with one channel in a whole run: training, evaluation, resume, teacher."""

import json

import numpy as np
import pytest
import torch
from helpers import run
from PIL import Image

import train_KD_parallel
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


@pytest.mark.parametrize("channels", [1, 3])
def test_a_live_teacher_of_grey_images(tmp_path, channels):
    """The teacher's file must be of grey images too."""
    state = build_student("convnet3_w8", CLASSES, 1, input_size=SIDE, in_channels=channels).state_dict()
    torch.save(state, tmp_path / "teacher.pth")
    flags = ["--loss-type", "kl", "--teacher-model", "convnet3_w8", "--teacher-checkpoint", tmp_path / "teacher.pth"]
    done, found = train(tmp_path, *flags, "--accept-labels")
    if channels == 1:
        assert done.code == 0, done.err
        assert found == 1
    else:
        assert done.code == 2
        assert "--teacher-model convnet3_w8 cannot answer" in done.err
        assert "Traceback" not in done.err
