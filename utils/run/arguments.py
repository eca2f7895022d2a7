"""argparse groups that the scripts share. Every flag does what its help says; checks name the flags."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from utils.labels.command import add_codec_arguments
from utils.labels.store import ORDERS
from utils.labels.views import ViewPolicy
from utils.run.side_by_side import check_students
from utils.run.training_arguments import (
    add_loss_arguments,
    add_optimizer_arguments,
    check_temperatures,
    settle_hard_epochs,
)
from utils.system.errors import InputError, listing
from utils.system.parser import COUNT, NATURAL, POSITIVE, number
from utils.training.average import BUFFERS
from utils.training.teachers import PRESETS, RULES
from utils.views.replay import IMAGENET_MEAN, IMAGENET_STD
from utils.views.validation import usual_resize


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Folders, batches, workers, image size."""
    group = parser.add_argument_group("data")
    group.add_argument("--train-dir", help="distilled images, one sub-folder per class")
    group.add_argument("--val-dir", help="validation images, one sub-folder per class")
    group.add_argument("--batch-size", type=COUNT, default=1024, help="images per optimizer step; that of the labels")
    add_image_arguments(group)
    group.add_argument(
        "--class-map",
        metavar="FILE",
        help="lines VALIDATION_FOLDER<tab>TRAINING_FOLDER, where the names differ; the word `sorted` pairs them by "
        "position (default: by name)",
    )
    group.add_argument(
        "--val-resize",
        type=COUNT,
        help="shorter side of validation images in pixels, before the centre --input-size is cropped (default: 256/224 "
        "of --input-size from 128 px on, else --input-size)",
    )


def add_image_arguments(group: Any) -> None:
    """What every script that decodes images needs."""
    group.add_argument(
        "--loader",
        choices=["auto", "workers", "resident"],
        default="auto",
        help="workers decode every epoch; resident: images are decoded once and stay in device (else host) memory; "
        "auto: resident where they fit in half of what is free",
    )
    group.add_argument(
        "--class-order",
        metavar="FILE",
        help="the class folder of the labels' (or the teacher's) class 0, 1, 2, …, one name a line (default: as the "
        "labels state, else sorted names)",
    )
    group.add_argument(
        "--accept-labels",
        action="store_true",
        help="go on with labels, or a teacher, that do not fit the images or the class folders; the summary and every "
        "report say so",
    )
    group.add_argument("-j", "--workers", type=NATURAL, default=4, help="data loading processes; 0 loads in this one")
    group.add_argument(
        "--input-size", type=COUNT, help="side of the model's input, in pixels (default: as the labels state, else 224)"
    )
    group.add_argument(
        "--mean",
        type=float,
        nargs=3,
        help="channel means of images in [0, 1] (default: as the labels state, else ImageNet's)",
    )
    group.add_argument(
        "--std",
        type=POSITIVE,
        nargs=3,
        help="channel standard deviations (default: as the labels state, else ImageNet's)",
    )


def add_view_arguments(group: Any) -> None:
    """How views are drawn; names and defaults of the reference's relabel code."""
    share = number(float, 0, 1, open_low=True)
    group.add_argument("--min-scale-crops", type=share, default=0.08, help="smallest crop, as a share of the area")
    group.add_argument("--max-scale-crops", type=share, default=1.0, help="largest crop, as a share of the area")
    group.add_argument("--mix-type", choices=["mixup", "cutmix", "None"], help="how a batch is mixed (default: not)")
    group.add_argument("--mixup", type=POSITIVE, default=0.8, help="alpha of mixup's Beta(alpha, alpha)")
    group.add_argument("--cutmix", type=POSITIVE, default=1.0, help="alpha of cutmix's Beta(alpha, alpha)")
    group.add_argument("--hflip", type=number(float, 0, 1), default=0.5, help="probability of a left-right flip")
    group.add_argument("--fkd-seed", "--fkd_seed", type=NATURAL, default=42, help="seed of image order and views")


