"""The flags of the loss, its temperatures, and the optimizer."""

import argparse
from typing import Any

from utils.labels.hard import Phases
from utils.system.errors import InputError
from utils.system.parser import COUNT, NATURAL, NOT_NEGATIVE, POSITIVE, number
from utils.training.losses import LOSS_TYPES, TEMPERED
from utils.training.schedules import SCHEDULES, STEP_FLOOR, TEMPERATURE_SCHEDULES


def add_loss_arguments(parser: argparse.ArgumentParser) -> None:
    """The loss."""
    group = parser.add_argument_group("loss")
    group.add_argument("--loss-type", choices=LOSS_TYPES, default="kl", help="ce uses the folder classes alone")
    group.add_argument("-T", "--temperature", type=POSITIVE, default=3.0, help="temperature of kl and dist")
    group.add_argument("--ce-weight", type=NOT_NEGATIVE, default=0.1, help="hard-label weight of mse_gt and mae_gt")
    group.add_argument("--keep-topk", type=COUNT, help="teacher classes kept per image (default: all)")
    group.add_argument(
        "--topk-mass",
        choices=["auto", "renormalised", "kept"],
        default="auto",
        help="kl and dist on the k largest answers: they add up to 1, or they keep the mass that they had and the "
        "other classes share the rest; auto: renormalised where the labels do not store the rest (LPQLD), else kept",
    )
    add_temperature_arguments(group)


def add_temperature_arguments(group: Any) -> None:
    """How the temperatures of kl and dist change over epochs."""
    group.add_argument(
        "--temperature-schedule",
        choices=TEMPERATURE_SCHEDULES,
        default="constant",
        help="of the teacher's temperature: step falls from -T to 2, cosine to --temperature-min; "
        "the reversed ones rise to -T",
    )
    group.add_argument("--temperature-step-size", type=COUNT, default=30, help="epochs of a step of step, step-reverse")
    group.add_argument(
        "--temperature-gamma", type=number(float, 0, 1, open_low=True), default=0.7, help="factor of such a step"
    )
    group.add_argument("--temperature-min", type=POSITIVE, default=2.0, help="lowest of cosine and cosine-reverse")
    group.add_argument(
        "--student-temperature",
        type=student_temperature,
        default="teacher",
        metavar="{teacher,calibrated,NUMBER}",
        help="teacher: as the teacher's; calibrated: 1.0, then after each epoch that of 0.01 … 1.00 which brings the "
        "student nearest to the teacher (LPQLD)",
    )


def student_temperature(text: str) -> str | float:
    """argparse type of --student-temperature."""
    return text if text in ("teacher", "calibrated") else POSITIVE(text)


def add_optimizer_arguments(parser: argparse.ArgumentParser) -> None:
    """Optimizer and schedule."""
    group = parser.add_argument_group("optimizer")
    group.add_argument("--epochs", type=COUNT, default=300, help="epochs to train; the schedule ends there")
    group.add_argument("--start-epoch", type=NATURAL, default=0, help="train a fresh student from this epoch on")
    group.add_argument("--gradient-accumulation-steps", type=COUNT, default=1, help="micro-batches per optimizer step")
    group.add_argument("--sgd", action="store_true", help="SGD instead of AdamW")
    group.add_argument("-lr", "--learning-rate", type=POSITIVE, default=1.024, help="initial learning rate of SGD")
    group.add_argument("--momentum", type=NOT_NEGATIVE, default=0.875, help="momentum of SGD")
    group.add_argument("--weight-decay", type=NOT_NEGATIVE, default=3e-5, help="weight decay of SGD")
    group.add_argument("--adamw-lr", type=POSITIVE, default=0.001, help="initial learning rate of AdamW")
    group.add_argument("--adamw-weight-decay", type=NOT_NEGATIVE, default=0.01, help="weight decay of AdamW")
    group.add_argument("--cos", action="store_true", help="half-cosine schedule; the same as --schedule cos")
    group.add_argument(
        "--schedule",
        choices=SCHEDULES,
        help="learning rate in epoch e of E, as a factor: linear: 1 - e/E; linear-smoothed: 1 - e/(s E), which ends "
        "at 1 - 1/s (EDC's script as it runs); cos: half a cosine; smoothed: the cosine stretched by s (EDC's paper, "
        "HALD); prism: stretched by 2.5, with a linear end (default: linear)",
    )
    group.add_argument(
        "--smoothing",
        type=POSITIVE,
        default=2.0,
        help="s of --schedule smoothed and linear-smoothed (there at least 1)",
    )


def add_hard_arguments(parser: argparse.ArgumentParser) -> None:
    """Epochs on hard labels among those on stored ones."""
    group = parser.add_argument_group("hard epochs")
    group.add_argument(
        "--hard-epochs",
        type=NATURAL,
        default=0,
        help="so many of --epochs come after half of the others, and show new crops with cutmix, on folder classes "
        "(HALD); 0: none",
    )
    group.add_argument("--hard-batch-size", type=COUNT, help="images per optimizer step in these, even (default: 16)")
    group.add_argument(
        "--label-smoothing",
        type=number(float, 0, 1),
        help="in these, the share of a label that is spread evenly over all classes (default: 0.8)",
    )


def settle_hard_epochs(args: argparse.Namespace) -> None:
    """Fill in what hard epochs need; where there are none, all of it is None.

    Raises:
        InputError: names the flag that has no effect or does not fit.
    """
    args.hard_epochs = getattr(args, "hard_epochs", 0) or None  # naive KD has no such flags
    own = {"hard_batch_size": 16, "label_smoothing": 0.8}
    for name, default in own.items():
        value = getattr(args, name, None)
        if args.hard_epochs is None and value is not None:
            raise InputError(f"--{name.replace('_', '-')} has no effect without --hard-epochs; give both, or neither")
        setattr(args, name, default if args.hard_epochs and value is None else value)
    if args.hard_epochs is None:
        return
    if args.hard_epochs >= args.epochs:
        raise InputError(
            f"--hard-epochs {args.hard_epochs} leaves none of --epochs {args.epochs} to the stored labels; lower it"
        )
    if args.hard_batch_size % 2:
        raise InputError(
            f"--hard-batch-size {args.hard_batch_size} is odd, but images are mixed in pairs; make it even"
        )


def phases_of(args: argparse.Namespace) -> Phases:
    """Which epochs of the run are hard."""
    return Phases(args.epochs, args.hard_epochs or 0)


def check_temperatures(args: argparse.Namespace) -> None:
    """Flags of temperatures must have an effect, and a schedule must not rise where it is to fall."""
    schedule = args.temperature_schedule
    if args.loss_type not in TEMPERED:
        for flag, plain in (("temperature_schedule", "constant"), ("student_temperature", "teacher")):
            if getattr(args, flag) != plain:
                name = f"--{flag.replace('_', '-')} {getattr(args, flag)}"
                raise InputError(f"{name} has no effect with --loss-type {args.loss_type}; use kl or dist")
    if schedule == "step" and args.temperature < STEP_FLOOR:
        raise InputError(f"-T {args.temperature} is below {STEP_FLOOR}, which --temperature-schedule step falls to")
    if schedule.startswith("cosine") and args.temperature < args.temperature_min:
        raise InputError(f"-T {args.temperature} is less than --temperature-min {args.temperature_min}; raise it")
