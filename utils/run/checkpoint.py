"""Save the state of a run to a checkpoint file, and restore it when the run is resumed.

A checkpoint is written atomically: an interrupted write leaves the previous file unchanged.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils.config import EARLIER, FIXED_ON_RESUME, every_setting
from utils.data.identity import KnownImages
from utils.labels.digests import NAMES, ImageDigests
from utils.system.errors import InputError, clause, listing, shorten
from utils.system.machine import device_random_state, set_device_random_state
from utils.system.safe_load import WEIGHT_GLOBALS, load_archive, save_archive


@dataclass
class Progress:
    """Progress of one student's training: position in the run and metrics so far. A checkpoint stores every field.

    Attributes:
        epoch: index of the current epoch; between two epochs, the index of the next one.
        batch: number of batches of the current epoch that are finished.
        sums: sums of the loss, of the top-1 hits and of the top-5 hits over the finished batches of this epoch.
        samples: number of images in the finished batches of this epoch.
        epoch_seconds: training time of the finished batches of this epoch.
        history: one dict per finished epoch, with the columns of metrics.csv.
        best_top1, best_epoch: top-1 (percent) and epoch of the best evaluation; None before the first evaluation.
        seconds: wall-clock time that the run has taken so far, summed over all restarts.
        wandb_id: id of the W&B run that --resume continues; None without W&B.
        student_temperature: calibrated student temperature of the current epoch; 1 without calibration.
        next_student_temperature: calibrated student temperature of the next epoch; 1 without calibration.
        validation: digest of the validation images and their classes; None before the first evaluation.
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
    """Check a `Progress` that was read from a checkpoint, and return it unchanged.

    Raises:
        ValueError: a value is impossible, for example a negative epoch.
    """
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
    """Return a dict with the states of PyTorch's random generators.

    `cpu` is the state of the CPU generator, and `cuda` a list with the state of every CUDA device. If there is an Apple
    or Intel GPU, `mps` or `xpu` is the state of its generator.
    """
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    others = {device.type: device_random_state(device) for device in other_gpus()}
    return {"cpu": torch.get_rng_state(), "cuda": cuda, **others}


def other_gpus() -> list[torch.device]:
    """Return a list with this machine's Apple GPU and first Intel GPU, if it has them."""
    apple = [torch.device("mps", 0)] if torch.backends.mps.is_available() else []
    intel = [torch.device("xpu", 0)] if hasattr(torch, "xpu") and torch.xpu.is_available() else []
    return apple + intel