def view_policy(args: argparse.Namespace) -> ViewPolicy:
    """Return the `ViewPolicy` that the flags of `add_view_arguments` describe."""
    if args.min_scale_crops > args.max_scale_crops:
        raise InputError(
            f"--min-scale-crops {args.min_scale_crops} is more than --max-scale-crops {args.max_scale_crops}; swap them"
        )
    mix_type = (args.mix_type or "none").lower()
    return ViewPolicy(
        seed=args.fkd_seed,
        input_size=args.input_size,
        min_scale=args.min_scale_crops,
        max_scale=args.max_scale_crops,
        mix_type=mix_type,
        mixup_alpha=args.mixup,
        cutmix_alpha=args.cutmix,
        hflip=args.hflip,
    )


def add_answering_arguments(parser: argparse.ArgumentParser) -> None:
    """The teachers whose answers are stored; named as in the reference's relabel code."""
    group = parser.add_argument_group("teachers")
    group.add_argument(
        "-a", "--arch", action="append", help="torchvision or timm model; repeat for an ensemble (default: resnet18)"
    )
    group.add_argument(
        "--checkpoint",
        action="append",
        help="weights of each --arch in turn; `pretrained` for the library's (default: those of all)",
    )
    group.add_argument(
        "--weights",
        action="append",
        metavar="NAME",
        help="the library's pretrained weights of each --arch without a --checkpoint, in turn: IMAGENET1K_V1, "
        "IMAGENET1K_V2, DEFAULT (the newest), a tag of timm's (default: IMAGENET1K_V1, as pretrained=True meant)",
    )
    group.add_argument("--preset", choices=PRESETS, help="the teachers and ensemble rule of PRISM for this student")
    group.add_argument("--candidate-number", type=COUNT, default=4, help="take so many teachers of --preset")
    group.add_argument("--ensemble", choices=RULES, help="how answers are combined (default: mean, or the preset's)")
    group.add_argument("--stem", choices=["standard", "small"], default="standard", help="small: 3x3/1 ResNet stem")


def add_relabel_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of relabel_FKD.py, named as in the reference's relabel code."""
    add_answering_arguments(parser)
    group = parser.add_argument_group("labels")
    group.add_argument("--data", help="distilled images, one sub-folder per class")
    group.add_argument("--fkd-path", required=True, help="folder to write the labels to")
    group.add_argument("-b", "--batch-size", type=COUNT, default=256, help="images per batch, in training as well")
    group.add_argument("--epochs", type=COUNT, default=300, help="epochs of views to label")
    group.add_argument("--format", choices=["packed", "tar"], default="packed", help="tar: the 7-item files of PRISM")
    group.add_argument("--use-fp16", action="store_true", help="store logits in half precision; the same as --bits 16")
    group.add_argument(
        "--views",
        choices=["stored", "drawn"],
        default="stored",
        help="drawn: leave crops to be drawn again from the seed",
    )
    add_codec_arguments(group)
    group.add_argument("--dry-run", action="store_true", help="check everything, draw views.png beside the labels")
    group = parser.add_argument_group("views")
    add_image_arguments(group)
    add_view_arguments(group)


def add_teacher_arguments(parser: argparse.ArgumentParser) -> None:
    """The live teacher of naive KD, and the views that it is shown."""
    group = parser.add_argument_group("live teacher")
    group.add_argument("--teacher-model", default="resnet18", help="torchvision or timm model")
    group.add_argument(
        "--teacher-checkpoint",
        help="its weights (default: the library's pretrained ones; with --loss-type ce no teacher at all)",
    )
    group.add_argument(
        "--teacher-weights", metavar="NAME", help="which of the library's pretrained ones (default: IMAGENET1K_V1)"
    )
    group.add_argument("--teacher-stem", choices=["standard", "small"], default="standard", help="as --stem")
    group.add_argument(
        "--IPC", dest="ipc", type=COUNT, help="use the first so many images of each class (default: all)"
    )
    add_view_arguments(group)


