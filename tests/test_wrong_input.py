"""Wrong input gives one line on stderr that names the flag or the file, exit code 2, and no traceback."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import Command, make_images, make_labels, run
from PIL import Image

import train_FKD_parallel


def missing_batch(tmp_path, tiny):
    labels = make_labels(tmp_path / "labels")
    (labels / "epoch_1" / "batch_1.tar").unlink()
    return {"fkd_path": labels}, ["epoch_1/batch_1.tar", "missing"]


def truncated_batch(tmp_path, tiny):
    labels = make_labels(tmp_path / "labels")
    path = labels / "epoch_0" / "batch_1.tar"
    path.write_bytes(path.read_bytes()[:500])
    return {"fkd_path": labels}, ["epoch_0/batch_1.tar", "damaged"]


def broken_image(tmp_path, tiny, workers=0):
    train = make_images(tmp_path / "train")
    (train / "class_2" / "3.png").write_bytes(b"\x89PNG broken")
    return {"train_dir": train, "workers": workers, "loader": "workers"}, ["class_2/3.png", "decoded"]


def empty_class(tmp_path, tiny):
    train = make_images(tmp_path / "train")
    (train / "class_9").mkdir()
    return {"train_dir": train}, ["--train-dir", "class_9"]


def other_image_count(tmp_path, tiny):
    train = make_images(tmp_path / "train", per_class=5)
    return {"train_dir": train}, ["--train-dir", "15 images", "12"]


def other_class_count(tmp_path, tiny):
    return {"val_dir": make_images(tmp_path / "val", classes=2)}, [
        "--val-dir",
        "no folder of --val-dir belongs to class class_2",
    ]


def more_folders_than_classes(tmp_path, tiny):
    train, val = make_images(tmp_path / "train", 4, 3), make_images(tmp_path / "val", 4, 1)
    return {"train_dir": train, "val_dir": val}, ["--train-dir", "4 classes", "3"]


def a_file_as_output(tmp_path, tiny):
    (tmp_path / "file").write_text("")
    return {"output_dir": tmp_path / "file"}, ["--output-dir", "file"]


def output_below_a_file(tmp_path, tiny):
    (tmp_path / "file").write_text("")
    return {"output_dir": tmp_path / "file" / "run"}, ["--output-dir", "file"]


def hostile_labels(tmp_path, tiny):
    labels = make_labels(tmp_path / "labels")
    torch.save([Command(tmp_path / "ran")], labels / "epoch_0" / "batch_0.tar")
    return {"fkd_path": labels}, ["batch_0.tar", "refused", "system"]


def foreign_checkpoint(tmp_path, tiny):
    torch.save({"state_dict": {}}, tmp_path / "other.pth")
    return {"resume": tmp_path / "other.pth"}, ["other.pth"]


CASES = {
    "no train-dir": ({"train_dir": "/none/train"}, ["--train-dir", "/none/train"]),
    "train-dir left out": ({"train_dir": None}, ["--train-dir"]),
    "val-dir left out": ({"val_dir": None}, ["--val-dir"]),
    "no val-dir": ({"val_dir": "/none/val"}, ["--val-dir"]),
    "fkd-path left out": ({"fkd_path": None}, ["--fkd-path"]),
    "no fkd-path": ({"fkd_path": "/none/labels"}, ["--fkd-path", "/none/labels"]),
    "batch size": ({"batch_size": 6}, ["--batch-size 6", "5"]),
    "zero batch size": ({"batch_size": 0}, ["--batch-size"]),
    "epochs": ({"epochs": 4}, ["--epochs 4", "3 epochs"]),
    "zero epochs": ({"epochs": 0}, ["--epochs"]),
    "start-epoch": ({"start_epoch": 3}, ["--start-epoch 3", "--epochs 3"]),
    "mix-type": ({"mix_type": "mixup"}, ["--mix-type mixup", "cutmix"]),
    "mix-type None": ({"mix_type": "None"}, ["--mix-type None", "cutmix"]),
    "unknown mix-type": ({"mix_type": "cutout"}, ["--mix-type", "cutout"]),
    "unknown model": ({"model": "resnet19"}, ["--model resnet19", "resnet18"]),
    "no ResNet stem": ({"model": "mobilenet_v2", "stem": "small"}, ["--stem", "mobilenet_v2"]),
    "unknown loss": ({"loss_type": "l2"}, ["--loss-type", "l2", "mse_gt"]),
    "accumulation": ({"gradient_accumulation_steps": 2}, ["--batch-size 5", "--gradient-accumulation-steps 2"]),
    "keep-topk": ({"keep_topk": 4}, ["--keep-topk 4", "3"]),
    "input size": ({"input_size": 8}, ["--input-size 8"]),
    "a rate below zero": (
        {"schedule": "linear-smoothed", "smoothing": 0.5},
        ["--smoothing 0.5", "--schedule linear-smoothed"],
    ),
    "T squared of no temperature": ({"loss_type": "gift", "loss_scale_t2": True}, ["--loss-scale-t2", "gift", "kl"]),
    "T squared of DIST": ({"loss_type": "dist", "loss_scale_t2": True}, ["--loss-scale-t2", "dist", "kl"]),
    "nothing left of the logits": ({"loss_type": "kl", "logit_smoothing": 1}, ["--logit-smoothing 1", "less than 1"]),
    "val-resize": ({"val_resize": "squish"}, ["--val-resize", "squish", "squash"]),
    "buffers of no average": ({"ema_buffers": "live"}, ["--ema-buffers live", "--ema-decay"]),
    "two schedules": ({"cos": True, "schedule": "linear"}, ["--cos", "--schedule linear"]),
    "resume and overwrite": ({"resume": True, "overwrite": True}, ["--resume", "--overwrite"]),
    "resume nothing": ({"resume": True}, ["checkpoint.pth.tar"]),
    "resume without a folder": ({"resume": True, "output_dir": None}, ["--resume", "--output-dir"]),
    "misspelled flag": ({"epocs": 3}, ["--epocs", "--epochs"]),
    "abbreviated flag": ({"temp": 3}, ["--temp"]),
    "not a number": ({"epochs": "many"}, ["--epochs", "many"]),
    "negative rate": ({"adamw_lr": -1}, ["--adamw-lr"]),
    "infinite rate": ({"learning_rate": "inf"}, ["--learning-rate"]),
    "nan": ({"temperature": "nan"}, ["--temperature"]),
    "wandb without project": ({"wandb_mode": "offline"}, ["--wandb-mode offline", "--wandb-project"]),
    "fp16 on the CPU": ({"precision": "fp16"}, ["--precision fp16"]),
    "unknown device": ({"device": "tpu"}, ["--device", "tpu"]),
    **{
        case.__name__: case
        for case in (
            *(missing_batch, truncated_batch, broken_image, empty_class, other_image_count, other_class_count),
            *(more_folders_than_classes, a_file_as_output, output_below_a_file, hostile_labels, foreign_checkpoint),
        )
    },
    "broken_image in a worker": lambda tmp_path, tiny: broken_image(tmp_path, tiny, workers=2),
}


def assert_one_line(code, err, words):
    assert code == 2, err
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    for word in words:
        assert word in err


@pytest.mark.parametrize("name", CASES)
def test_wrong_input_gives_one_line(name, tiny, tmp_path):
    """Each case changes flags and lists words of the line."""
    case = CASES[name]
    changed, words = case(tmp_path, tiny) if callable(case) else case
    started = time.monotonic()
    result = run(train_FKD_parallel, *tiny.flags(tmp_path / "run", **changed))
    assert time.monotonic() - started < 10
    assert_one_line(result.code, result.err, words)
    assert not (tmp_path / "ran").exists()
    if "image" not in name:  # found before any folder is made
        assert not (tmp_path / "run" / "metrics.csv").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_cuda_device_is_named(tiny, tmp_path):
    """--device cuda where there is none."""
    for name in ("cuda", "cuda:1", "mps", "xpu"):
        result = run(train_FKD_parallel, *tiny.flags(tmp_path / "run", device=name))
        assert_one_line(result.code, result.err, [f"--device {name}", "--device cpu"])


@pytest.mark.parametrize("content", ["nothing", "files only"])
def test_a_folder_without_class_folders_is_named(content, tiny, tmp_path):
    """A folder without class folders."""
    (tmp_path / "train").mkdir()
    if content == "files only":
        Image.new("RGB", (8, 8)).save(tmp_path / "train" / "a.png")
    result = run(train_FKD_parallel, *tiny.flags(tmp_path / "run", train_dir=tmp_path / "train"))
    assert_one_line(result.code, result.err, ["--train-dir", str(tmp_path / "train")])
    result = run(train_FKD_parallel, *tiny.flags(tmp_path / "run", fkd_path=tmp_path / "train"))
    assert_one_line(result.code, result.err, ["--fkd-path", "epoch_0"])


def test_as_a_real_command(tiny, tmp_path):
    """A process has the same exit code and stderr, and prints no traceback."""
    script = Path(train_FKD_parallel.__file__)
    command = [sys.executable, str(script), *tiny.flags(tmp_path / "run", batch_size=7)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert_one_line(done.returncode, done.stderr, ["--batch-size 7"])
    assert not (tmp_path / "run").exists()
