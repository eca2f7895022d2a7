"""The students of one process: every combination of --model and --seed."""

import argparse
import itertools
import time

from utils.system.errors import InputError

NAME_LETTERS = 100  # of all models in the name of a folder; file systems take 255 bytes


def check_students(args: argparse.Namespace) -> None:
    """Raise InputError where --model or --seed names a student twice, or --resume one checkpoint for several."""
    for flag, values in (("--model", args.model), ("--seed", args.seed)):
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice is not None:
            raise InputError(f"{flag} names {twice} twice; name each once")
    if args.resume and len(args.model) * len(args.seed) > 1:
        raise InputError(
            f"--resume {args.resume} is one student's checkpoint, and --model and --seed name several; give --resume "
            "alone, and --output-dir"
        )


def default_output(args: argparse.Namespace, prefix: str = "") -> str:
    """The --output-dir of a run that was given none; it names the models, or some of many."""
    models, shown = args.model, 1
    while shown < len(models) and len("+".join(models[: shown + 1])) <= NAME_LETTERS:
        shown += 1
    name = "+".join(models[:shown]) + (f"+{len(models) - shown}-more" if shown < len(models) else "")
    return f"./save/{prefix}{name}-{time.strftime('%Y%m%d-%H%M%S')}"


def students(args: argparse.Namespace) -> list[argparse.Namespace]:
    """Return the arguments of each student, as if it were alone: every combination of --model and --seed.

    Several have a folder each in --output-dir; `side_by_side` says how many share the process, and so its seconds.
    """
    pairs = list(itertools.product(args.model, args.seed))
    several = len(pairs) > 1
    return [
        argparse.Namespace(
            **vars(args)
            | {"model": model, "seed": seed, "side_by_side": len(pairs)}
            | ({"output_dir": f"{args.output_dir}/{model}-seed{seed}"} if several else {})
        )
        for model, seed in pairs
    ]