def settle_views(args: argparse.Namespace, stated: Mapping[str, Any]) -> None:
    """Fill in --input-size, --mean, --std and --val-resize from what the labels state, else with the usual values.

    Args:
        args: parsed flags; those that were not given are None.
        stated: the labels' `input_size`, `mean` and `std`, as far as they state them.

    Raises:
        InputError: a flag contradicts the labels, or validation images would be smaller than their crop.
    """
    for name, usual in (("input_size", 224), ("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
        given, known = getattr(args, name), stated.get(name)
        if given is not None and known is not None and plain(given) != plain(known):
            raise InputError(
                f"--{name.replace('_', '-')} {words(given)} contradicts the labels in {args.fkd_path}, which were made "
                f"with {words(known)}; leave it out"
            )
        value: Any = next(value for value in (given, known, usual) if value is not None)
        setattr(args, name, value if name == "input_size" else tuple(value))
    if not hasattr(args, "val_resize"):
        return  # relabelling evaluates nothing
    args.val_resize = args.val_resize or usual_resize(args.input_size)
    if args.val_resize < args.input_size:
        raise InputError(
            f"--val-resize {args.val_resize} is less than --input-size {args.input_size}, so that validation images "
            "would have black edges; give at least as much"
        )


def plain(value: Any) -> Any:
    """Return numbers as they compare: those from JSON and those from flags alike."""
    return [round(float(number), 6) for number in value] if isinstance(value, list | tuple) else value


def words(value: Any) -> str:
    """Return numbers as they are typed."""
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def settle_relabel(args: argparse.Namespace) -> argparse.Namespace:
    """Check relabel_FKD.py's flags against each other; return `args`.

    Raises:
        InputError: names the flags that do not go together.
    """
    settle_views(args, {})
    args.labels_accepted = None
    if args.use_fp16 and args.bits not in (None, 16):
        raise InputError(f"--use-fp16 contradicts --bits {args.bits}; give one of them")
    args.bits = args.bits or (16 if args.use_fp16 else 32)
    small = args.bits < 16 or args.keep_topk or args.views == "drawn"
    if args.format == "tar" and small:
        raise InputError("--format tar cannot hold --bits 8 or 4, --keep-topk or --views drawn; use --format packed")
    return args


def choose_teachers(args: argparse.Namespace) -> tuple[list[str], list[str | None], str]:
    """Return (teacher names, checkpoint files or None each, rule) from the flags.

    Raises:
        InputError: flags that contradict each other.
    """
    names, rule = args.arch or ["resnet18"], args.ensemble
    if args.preset:
        if args.arch:
            raise InputError("--preset contradicts --arch; give one of them")
        names, preset_rule = PRESETS[args.preset]
        names, rule = list(names[: args.candidate_number]), rule or preset_rule
    files = args.checkpoint or [None] * len(names)
    if len(files) != len(names):
        raise InputError(
            f"{len(files)} --checkpoint for {len(names)} teachers; give one per teacher in the same order, or none"
        )
    return names, [None if file in (None, "pretrained") else file for file in files], rule or "mean"


def choose_weights(args: argparse.Namespace, names: Sequence[str], files: Sequence[str | None]) -> list[str | None]:
    """Return for each teacher the --weights that are asked for, or None; `names, files` as from `choose_teachers`.

    Raises:
        InputError: another number of --weights than of teachers without a file.
    """
    asked = args.weights or [None] * files.count(None)
    if len(asked) != files.count(None):
        given = next((file for file in files if file is not None), None)
        if given is not None and len(asked) > files.count(None):
            raise InputError(
                f"--weights {listing(asked)} contradicts --checkpoint {given}; give one --weights for each teacher "
                "without a file, in the same order, or none"
            )
        raise InputError(
            f"{len(asked)} --weights for {files.count(None)} teachers without a --checkpoint (of {listing(names)}); "
            "give one for each in the same order, or none"
        )
    left = iter(asked)
    return [next(left) if file is None else None for file in files]


def choose_teacher_weights(args: argparse.Namespace) -> str | None:
    """Return the --teacher-weights that are asked for, or None.

    Raises:
        InputError: the teacher has a file, or there is no teacher.
    """
    if args.teacher_weights and args.teacher_checkpoint:
        raise InputError(
            f"--teacher-weights {args.teacher_weights} contradicts --teacher-checkpoint {args.teacher_checkpoint}; "
            "give one of them"
        )
    if args.teacher_weights and args.loss_type == "ce":
        raise InputError("--teacher-weights has no effect with --loss-type ce, which asks no teacher; leave it out")
    return args.teacher_weights


def add_label_arguments(parser: argparse.ArgumentParser) -> None:
    """The label store and what to take from it."""
    group = parser.add_argument_group("soft labels")
    group.add_argument("--fkd-path", help="folder of FKD labels: epoch_0, epoch_1, …")
    group.add_argument(
        "--mix-type", choices=["mixup", "cutmix", "None"], help="checked against the labels, which say it themselves"
    )
    group.add_argument(
        "--fkd_seed",
        "--fkd-seed",
        type=NATURAL,
        default=42,
        help="seed of the image order, for labels without an index",
    )
    group.add_argument(
        "--reuse-labels", action="store_true", help="train more --epochs, or batches, than are stored, revisiting them"
    )
    group.add_argument(
        "--label-order",
        choices=ORDERS,
        help="stored: epoch by epoch; sampled: each epoch draws its batches from all stored ones, anew (LPLD, LPQLD); "
        "shuffled: from a pool that is refilled when empty (HALD); drawn from --fkd-seed (default: as the project "
        "that made the labels does)",
    )
    group.add_argument(
        "--num-classes",
        type=COUNT,
        help="the teacher's classes, where the labels do not state them: top-k labels of LPQLD (default: as many as "
        "class folders)",
    )
    group.add_argument(
        "--verify-labels",
        action="store_true",
        help="compare packed label files with their digests, and all images also in a dry run",
    )


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The student."""
    group = parser.add_argument_group("student")
    group.add_argument(
        "--model", nargs="+", default=["resnet18"], help="torchvision or timm model name; several train side by side"
    )
    group.add_argument(
        "--stem", choices=["standard", "small"], default="standard", help="small: 3x3/1 ResNet stem, for 32 to 64 px"
    )
    group.add_argument(
        "--seed",
        "--seeds",
        type=NATURAL,
        nargs="+",
        default=[0],
        help="seed of the student's initial weights; several train side by side, each as if it were alone",
    )
    group.add_argument(
        "--sync-bn",
        action="store_true",
        help="several processes: batch statistics of the whole micro-batch, as with one process (default: of the "
        "rows of each process)",
    )


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """Device, precision, bars."""
    group = parser.add_argument_group("device")
    group.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: CUDA where there is one"
    )
    group.add_argument(
        "--precision",
        choices=["auto", "fp32", "bf16", "fp16"],
        default="auto",
        help="auto: bf16 where it is native; fp32: laid out NCHW as in the reference, to reproduce its figures",
    )
    group.add_argument("--no-progress", action="store_true", help="no progress bars, even on a terminal")


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Output, evaluation, resuming."""
    group = parser.add_argument_group("run")
    group.add_argument(
        "--ema-decay",
        type=number(float, 0, 1, open_low=True),
        help="evaluate, and keep as the best, weights averaged over all steps: D times the average plus 1 - D times "
        "the weights after each step (default: evaluate the weights themselves)",
    )
    group.add_argument(
        "--ema-buffers",
        choices=BUFFERS,
        default=BUFFERS[0],
        help="with --ema-decay, the running statistics of batch normalisation in an evaluation: averaged as the "
        "weights are, or those of the model in training (live; EDC) (default: averaged)",
    )
    group.add_argument("--eval-every", type=COUNT, default=10, help="evaluate every so many epochs, and at the end")
    group.add_argument("--output-dir", help="folder of the run (default: ./save/<model>-<time>)")
    group.add_argument("--overwrite", action="store_true", help="replace a run that is in --output-dir")
    group.add_argument(
        "--resume", nargs="?", const="", metavar="PATH", help="continue from PATH, or from the run in --output-dir"
    )
    group.add_argument("--dry-run", action="store_true", help="check everything, draw views.png, train nothing")


def add_wandb_arguments(parser: argparse.ArgumentParser) -> None:
    """Weights & Biases."""
    group = parser.add_argument_group("Weights & Biases")
    group.add_argument("--wandb-project", help="project; without it W&B is off")
    group.add_argument("--wandb-api-key", help="safer in the environment: WANDB_API_KEY")
    group.add_argument(
        "--wandb-mode",
        choices=["auto", "online", "offline", "disabled"],
        default="auto",
        help="auto: online where a key is found, else offline; never prompts",
    )
    group.add_argument("--wandb-group", help="group of the run (default: what runs that differ in the seed share)")
    group.add_argument("--wandb-tags", nargs="+", metavar="TAG", help="further tags of the run")


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything that training a student has in common, wherever its soft labels come from."""
    add_model_arguments(parser)
    add_loss_arguments(parser)
    add_optimizer_arguments(parser)
    add_run_arguments(parser)
    add_device_arguments(parser)
    add_wandb_arguments(parser)


def settle(args: argparse.Namespace) -> argparse.Namespace:
    """Check flags against each other and fill in what depends on others; return `args`.

    Raises:
        InputError: names the flags that do not go together.
    """
    if args.batch_size % args.gradient_accumulation_steps:
        raise InputError(
            f"--batch-size {args.batch_size} is not divisible by --gradient-accumulation-steps "
            f"{args.gradient_accumulation_steps}; choose steps that divide it"
        )
    if args.cos and args.schedule not in (None, "cos"):
        raise InputError(f"--cos contradicts --schedule {args.schedule}; give one of them")
    args.schedule = args.schedule or ("cos" if args.cos else "linear")
    if args.schedule == "linear-smoothed" and args.smoothing < 1:
        raise InputError(
            f"--smoothing {args.smoothing} takes the rate of --schedule linear-smoothed below zero; give 1 or more"
        )
    if args.ema_buffers != "averaged" and args.ema_decay is None:
        raise InputError(f"--ema-buffers {args.ema_buffers} has no effect without --ema-decay; give both, or neither")
    args.labels_accepted = None
    args.answers, args.earlier = "logits", {}  # until the labels say otherwise
    check_temperatures(args)
    settle_hard_epochs(args)
    if args.start_epoch >= args.epochs:
        raise InputError(f"--start-epoch {args.start_epoch} leaves nothing of --epochs {args.epochs}; lower it")
    if args.resume is not None and args.overwrite:
        raise InputError("--resume contradicts --overwrite; give one of them")
    check_students(args)
    if args.resume == "" and not args.output_dir:
        raise InputError("--resume needs --output-dir, the folder of the run to continue, or the PATH of a checkpoint")
    for flag in ("train_dir", "val_dir"):
        if not getattr(args, flag):
            raise InputError(f"--{flag.replace('_', '-')} is missing; give a folder with one sub-folder per class")
    return args


def micro_batch(args: argparse.Namespace) -> int:
    """Images of a batch that go through a model at once, over all ranks."""
    return args.batch_size // args.gradient_accumulation_steps


PRIVATE = {"wandb_api_key", "earlier"}  # the second: digests as checkpoints of earlier releases have them


def public(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments as a dict that may be written and published: without keys."""
    return {name: value for name, value in vars(args).items() if name not in PRIVATE}