def restore_rng(state: Mapping[str, Any]) -> None:
    """Set PyTorch's random generators to the states that `rng_state` returned.

    The states of CUDA devices are skipped if this machine has another number of CUDA devices.
    """
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    for device in other_gpus():
        if device.type in state:
            set_device_random_state(device, state[device.type])


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
    """Write a checkpoint from which the run can be resumed.

    The keys `epoch`, `state_dict`, `best_acc1` and `optimizer` are those of the reference code's checkpoints.

    Args:
        path: file to write.
        progress, model, optimizer, scaler: the training state.
        arguments: settings of the run; only settings that affect the result are stored.
        average: the EMA model; None without EMA.
        images: digests of the training images; None to store none.
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
    """Select the settings that affect the result of a run; return {name: value}.

    `sync_bn` is set to None for a run with a single process, because that run ignores --sync-bn.
    """
    found = {name: arguments.get(name) for name in FIXED_ON_RESUME}
    if arguments.get("processes", 1) == 1:
        found["sync_bn"] = None
    return found


def save_best(path: Path | str, progress: Progress, model: nn.Module) -> None:
    """Write the weights of the best evaluation so far, without the state that resuming would need."""
    state = {"epoch": progress.epoch, "state_dict": model.state_dict(), "best_acc1": progress.best_top1}
    save_archive(path, state)


def load_checkpoint(
    path: Path | str,
    arguments: Mapping[str, Any],
    images: KnownImages | None = None,
    earlier: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Read a checkpoint written by `save_checkpoint`, and check that it fits the settings of the resumed run.

    No code from the file is run: its pickle is read with an allow-list.

    Args:
        path: the checkpoint file.
        arguments: settings of the resumed run.
        images: the training images of the resumed run; None to skip the comparison of images.
        earlier: {setting: digest computed as in earlier releases}, used if an earlier release wrote the checkpoint.

    Returns:
        the dict that `save_checkpoint` wrote.

    Raises:
        InputError: the checkpoint is missing, damaged or from another program. Or the resumed run has other training
            images, or other settings that affect the result.
    """
    state = load_archive(path, WEIGHT_GLOBALS)
    needed = {"state_dict", "optimizer", "scaler", "rng", "progress", "arguments"}
    if not isinstance(state, dict) or not needed <= state.keys() or not isinstance(state["arguments"], dict):
        raise InputError(f"{path} was not written by this program; resume from its own checkpoint.pth.tar")
    stored, folder = state["arguments"], arguments.get("train_dir")
    # the command of the run may lack a setting: then neither the earlier nor the resumed run has it
    always = {name: value for name, value in EARLIER.items() if name in arguments}
    stored = always | {"val_resize": round((stored.get("input_size") or 0) * 256 / 224)} | stored
    evaluated = state["progress"].get("validation") if isinstance(state["progress"], dict) else None
    earlier = earlier or {}
    # earlier releases stored digests without a prefix such as `v2:`; compare these with digests computed in the old way
    old = {name for name in earlier if stored.get(name) is not None and ":" not in str(stored[name])}
    arguments = {**arguments, **{name: earlier[name] for name in old}}
    # after an evaluation, skip `val_images`: the next evaluation compares the validation images themselves
    if evaluated:
        arguments = {**arguments, "val_images": stored.get("val_images")}
    arguments = result_arguments(arguments)
    # sync_bn is None for a single process and in old checkpoints: if either value is None, do not compare them
    if None in (stored.get("sync_bn"), arguments["sync_bn"]):
        stored["sync_bn"] = arguments["sync_bn"]
    changed = [name for name in FIXED_ON_RESUME if plain(stored.get(name)) != plain(arguments.get(name))]
    if changed:
        differences = [
            f"{flag(name)} was {shorten(stored.get(name), 200)} and is {shorten(arguments.get(name), 200)}"
            for name in changed
        ]
        raise InputError(
            f"--resume {path}: {listing(differences)}; resume with the same settings, or start another run"
        )
    # checkpoints of earlier releases store no digests of images
    stored_images = state.get("images")
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
    """Return a setting's name as error messages show it: its flag, or a few words if it has no flag."""
    words = {
        "labels": "digest of the labels",
        "train_images": "digest of the training images' classes",
        "val_images": "digest of the validation images' names and sizes",
        "teachers": "teacher",
        "arithmetic": "precision",
        "channels": "number of channels of the images",
        "zca": "images of ZCA",
        "kept_classes": "classes of the labels that are kept",
        "image_labels": "kind of the images' labels",
        "model_file": "digest of the model's file",
        "train_values": "kind of the training images' values",
        "val_values": "kind of the validation images' values",
    }
    spellings = every_setting()[name].spellings(name)
    return words.get(name) or next(spelling for spelling in spellings if spelling.startswith("--"))


def plain(value: object) -> str:
    """Return the repr of a setting's value; tuples are written as lists, so that (1, 2) and [1, 2] compare equal."""
    return repr(list(value) if isinstance(value, list | tuple) else value)


def restore(
    state: Mapping[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: "torch.amp.GradScaler",
    average: nn.Module | None = None,
) -> Progress:
    """Load a checkpoint into the model, the optimizer, the scaler, the EMA model and the random generators.

    Args:
        state: the checkpoint, as `load_checkpoint` returned it.
        model, optimizer, scaler: the objects to restore, in place.
        average: the EMA model to restore, in place; None without EMA.

    Returns:
        the `Progress` that the checkpoint stores.

    Raises:
        InputError: the checkpoint does not fit these objects.
    """
    try:
        model.load_state_dict(state["state_dict"])
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
        if average is not None:
            average.load_state_dict(state["average"])
        restore_rng(state["rng"])
        return checked(Progress(**state["progress"]))
    # PyTorch raises many kinds of errors if the state is damaged or from another model
    except Exception as error:
        raise InputError(
            f"--resume: the checkpoint does not fit this run ({clause(error, 200)}); start another run"
        ) from None
