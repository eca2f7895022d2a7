"""Prepare the results of a run for the files metrics.csv and summary.json, and for the log."""

import contextlib
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch
import torchvision

from utils.data.images import Samples, image_bytes
from utils.run.checkpoint import Progress

COLUMNS = (
    "epoch lr train_loss train_top1 train_top5 train_seconds train_images_per_second "
    "val_loss val_top1 val_top5 val_seconds teacher_temperature student_temperature"
).split()


def format_value(value: object) -> str:
    """Return a value as text for metrics.csv: None becomes an empty cell, a float gets seven significant digits."""
    if value is None:
        return ""
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def describe_epoch(row: dict[str, Any], epochs: int) -> str:
    """Return the log line of a finished epoch. It counts epochs from 1; metrics.csv counts them from 0.

    Args:
        row: the epoch's row of metrics.csv.
        epochs: number of epochs of the whole run.
    """
    text = (
        f"epoch {row['epoch'] + 1:>3}/{epochs}  lr {row['lr']:.2e}  train loss {row['train_loss']:.4f}  "
        f"train top-1 {row['train_top1']:5.2f}%  {row['train_images_per_second']:.0f} images/s"
    )
    if row["val_top1"] is not None:
        text += f"  |  val loss {row['val_loss']:.4f}  val top-1 {row['val_top1']:.2f}%"
        text += f"  val top-5 {row['val_top5']:.2f}%"
    return text


def versions(device_type: str = "auto") -> dict[str, str]:
    """Return the versions of Python, PyTorch and torchvision, and the name of the GPU or the CPU.

    The entry `device_name` is the GPU's name if `device_type` is `auto` or `cuda` and PyTorch finds a GPU; otherwise,
    it is the CPU's name.
    """
    on_gpu = device_type in ("auto", "cuda") and torch.cuda.is_available()
    device = torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "device_name": device,
    }


def git_commit() -> str | None:
    """Return the git commit of this program, with `-dirty` if files were changed; None outside a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    return None


def describe_images(folder: str, samples: Samples) -> dict:
    """Describe the images of a run for summary.json: folder, numbers of images and classes, and total size in bytes.

    Args:
        folder: --train-dir or --val-dir.
        samples: (image, class) of every image.
    """
    size = sum(image_bytes(image) for image, _ in samples)
    classes = len({target for _, target in samples})
    return {"folder": str(folder), "number": len(samples), "classes": classes, "bytes": size}


def summarise(
    progress: Progress,
    arguments: dict[str, Any],
    labels: dict[str, Any],
    images: dict[str, Any],
    validation: dict[str, Any],
) -> dict[str, Any]:
    """Return the content of summary.json.

    Its entry `last` holds the last evaluation, which is the result to report. Its entry `best` holds the best
    evaluation, with a note that it was picked on the validation set, and from which epoch on with --eval-from.

    Args:
        progress: `Progress` of the run.
        arguments: settings of the run, as in args.json.
        labels: origin of the soft labels.
        images: description of the training images: the dict from `describe_images`, plus the key `digest`.
        validation: description of the validation images, with the same keys.
    """
    evaluated = [row for row in progress.history if row["val_top1"] is not None]
    last = evaluated[-1] if evaluated else None
    best = max(evaluated, key=lambda row: row["val_top1"], default=None)
    train_seconds = sum(row["train_seconds"] for row in progress.history)
    return {
        "last": evaluation_of(last) if last else None,
        "best": evaluation_of(best) | {"note": how_picked(arguments.get("eval_from"))} if best else None,
        "evaluated_weights": evaluated_weights(arguments.get("ema_decay"), arguments.get("ema_buffers")),
        "epochs_done": progress.epoch,
        "train_images_per_second": images["number"] * len(progress.history) / train_seconds if train_seconds else None,
        "seconds": progress.seconds,
        "args": arguments,
        "labels": labels,
        "images": images,
        "validation": validation,
        "versions": versions(arguments.get("device", "auto")),
        "git_commit": git_commit(),
    }


def how_picked(eval_from: int | None) -> str:
    """Describe in words from which evaluations the best one was picked.

    Args:
        eval_from: --eval-from; 0 or None if all evaluations count.
    """
    among = f", among the evaluations from epoch {eval_from} on" if eval_from else ""
    return f"picked on the validation set{among}"


def evaluated_weights(ema_decay: float | None, ema_buffers: str | None) -> str:
    """Describe in words which weights were evaluated: those of the last step, or the EMA weights.

    Args:
        ema_decay: decay of the EMA; None without EMA.
        ema_buffers: `live` if the EMA weights use the batch norm statistics of the last step, `averaged` if they use
            averaged statistics; ignored without EMA.
    """
    if ema_decay is None:
        return "of the last step"
    live = ", with the running statistics of the last step" if ema_buffers == "live" else ""
    return f"averaged over all steps, decay {ema_decay}{live}"


def evaluation_of(row: dict[str, Any]) -> dict[str, Any]:
    """Return epoch, top-1, top-5 and validation loss from the metrics.csv row of an evaluated epoch."""
    return {"epoch": row["epoch"], "top1": row["val_top1"], "top5": row["val_top5"], "loss": row["val_loss"]}
