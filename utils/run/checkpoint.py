"""Save and restore everything that a run's result depends on, atomically."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils.config import EARLIER, FIXED_ON_RESUME
from utils.data.identity import KnownImages
from utils.labels.digests import NAMES, ImageDigests
from utils.system.errors import InputError, clause, shorten
from utils.system.safe_load import WEIGHT_GLOBALS, load_archive, save_archive


@dataclass
class Progress:
    """How far a run has come; a checkpoint stores every field.

    Attributes:
        epoch: index of the epoch in training, or of the next epoch between two epochs.
        batch: number of finished batches of `epoch`.
        sums, samples, epoch_seconds: values of `MetricSums` and training time of these batches.
        history: one dict per trained epoch, with the columns of metrics.csv.
        best_top1, best_epoch: top-1 (percent) and epoch of the best evaluation; None before the first evaluation.
        seconds: wall-clock time of the run, over all interruptions.
        wandb_id: id of the W&B run that --resume continues; None without W&B.
        student_temperature, next_student_temperature: calibrated student temperature of `epoch` and of the next epoch.
        validation: digest of the validation images with their classes; None before the first evaluation.
    """

    epoch: int = 0
    batch: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    samples: int = 0
    epoch_seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best_top1: float | None = None
    best_epoch: int | None = None
    seconds: float = 0.0
    wandb_id: str | None = None
    student_temperature: float = 1.0
    next_student_temperature: float = 1.0
    validation: str | None = None

    def finish_epoch(self, row: dict[str, Any]) -> None:
        """Append `row`, the finished epoch's row of metrics.csv, to the history, and advance to the next epoch."""
        self.history.append(row)
        self.epoch, self.batch = row["epoch"] + 1, 0
        self.sums, self.samples, self.epoch_seconds = [0.0, 0.0, 0.0], 0, 0.0
        self.student_temperature = self.next_student_temperature


def checked(progress: Progress) -> Progress:
    """Return `progress`, read from a file, unchanged; raise ValueError if a value is impossible."""
    counts = progress.epoch, progress.batch, progress.samples
    sound = (
        all(type(n) is int and n >= 0 for n in counts)
        and len(progress.sums) == 3
        and all(isinstance(value, int | float) for value in (*progress.sums, progress.epoch_seconds, progress.seconds))
        and all(isinstance(row, dict) and isinstance(row["epoch"], int) for row in progress.history)
        and all(0 < t <= 1 for t in (progress.student_temperature, progress.next_student_temperature))
        and isinstance(progress.best_top1, int | float | None)
        and isinstance(progress.wandb_id, (str, type(None)))
        and isinstance(progress.validation, (str, type(None)))
    )
    if not sound:
        raise ValueError("impossible progress")
    return progress


def rng_state() -> dict[str, Any]:
    """Return the states of the random generators that training uses (dropout, stochastic depth)."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def restore_rng(state: Mapping[str, Any]) -> None:
    """Restore the states that `rng_state` returned; CUDA states only if the number of devices is unchanged."""
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def save_checkpoint(
    path: Path | str,
    progress: Progress,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: "torch.amp.GradScaler",
    arguments: Mapping[str, Any],
    average: nn.Module | None = None,
    images: ImageDigests | None = None,
) -> None:
    """Write a checkpoint; the reference code uses its keys `epoch`, `state_dict`, `best_acc1` and `optimizer` too.

    `average` is the model of averaged weights, or None; `images` are the digests of the training images.
    """
    state = {
        "epoch": progress.epoch,
        "state_dict": model.state_dict(),
        "best_acc1": progress.best_top1,
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "rng": rng_state(),
        "average": average and average.state_dict(),
        "progress": dataclasses.asdict(progress),
        "images": images and images.tensors(),
        "arguments": result_arguments(arguments),
    }
    save_archive(path, state)


def result_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that affect the result; --sync-bn is None for a single process, which ignores it."""
    found = {name: arguments.get(name) for name in FIXED_ON_RESUME}
    if arguments.get("processes", 1) == 1:
        found["sync_bn"] = None
    return found


def save_best(path: Path | str, progress: Progress, model: nn.Module) -> None:
    """Write the weights of the best evaluation so far; enough to use the model, not to resume."""
    state = {"epoch": progress.epoch, "state_dict": model.state_dict(), "best_acc1": progress.best_top1}
    save_archive(path, state)


