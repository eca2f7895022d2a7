"""metrics.csv and summary.json: the figures of a run."""

import contextlib
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch
import torchvision

from utils.run.checkpoint import Progress

COLUMNS = (
    "epoch lr train_loss train_top1 train_top5 train_seconds train_images_per_second "
    "val_loss val_top1 val_top5 val_seconds teacher_temperature student_temperature"
).split()


def format_value(value: object) -> str:
    """A metrics.csv cell: empty for None, seven significant digits for floats."""
    if value is None:
        return ""
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def describe_epoch(row: dict[str, Any], epochs: int) -> str:
    """One log line for an epoch's row of metrics."""
    text = (
        f"epoch {row['epoch']:>3}/{epochs}  lr {row['lr']:.2e}  train loss {row['train_loss']:.4f}  "
        f"top-1 {row['train_top1']:5.2f}%  {row['train_images_per_second']:.0f} images/s"
    )
    if row["val_top1"] is not None:
        text += f"  |  val loss {row['val_loss']:.4f}  top-1 {row['val_top1']:.2f}%  top-5 {row['val_top5']:.2f}%"
    return text


def versions(device_type: str = "auto") -> dict[str, str]:
    """Versions that a figure should be published with, and the name of the device: `cpu`, `cuda`, or CUDA if it can."""
    on_gpu = device_type != "cpu" and torch.cuda.is_available()
    device = torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "device_name": device,
    }


def git_commit() -> str | None:
    """Commit of this program, with `-dirty` where files were changed; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    return None


def describe_images(folder: str, samples: list[tuple[str, int]]) -> dict:
    """Say which images a run was trained or evaluated on: folder, number, bytes of their files."""
    size = sum(os.path.getsize(path) for path, _ in samples)
    return {"folder": str(folder), "number": len(samples), "bytes": size}


def summarise(
    progress: Progress,
    arguments: dict[str, Any],
    labels: dict[str, Any],
    images: dict[str, Any],
    validation: dict[str, Any],
) -> dict[str, Any]:
    """Build summary.json: the last epoch is the headline, best is marked as picked on the validation set.

    Args:
        progress: `Progress` of the run.
        arguments: public arguments.
        labels: where the soft labels came from.
        images, validation: what `describe_images` says about the training and the validation images, and a `digest`
            of each, by content: two sets with the same file names have different ones.
    """
    evaluated = [row for row in progress.history if row["val_top1"] is not None]
    last = evaluated[-1] if evaluated else None
    best = max(evaluated, key=lambda row: row["val_top1"], default=None)
    train_seconds = sum(row["train_seconds"] for row in progress.history)
    return {
        "last": evaluation_of(last) if last else None,
        "best": evaluation_of(best) | {"note": "picked on the validation set"} if best else None,
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


def evaluated_weights(ema_decay: float | None, ema_buffers: str | None) -> str:
    """Which weights the figures are about."""
    if ema_decay is None:
        return "of the last step"
    live = ", with the running statistics of the last step" if ema_buffers == "live" else ""
    return f"averaged over all steps, decay {ema_decay}{live}"


def evaluation_of(row: dict[str, Any]) -> dict[str, Any]:
    """The part of a history row that an evaluation produced."""
    return {"epoch": row["epoch"], "top1": row["val_top1"], "top5": row["val_top5"], "loss": row["val_loss"]}
