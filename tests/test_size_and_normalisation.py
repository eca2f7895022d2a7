"""--input-size, --mean, --std and --val-resize follow the labels; contradictions are refused."""

import json

import pytest
import torch
from helpers import EPOCHS, LIGHT, SIDE, Tiny, make_images, make_labels, relabel_flags, run, save_teacher
from PIL import Image

import relabel_FKD
import train_FKD_parallel
from utils.config import IMAGENET_MEAN, default_val_resize
from utils.data.identity import pixel_digest
from utils.data.replay import Normalise
from utils.data.validation import CentreCrops, ValidationBatches
from utils.labels.command import main as labels_command

GREY = "0.5 0.5 0.5".split()


@pytest.fixture(params=["packed", "tar", "unpacked", "packed again"])
def packed(request, tiny, tmp_path):
    """Write labels of 32 px, normalised by 0.5, without boxes, in one of the formats or converted to the other."""
    teacher = save_teacher(tmp_path / "teacher.pth")
    more = ["--mean", *GREY, "--std", *GREY, "--mix-type", "mixup"]
    words = relabel_flags(tiny.train, teacher, tmp_path / "packed", *more, arch=LIGHT, epochs=EPOCHS)
    first = "tar" if request.param in ("tar", "packed again") else "packed"
    done = run(relabel_FKD, *words, "--format", first)
    assert done.code == 0, done.err
    labels = tmp_path / "packed"
    if request.param in ("unpacked", "packed again"):
        labels = tmp_path / "turned"
        command = "unpack" if request.param == "unpacked" else "pack"
        assert labels_command([command, str(tmp_path / "packed"), str(labels)]) == 0
    return Tiny(tiny.train, tiny.val, labels)


def test_packed_labels_state_size_and_normalisation(packed, tmp_path):
    """No flag is needed: the run has the values of relabelling."""
    words = packed.flags(tmp_path / "run", input_size=None, epochs=1)
    done = run(train_FKD_parallel, *words)
    assert done.code == 0, done.err
    args = json.loads((tmp_path / "run" / "args.json").read_text())
    assert (args["input_size"], args["val_resize"]) == (SIDE, SIDE)
    assert args["mean"] == args["std"] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("flag", "values", "stated"),
    [("--input-size", ["224"], "32"), ("--mean", ["0.4", "0.5", "0.5"], "0.5 0.5 0.5")],
)
def test_a_contradiction_is_refused(packed, tmp_path, flag, values, stated):
    """The error names both values."""
    done = run(train_FKD_parallel, *packed.flags(tmp_path / "run", input_size=None), flag, *values)
    assert done.code == 2
    assert f"{flag} {' '.join(values)} contradicts the labels" in done.err
    assert f"made with {stated}" in done.err


def test_boxes_say_the_size_of_tar_labels(tiny, tmp_path):
    """Nine batches are enough to infer the size, and the log names the source."""
    done = run(train_FKD_parallel, *tiny.flags(tmp_path / "run", input_size=None, epochs=1))
    assert done.code == 0, done.err
    assert f"views of {SIDE} px, to which their cutmix boxes reach" in done.out
    assert json.loads((tmp_path / "run" / "args.json").read_text())["input_size"] == SIDE


def test_many_boxes_contradict_a_larger_size(tiny, tmp_path):
    """One of 32 boxes reaches the edge, except with probability 0.46 to the power of 32."""
    labels = make_labels(tmp_path / "many", epochs=11)
    done = run(train_FKD_parallel, *Tiny(tiny.train, tiny.val, labels).flags(tmp_path / "run", input_size=64))
    assert done.code == 2
    assert f"--input-size 64 contradicts the labels in {labels}, which were made with {SIDE}" in done.err


def test_labels_without_boxes_leave_the_usual_values(tiny, tmp_path):
    """Nothing is stated, so nothing contradicts the flags."""
    labels = make_labels(tmp_path / "none", mix_type="none")
    args = Tiny(tiny.train, tiny.val, labels).train_run(tmp_path / "run", input_size=None, epochs=1).summary["args"]
    assert args["input_size"] == 224
    assert tuple(args["mean"]) == IMAGENET_MEAN


@pytest.mark.parametrize(("size", "resize"), [(32, 32), (64, 64), (127, 127), (128, 146), (224, 256), (288, 329)])
def test_small_validation_images_are_not_magnified(size, resize):
    """The ratio 256/224 applies from 128 px on."""
    assert default_val_resize(size) == resize


def test_validation_images_of_the_right_size_come_as_they_are(tmp_path):
    """A 32 px validation image reaches the student bit by bit; resized to 36 px it does not."""
    folder = make_images(tmp_path / "val", classes=1, per_class=1, size=(32, 32))
    path = str(folder / "class_0" / "0.png")
    image, target, _ = CentreCrops([(path, 0)], 32, default_val_resize(32))[0]
    pixels = torch.frombuffer(bytearray(Image.open(path).tobytes()), dtype=torch.uint8).view(32, 32, 3)
    assert target == 0
    assert torch.equal(image, pixels)
    assert not torch.equal(CentreCrops([(path, 0)], 32, 36)[0][0], pixels)


def test_val_resize_is_in_the_summary_and_must_not_change(tiny, tmp_path):
    """It changes the validation metrics."""
    summary = tiny.train_run(tmp_path / "run", epochs=1, val_resize=40).summary
    assert summary["args"]["val_resize"] == 40
    done = run(train_FKD_parallel, *tiny.flags(tmp_path / "run", epochs=1, val_resize=36), "--resume")
    assert done.code == 2
    assert "--val-resize was 40 and is 36" in done.err


def test_val_resize_below_the_crop_is_refused(tiny, tmp_path):
    """The crop would have black edges."""
    done = run(train_FKD_parallel, *tiny.flags(tmp_path / "run", val_resize=16))
    assert done.code == 2
    assert "--val-resize 16 is less than --input-size 32" in done.err


def test_the_digest_of_validation_images_is_taken_once(tmp_path):
    """It covers images and classes, in any order and at any size, and needs no extra pass."""
    folder = make_images(tmp_path / "val", classes=2, per_class=3)
    samples = [(str(path), int(path.parent.name[-1])) for path in sorted(folder.rglob("*.png"))]
    normalise = Normalise(IMAGENET_MEAN, IMAGENET_MEAN, "cpu")

    def digest(samples, size=32):
        batches = ValidationBatches(samples, size, normalise, 0, torch.device("cpu"), batch_size=4)
        assert batches.digest is None
        assert sum(len(targets) for _, targets in batches) == len(samples)
        first = batches.digest
        list(batches)
        assert batches.digest == first
        return first

    usual = digest(samples)
    assert digest(samples[::-1]) == usual
    assert digest(samples, size=24) == usual
    assert digest([(path, 1 - target) for path, target in samples]) != usual
    assert digest(samples[1:]) != usual
    assert len(pixel_digest(Image.open(samples[0][0]))) == 8