def load_checkpoint(
    path: Path | str,
    arguments: Mapping[str, Any],
    images: KnownImages | None = None,
    earlier: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Read a checkpoint written by `save_checkpoint`, without running its pickle.

    Args:
        path: the checkpoint file.
        arguments: settings of the resumed run.
        images: the training images of the resumed run; None to skip their comparison.
        earlier: argument name -> digest as earlier releases computed it, for comparison with their checkpoints.

    Raises:
        InputError: the checkpoint is missing, damaged, from another program, or made with other `images` or with
            other arguments that affect the result; the message names the differences.
    """
    state = load_archive(path, WEIGHT_GLOBALS)
    needed = {"state_dict", "optimizer", "scaler", "rng", "progress", "arguments"}
    if not isinstance(state, dict) or not needed <= state.keys() or not isinstance(state["arguments"], dict):
        raise InputError(f"{path} was not written by this program; resume from its own checkpoint.pth.tar")
    stored, folder = state["arguments"], arguments.get("train_dir")
    stored = EARLIER | {"val_resize": round((stored.get("input_size") or 0) * 256 / 224)} | stored
    evaluated = state["progress"].get("validation") if isinstance(state["progress"], dict) else None
    earlier = earlier or {}
    # digests of earlier releases were computed differently, and have no prefix such as `v2:`
    old = {name for name in earlier if stored.get(name) is not None and ":" not in str(stored[name])}
    arguments = {**arguments, **{name: earlier[name] for name in old}}
    if evaluated:  # the next evaluation compares the content of the validation images
        arguments = {**arguments, "val_images": stored.get("val_images")}
    arguments = result_arguments(arguments)
    if None in (stored.get("sync_bn"), arguments["sync_bn"]):  # a single process ignores it; older files lack it
        stored["sync_bn"] = arguments["sync_bn"]
    changed = [name for name in FIXED_ON_RESUME if plain(stored.get(name)) != plain(arguments.get(name))]
    if changed:
        differences = [
            f"{flag(name)} was {shorten(stored.get(name), 200)} and is {shorten(arguments.get(name), 200)}"
            for name in changed
        ]
        raise InputError(
            f"--resume {path}: {', '.join(differences)}; resume with the same settings, or start another run"
        )
    stored_images = state.get("images")  # None in checkpoints of earlier releases
    if images is not None and stored_images is not None:
        try:
            how = images.differences(ImageDigests(*(stored_images[name] for name in NAMES)), "run")
        except (TypeError, KeyError, AttributeError, RuntimeError):
            raise InputError(f"{path} is damaged: its list of images cannot be read; start another run") from None
        if how:
            raise InputError(
                f"--resume {path}: the images in --train-dir {folder} have changed since the run "
                f"began: {how}; put them back, or start another run"
            )
    return state


def flag(name: str) -> str:
    """Return the name of a setting in errors: its flag, or words if it has none."""
    digests = {"labels": "digest of the labels", "train_images": "digest of the training images' classes"}
    digests |= {"val_images": "digest of the validation images' names and sizes", "teachers": "teacher"}
    return digests.get(name) or f"--{name.replace('_', '-')}"


def plain(value: object) -> str:
    """Return the repr of a value, with a tuple written as a list, so that equal tuples and lists compare equal."""
    return repr(list(value) if isinstance(value, list | tuple) else value)


def restore(
    state: Mapping[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: "torch.amp.GradScaler",
    average: nn.Module | None = None,
) -> Progress:
    """Load a checkpoint's state into the model, the optimizer, the scaler, the average and the random generators.

    Returns:
        `Progress` of the checkpoint.

    Raises:
        InputError: the state does not fit these objects.
    """
    try:
        model.load_state_dict(state["state_dict"])
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
        if average is not None:
            average.load_state_dict(state["average"])
        restore_rng(state["rng"])
        return checked(Progress(**state["progress"]))
    except Exception as error:  # PyTorch raises many kinds of errors for a damaged or foreign state
        raise InputError(
            f"--resume: the checkpoint does not fit this run ({clause(error, 200)}); start another run"
        ) from None
