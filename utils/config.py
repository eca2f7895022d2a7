"""Define every setting of every command; no other module defines flags.

The config of a command is a frozen dataclass that inherits its fields from groups of flags. Each field holds the name
and the help text of a flag, and whether runs with different values may be resumed or averaged. argparse is filled from
the fields:

    config = TrainConfig.parse(["--train-dir", "images", "--epochs", "300"])
    config.epochs  # 300

`Findings` holds the other settings of a run, which are derived from labels, folders and the machine before training
starts. Both are frozen: a check that derives a setting returns a new `Findings`.
"""

import argparse
import difflib
import itertools
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field as DataclassField
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, NoReturn, TypeVar

from utils.system.errors import InputError, listing

VERSION = "2026.11.dev0"  # version of the whole program, named by date: see CHANGELOG.md

LOSS_TYPES = ("kl", "dist", "mse_gt", "mae_gt", "ce")
TEMPERED_LOSSES = ("kl", "dist")  # losses that divide logits by a temperature
JOINT_LOSSES = ("dist",)  # losses that are no mean over rows: every rank computes them over the rows of all ranks
SCHEDULES = ("linear", "linear-smoothed", "cos", "smoothed", "prism")
TEMPERATURE_SCHEDULES = ("constant", "step", "cosine", "step-reverse", "cosine-reverse")
STEP_FLOOR = 2.0  # the lowest temperature of --temperature-schedule step
EMA_BUFFERS = ("averaged", "live")
LABEL_ORDERS = ("stored", "sampled", "shuffled")
ENSEMBLE_RULES = ("mean", "norm-mean", "main-weighted")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Smallest input side, in pixels, for which validation images are resized to 256/224 of the side before the centre crop.
# No reference does so for smaller inputs.
MAGNIFIED_FROM = 128

# Presets of PRISM's relabel code: student -> (teachers in the order of that code, ensemble rule).
PRESETS = {
    "r18": (("resnet18", "mobilenet_v2", "alexnet", "shufflenet_v2_x0_5"), "norm-mean"),
    "r50": (("resnet50", "mobilenet_v2", "alexnet", "shufflenet_v2_x0_5"), "main-weighted"),
    "r101": (("resnet101", "mobilenet_v2", "alexnet", "shufflenet_v2_x0_5"), "main-weighted"),
}

Config = TypeVar("Config", bound="CommandConfig")
Number = TypeVar("Number", int, float)


def number(
    kind: type[Number], low: float = -math.inf, high: float = math.inf, open_low: bool = False
) -> Callable[[str], Number]:
    """Return an argparse type: an int or float in [low, high], or in (low, high] with `open_low`."""

    def parse(text: str) -> Number:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {'an integer' if kind is int else 'a number'}") from None
        above = low < value if open_low else low <= value
        if not above or value > high or not math.isfinite(value):
            bounds = f"{'above' if open_low else 'at least'} {low}" + (
                f" and at most {high}" if high < math.inf else ""
            )
            raise argparse.ArgumentTypeError(f"{text} must be {bounds}")
        return value

    return parse


POSITIVE = number(float, 0, open_low=True)
NOT_NEGATIVE = number(float, 0)
FRACTION = number(float, 0, 1)
POSITIVE_FRACTION = number(float, 0, 1, open_low=True)


@dataclass(frozen=True)
class Kind:
    """Parser of a flag's value, and the placeholder that --help shows for the value: its unit, for instance."""

    parse: Callable
    metavar: str | None


COUNT = Kind(number(int, 1), "N")
NATURAL = Kind(number(int, 0), "N")
PIXELS = Kind(number(int, 1), "PX")
SEED = Kind(number(int, 0), "SEED")
INTEGER = Kind(int, None)
TEXT = Kind(str, None)
NAME, PATH, FILE, FOLDER = (Kind(str, metavar) for metavar in ("NAME", "PATH", "FILE", "DIR"))


def student_temperature(text: str) -> str | float:
    """Return the value of --student-temperature: `teacher`, `calibrated` or a number above 0."""
    return text if text in ("teacher", "calibrated") else POSITIVE(text)


@dataclass(frozen=True)
class Meaning:
    """Effect of a changed setting on resumed runs and on reports.

    Attributes:
        resume: whether a run cannot be resumed with another value.
        report: whether a report puts runs with different values into different groups.
    """

    resume: bool
    report: bool


RESULT = Meaning(resume=True, report=True)  # changes the result
ONE_RUN = Meaning(resume=True, report=False)  # fixed during a run, but runs of one group may differ in it
ONE_GROUP = Meaning(resume=False, report=True)  # may change on resume, but tells groups apart
NEUTRAL = Meaning(resume=False, report=False)  # cannot change the metrics of the last epoch


@dataclass(frozen=True)
class Flag:
    """Command-line flag of a setting.

    Attributes:
        help: text for --help, with the unit of the value.
        kind: `Kind` of the value.
        meaning: `Meaning` of a changed value.
        names: spellings of the flag; if empty, `--` and the field's name. Without dashes: a positional argument.
        choices, nargs, const, required: arguments of argparse's `add_argument`.
        repeats: whether each use of the flag appends a value.
        earlier: value that is assumed for runs from before the setting existed; None: no value is assumed.
    """

    help: str
    kind: Kind = TEXT
    meaning: Meaning = NEUTRAL
    names: tuple[str, ...] = ()
    choices: Sequence | None = None
    nargs: int | str | None = None
    const: Any = None
    required: bool = False
    repeats: bool = False
    earlier: Any = None

    def add_to(self, parser: Any, name: str, default: Any) -> None:
        """Add the flag of field `name` to an argparse parser or group."""
        names = self.names or (f"--{name.replace('_', '-')}",)
        help_text = self.help.replace("%", "%%")
        if default is False:
            parser.add_argument(*names, dest=name, action="store_true", help=help_text)
            return
        if default not in (None, (), "") and "(default" not in self.help:
            help_text += f" (default: {typed(default)})"
        options: dict[str, Any] = {"type": self.kind.parse, "default": default, "help": help_text}
        asked = {"choices": self.choices, "nargs": self.nargs, "const": self.const, "metavar": self.kind.metavar}
        options |= {key: value for key, value in asked.items() if value is not None}
        options |= {"action": "append"} if self.repeats else {}
        if names[0].startswith("-"):
            parser.add_argument(*names, dest=name, required=self.required, **options)
        else:
            parser.add_argument(name, **options)


def typed(value: Any) -> str:
    """Return a value as text for a command line; the items of a list or tuple are separated by spaces."""
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def flag(default: Any, help: str, kind: Kind = TEXT, meaning: Meaning = NEUTRAL, **options: Any) -> Any:
    """Return a dataclass field with a `Flag` in its metadata; `options` are further attributes of the `Flag`."""
    return field(default=default, metadata={"flag": Flag(help, kind, meaning, **options)})


def finding(default: Any, meaning: Meaning, earlier: Any = None) -> Any:
    """Return a dataclass field for `Findings`; `meaning` and `earlier` are attributes of `Flag`."""
    return flag(default, "", meaning=meaning, earlier=earlier)


class Parser(argparse.ArgumentParser):
    """ArgumentParser that raises InputError, and suggests the most similar flag for a mistyped one."""

    def __init__(self, description: str | None = None, **options: Any):
        super().__init__(description=description, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        unknown = re.search(r"unrecognized arguments:.*?(--[\w-]+)", message)
        near = difflib.get_close_matches(unknown[1], self._option_string_actions, n=1) if unknown else []
        message = re.sub(r"\b\w{40,}\b", "<key>", message)  # hides a W&B key after a mistyped flag
        raise InputError(f"{message}{f' (did you mean {near[0]}?)' if near else ''}; see --help")


class Group:
    """Group of flags that --help shows under one title; each subclass is a frozen dataclass with a field per flag."""

    title: ClassVar[str] = ""


@dataclass(frozen=True, kw_only=True)
class CommandConfig:
    """The settings of one command; a subclass names its groups of flags in the order of --help.

    Attributes:
        about: one sentence for --help.
        groups: base classes whose flags the command has, each with a `title`.
    """

    about: ClassVar[str] = ""
    groups: ClassVar[tuple[type[Group], ...]] = ()

    @classmethod
    def parse(cls: type[Config], argv: Sequence[str] | None = None) -> Config:
        """Parse a command line (None: that of this process) and return the `resolved` config.

        Raises:
            InputError: a flag is unknown, a value is invalid, or flags contradict each other.
        """
        parser = Parser(cls.about)
        parser.add_argument("--version", action="version", version=f"validator of dataset distillation {VERSION}")
        cls.fill(parser)
        return cls(**given(vars(parser.parse_args(argv)))).resolved()

    @classmethod
    def fill(cls, parser: argparse.ArgumentParser) -> None:
        """Add the flags of all groups to a parser."""
        for group in cls.groups:
            place = parser.add_argument_group(group.title) if group.title else parser
            for item in own_fields(group):
                item.metadata["flag"].add_to(place, item.name, item.default)

    def resolved(self: Config) -> Config:
        """Return the config with the defaults that depend on other flags, after a check for contradictions.

        Raises:
            InputError: flags contradict each other; the message names them.
        """
        return self

    def settings(self) -> dict[str, Any]:
        """Return field name -> value without the fields in SECRET, so that the settings can be published."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name not in SECRET}


SECRET = {"wandb_api_key"}


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return parsed values with tuples in place of lists, so that a config cannot change."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def own_fields(group: type) -> list[DataclassField]:
    """Return the dataclass fields that a group of flags declares itself, without inherited fields."""
    return [item for item in fields(group) if item.name in vars(group).get("__annotations__", {})]


# Groups of flags


@dataclass(frozen=True, kw_only=True)
class ImageFlags(Group):
    """Settings of every script that decodes images."""

    title = "images"

    loader: str = flag(
        "auto",
        "workers: processes decode the images in every epoch; resident: they are decoded once and kept in memory, on "
        "the GPU if there is one; auto: resident if the decoded images fit in half of the free host memory or, on a "
        "GPU, into what training leaves free of its memory, else workers",
        choices=("auto", "workers", "resident"),
    )
    class_order: str | None = flag(
        None,
        "the class folder of the labels' (or the teacher's) class 0, 1, 2, …, one name a line (default: as the labels "
        "state, else sorted names)",
        FILE,
    )
    accept_labels: bool = flag(
        False,
        "go on with labels, or a teacher, that do not fit the images or the class folders; the summary and every "
        "report say so",
    )
    workers: int = flag(4, "data loading processes; 0 loads in this process", NATURAL, names=("-j", "--workers"))
    input_size: int | None = flag(
        None, "side of the model's input, in pixels (default: as the labels state, else 224)", PIXELS, RESULT
    )
    mean: tuple[float, ...] | None = flag(
        None,
        "channel means of images in [0, 1] (default: as the labels state, else ImageNet's)",
        Kind(float, "M"),
        RESULT,
        nargs=3,
    )
    std: tuple[float, ...] | None = flag(
        None,
        "channel standard deviations of images in [0, 1] (default: as the labels state, else ImageNet's)",
        Kind(POSITIVE, "S"),
        RESULT,
        nargs=3,
    )


@dataclass(frozen=True, kw_only=True)
class DataFlags(Group):
    """Image folders and batches of a training run."""

    title = "data"

    train_dir: str = flag("", "distilled images, one sub-folder per class", FOLDER)
    val_dir: str = flag("", "validation images, one sub-folder per class", FOLDER)
    batch_size: int = flag(
        1024, "images per optimizer step; must equal the batch size that the labels were made with", COUNT, RESULT
    )
    class_map: str | None = flag(
        None,
        "lines VALIDATION_FOLDER<tab>TRAINING_FOLDER, for folders whose names differ; the word `sorted` pairs them by "
        "position (default: by name)",
        FILE,
    )
    val_resize: int | None = flag(
        None,
        "shorter side of validation images in pixels, before the centre --input-size is cropped (default: 256/224 of "
        "--input-size from 128 px on, else --input-size)",
        PIXELS,
        RESULT,
    )


@dataclass(frozen=True, kw_only=True)
class LabelFlags(Group):
    """The stored soft labels, and how a run uses them."""

    title = "soft labels"

    fkd_path: str | None = flag(None, "folder of FKD labels: epoch_0, epoch_1, …", FOLDER)
    mix_type: str | None = flag(
        None,
        "checked against the labels, which state it themselves",
        meaning=RESULT,
        choices=("mixup", "cutmix", "None"),
    )
    fkd_seed: int = flag(
        42, "seed of the image order, for labels without an index", SEED, RESULT, names=("--fkd_seed", "--fkd-seed")
    )
    # ONE_RUN: a run that would visit labels again is refused without the flag, which does not affect first visits
    reuse_labels: bool = flag(
        False, "train more --epochs, or batches, than are stored: stored ones are visited again", meaning=ONE_RUN
    )
    label_order: str | None = flag(
        None,
        "stored: epoch by epoch; sampled: each epoch draws its batches from all stored ones, anew (LPLD, LPQLD); "
        "shuffled: from a pool that is refilled when it is empty (HALD); drawn from --fkd-seed (default: as the "
        "project that made the labels does)",
        meaning=RESULT,
        choices=LABEL_ORDERS,
    )
    num_classes: int | None = flag(
        None,
        "number of the teacher's classes, for labels that do not state it: top-k labels of LPQLD (default: the number "
        "of class folders)",
        COUNT,
        RESULT,
    )
    verify_labels: bool = flag(False, "compare packed label files with their digests, and all images also in a dry run")


@dataclass(frozen=True, kw_only=True)
class ViewFlags(Group):
    """Random crop, flip and mixing of images; names and defaults are from the reference's relabel code."""

    title = "views"

    min_scale_crops: float = flag(
        0.08, "area of the smallest crop, as a share of the image", Kind(POSITIVE_FRACTION, "A"), RESULT
    )
    max_scale_crops: float = flag(
        1.0, "area of the largest crop, as a share of the image", Kind(POSITIVE_FRACTION, "A"), RESULT
    )
    mix_type: str | None = flag(
        None,
        "how the images of a batch are mixed (default: not at all)",
        meaning=RESULT,
        choices=("mixup", "cutmix", "None"),
    )
    mixup: float = flag(0.8, "alpha of mixup's Beta(alpha, alpha)", Kind(POSITIVE, "ALPHA"), RESULT)
    cutmix: float = flag(1.0, "alpha of cutmix's Beta(alpha, alpha)", Kind(POSITIVE, "ALPHA"), RESULT)
    hflip: float = flag(0.5, "probability of a left-right flip", Kind(FRACTION, "P"), RESULT)
    fkd_seed: int = flag(42, "seed of image order and views", SEED, RESULT, names=("--fkd-seed", "--fkd_seed"))


@dataclass(frozen=True, kw_only=True)
class StudentFlags(Group):
    """The students to train: one for each combination of a model and a seed."""

    title = "student"

    models: tuple[str, ...] = flag(
        ("resnet18",),
        "torchvision or timm model; several train side by side in one process",
        NAME,
        RESULT,
        names=("--model",),
        nargs="+",
    )
    stem: str = flag(
        "standard",
        "small: 3x3 convolution with stride 1 and no pooling as a ResNet's stem, for images of 32 to 64 px",
        meaning=RESULT,
        choices=("standard", "small"),
    )
    seeds: tuple[int, ...] = flag(
        (0,),
        "seed of the student's initial weights; several train side by side, each as if it were alone",
        SEED,
        ONE_RUN,
        names=("--seed", "--seeds"),
        nargs="+",
    )
    sync_bn: bool = flag(
        False,
        "with several processes: batch statistics of the whole micro-batch, as with one process (default: each process "
        "takes those of its own rows)",
        meaning=RESULT,
    )


@dataclass(frozen=True, kw_only=True)
class LossFlags(Group):
    """The loss and its temperatures."""

    title = "loss"

    loss_type: str = flag(
        "kl",
        "kl, dist: divergence of softened probabilities; mse_gt, mae_gt: distance of logits plus hard-label "
        "cross-entropy; ce: cross-entropy with the folder classes alone",
        meaning=RESULT,
        choices=LOSS_TYPES,
    )
    temperature: float = flag(
        3.0,
        "temperature of kl and dist, which divides logits",
        Kind(POSITIVE, "T"),
        RESULT,
        names=("-T", "--temperature"),
    )
    ce_weight: float = flag(0.1, "weight of the hard-label term of mse_gt and mae_gt", Kind(NOT_NEGATIVE, "W"), RESULT)
    keep_topk: int | None = flag(None, "number of teacher classes kept per image (default: all)", COUNT, RESULT)
    topk_mass: str = flag(
        "auto",
        "probabilities of the K largest answers in kl and dist: renormalised to a sum of 1, or kept as they were while "
        "the other classes share the rest; auto: renormalised if the labels do not store the rest (LPQLD), else kept",
        meaning=RESULT,
        choices=("auto", "renormalised", "kept"),
        earlier="kept",
    )
    temperature_schedule: str = flag(
        "constant",
        "course of the teacher's temperature: step falls from -T to 2, cosine to --temperature-min; the reversed ones "
        "rise to -T",
        meaning=RESULT,
        choices=TEMPERATURE_SCHEDULES,
        earlier="constant",
    )
    temperature_step_size: int = flag(
        30, "epochs between drops, for the step and step-reverse schedules", COUNT, RESULT, earlier=30
    )
    temperature_gamma: float = flag(0.7, "factor of such a drop", Kind(POSITIVE_FRACTION, "F"), RESULT, earlier=0.7)
    temperature_min: float = flag(
        2.0, "lowest temperature of the cosine and cosine-reverse schedules", Kind(POSITIVE, "T"), RESULT, earlier=2.0
    )
    student_temperature: str | float = flag(
        "teacher",
        "teacher: the same as the teacher's; calibrated: starts at 1.0, and is set after each epoch to the value in "
        "0.01 … 1.00 with the smallest KL to the teacher (LPQLD)",
        Kind(student_temperature, "{teacher,calibrated,NUMBER}"),
        RESULT,
        earlier="teacher",
    )


@dataclass(frozen=True, kw_only=True)
class OptimizerFlags(Group):
    """Optimizer and learning-rate schedule."""

    title = "optimizer"

    epochs: int = flag(300, "epochs to train; the schedule ends there", COUNT, RESULT)
    start_epoch: int = flag(0, "train a fresh student from this epoch on", NATURAL, RESULT)
    gradient_accumulation_steps: int = flag(1, "micro-batches per optimizer step", COUNT, RESULT)
    sgd: bool = flag(False, "SGD instead of AdamW", meaning=RESULT)
    learning_rate: float = flag(
        1.024, "initial learning rate of SGD", Kind(POSITIVE, "LR"), RESULT, names=("-lr", "--learning-rate")
    )
    momentum: float = flag(0.875, "momentum of SGD", Kind(NOT_NEGATIVE, "M"), RESULT)
    weight_decay: float = flag(3e-5, "weight decay of SGD", Kind(NOT_NEGATIVE, "W"), RESULT)
    adamw_lr: float = flag(0.001, "initial learning rate of AdamW", Kind(POSITIVE, "LR"), RESULT)
    adamw_weight_decay: float = flag(0.01, "weight decay of AdamW", Kind(NOT_NEGATIVE, "W"), RESULT)
    cos: bool = flag(False, "half-cosine schedule; the same as --schedule cos", meaning=ONE_GROUP)
    schedule: str | None = flag(
        None,
        "factor of the learning rate in epoch e of E: linear: 1 - e/E; linear-smoothed: 1 - e/(s E), which ends at 1 "
        "- 1/s (EDC's script as it runs); cos: half a cosine; smoothed: the cosine stretched by s (EDC's paper, "
        "HALD); prism: stretched by 2.5, with a linear end (default: linear)",
        meaning=RESULT,
        choices=SCHEDULES,
    )
    smoothing: float = flag(
        2.0, "s of the smoothed and linear-smoothed schedules; at least 1 for the latter", Kind(POSITIVE, "S"), RESULT
    )
    ema_decay: float | None = flag(
        None,
        "evaluate and save an exponential moving average of the weights: ema = D · ema + (1 - D) · weights after every "
        "step (default: the weights themselves)",
        Kind(POSITIVE_FRACTION, "D"),
        RESULT,
    )
    ema_buffers: str = flag(
        "averaged",
        "batch-normalisation statistics of the averaged model: averaged as the weights are, or live, those of the "
        "model in training (EDC)",
        meaning=RESULT,
        choices=EMA_BUFFERS,
        earlier="averaged",
    )


@dataclass(frozen=True, kw_only=True)
class HardFlags(Group):
    """Epochs on hard labels, placed among the epochs on stored labels."""

    title = "hard epochs"

    hard_epochs: int | None = flag(
        None,
        "number of hard-label epochs (HALD), placed after the first half of the soft-label epochs, on freshly drawn "
        "CutMix views; counted in --epochs (default: 0)",
        NATURAL,
        RESULT,
    )
    hard_batch_size: int | None = flag(
        None, "images per optimizer step in hard epochs, even (default: 16)", COUNT, RESULT
    )
    label_smoothing: float | None = flag(
        None,
        "share of a hard label that is spread evenly over all classes (default: 0.8)",
        Kind(FRACTION, "SHARE"),
        RESULT,
    )


@dataclass(frozen=True, kw_only=True)
class RunFlags(Group):
    """Output, evaluation, resuming."""

    title = "run"

    eval_every: int = flag(10, "epochs between evaluations; the last epoch is always evaluated", COUNT)
    output_dir: str = flag("", "folder of the run (default: ./save/<model>-<time>)", FOLDER)
    overwrite: bool = flag(False, "replace a run that is in --output-dir")
    resume: str | None = flag(
        None, "continue from the checkpoint PATH, or from the run in --output-dir", PATH, nargs="?", const=""
    )
    dry_run: bool = flag(False, "check everything, draw views.png, train nothing")


@dataclass(frozen=True, kw_only=True)
class DeviceFlags(Group):
    """Device, arithmetic, progress bars."""

    title = "device"

    device: str = flag("auto", "auto: CUDA if there is a GPU", meaning=ONE_GROUP, choices=("auto", "cpu", "cuda"))
    precision: str = flag(
        "auto",
        "auto: bf16 if it is native, else fp32; fp32 uses the NCHW layout of the reference, to reproduce its figures",
        meaning=RESULT,
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    no_progress: bool = flag(False, "show no progress bars, even on a terminal")


@dataclass(frozen=True, kw_only=True)
class WandbFlags(Group):
    """Weights & Biases."""

    title = "Weights & Biases"

    wandb_project: str | None = flag(None, "project; without it W&B is off", NAME)
    wandb_api_key: str | None = flag(None, "key; safer in the environment, as WANDB_API_KEY", Kind(str, "KEY"))
    wandb_mode: str = flag(
        "auto",
        "auto: online if a key is found, else offline; never prompts",
        choices=("auto", "online", "offline", "disabled"),
    )
    wandb_group: str | None = flag(
        None, "group of the run (default: a name that runs share if only their seeds differ)", NAME
    )
    wandb_tags: tuple[str, ...] | None = flag(None, "further tags of the run", Kind(str, "TAG"), nargs="+")


@dataclass(frozen=True, kw_only=True)
class LiveTeacherFlags(Group):
    """The teacher that labels every batch during training (naive KD)."""

    title = "live teacher"

    teacher_model: str = flag("resnet18", "torchvision or timm model", NAME, RESULT)
    teacher_checkpoint: str | None = flag(
        None,
        "file of its weights (default: the library's pretrained weights; with --loss-type ce no teacher at all)",
        FILE,
    )
    teacher_weights: str | None = flag(
        None, "name of the library's pretrained weights (default: IMAGENET1K_V1)", NAME, ONE_GROUP
    )
    teacher_stem: str = flag(
        "standard", "stem of the teacher, as --stem", meaning=RESULT, choices=("standard", "small")
    )
    ipc: int | None = flag(
        None, "use only the first images of each class, so many (default: all)", COUNT, ONE_RUN, names=("--IPC",)
    )


@dataclass(frozen=True, kw_only=True)
class TeacherFlags(Group):
    """The teachers that make the stored labels; names of flags are from the reference's relabel code."""

    title = "teachers"

    arch: tuple[str, ...] | None = flag(
        None,
        "torchvision or timm model; repeat for an ensemble (default: resnet18)",
        NAME,
        names=("-a", "--arch"),
        repeats=True,
    )
    checkpoint: tuple[str, ...] | None = flag(
        None,
        "weights of each --arch in turn: a file, or `pretrained` for the library's (default: the library's for all)",
        FILE,
        repeats=True,
    )
    weights: tuple[str, ...] | None = flag(
        None,
        "name of the library's pretrained weights of each --arch without a --checkpoint, in turn: IMAGENET1K_V1, "
        "IMAGENET1K_V2, DEFAULT (the newest), a tag of timm's (default: IMAGENET1K_V1, as pretrained=True meant)",
        NAME,
        repeats=True,
    )
    preset: str | None = flag(
        None, "the teachers and the ensemble rule of PRISM for this student", choices=tuple(PRESETS)
    )
    candidate_number: int = flag(4, "number of teachers taken from --preset", COUNT)
    ensemble: str | None = flag(
        None, "how answers are combined (default: mean, or the preset's rule)", choices=ENSEMBLE_RULES
    )
    stem: str = flag(
        "standard", "small: 3x3 convolution with stride 1 as a ResNet's stem", choices=("standard", "small")
    )

    def teachers(self, stated_rule: str | None = None) -> tuple[list[str], list[str | None], list[str | None], str]:
        """Return (models, weight files, names of pretrained weights, ensemble rule); lists have an item per teacher.

        An item is None if the teacher has no file, or --weights gives the teacher no name.

        Args:
            stated_rule: ensemble rule that the labels state; used if the flags give no rule.

        Raises:
            InputError: flags contradict each other.
        """
        names, rule = list(self.arch or ["resnet18"]), self.ensemble
        if self.preset:
            if self.arch:
                raise InputError("--preset contradicts --arch; give one of them")
            names = list(PRESETS[self.preset][0][: self.candidate_number])
            rule = rule or PRESETS[self.preset][1]
        files = list(self.checkpoint or [None] * len(names))
        if len(files) != len(names):
            raise InputError(
                f"{len(files)} --checkpoint for {len(names)} teachers; give one per teacher in the same order, or none"
            )
        files = [None if file == "pretrained" else file for file in files]
        return names, files, self.weights_of(names, files), rule or stated_rule or "mean"

    def weights_of(self, names: Sequence[str], files: Sequence[str | None]) -> list[str | None]:
        """Return the name that --weights gives each teacher; None for a teacher with a file, and without --weights."""
        asked = self.weights or [None] * files.count(None)
        if len(asked) != files.count(None):
            file = next((file for file in files if file is not None), None)
            if file is not None and len(asked) > files.count(None):
                raise InputError(
                    f"--weights {listing(asked)} contradicts --checkpoint {file}; give one --weights for each teacher "
                    "without a file, in the same order, or none"
                )
            raise InputError(
                f"{len(asked)} --weights for {files.count(None)} teachers without a --checkpoint (of "
                f"{listing(names)}); give one for each in the same order, or none"
            )
        left = iter(asked)
        return [next(left) if file is None else None for file in files]


@dataclass(frozen=True, kw_only=True)
class CodecFlags(Group):
    """Precision and number of the logits in packed labels."""

    title = "storage"

    bits: int | None = flag(
        None, "bits per stored value; 8 and 4 quantise (default: 32, or as given)", INTEGER, choices=(32, 16, 8, 4)
    )
    keep_topk: int | None = flag(None, "store only the K largest logits of an image (default: all)", COUNT)


@dataclass(frozen=True, kw_only=True)
class StoreFlags(Group):
    """The labels that relabelling writes."""

    title = "labels"

    data: str = flag("", "distilled images, one sub-folder per class", FOLDER)
    fkd_path: str = flag(None, "folder to write the labels to", FOLDER, required=True)
    batch_size: int = flag(256, "images per batch, in training as well", COUNT, names=("-b", "--batch-size"))
    epochs: int = flag(300, "epochs of views to label", COUNT)
    format: str = flag("packed", "tar: the 7-item files of PRISM", choices=("packed", "tar"))
    use_fp16: bool = flag(False, "store logits in half precision; the same as --bits 16")
    views: str = flag(
        "stored", "drawn: do not store crops, but draw them again from the seed", choices=("stored", "drawn")
    )
    dry_run: bool = flag(False, "check everything, draw views.png beside the labels, label nothing")


# Commands


@dataclass(frozen=True, kw_only=True)
class TrainConfig(
    CommandConfig,
    DataFlags,
    ImageFlags,
    StudentFlags,
    LossFlags,
    OptimizerFlags,
    HardFlags,
    RunFlags,
    DeviceFlags,
    WandbFlags,
):
    """Settings that training with stored labels and training with a live teacher have in common."""

    prefix: ClassVar[str] = ""  # start of the folder's name in the default --output-dir

    @property
    def model(self) -> str:
        """Return the name of the model, or of the first of several models."""
        return self.models[0]

    @property
    def seed(self) -> int:
        """Return the seed of the initial weights, or the first of several seeds."""
        return self.seeds[0]

    @property
    def student_name(self) -> str:
        """Return model and seed as one word: `resnet18-seed0`."""
        return f"{self.model}-seed{self.seed}"

    @property
    def micro_batch(self) -> int:
        """Return the number of images in a micro-batch, over all ranks."""
        return self.batch_size // self.gradient_accumulation_steps

    @property
    def base_lr(self) -> float:
        """Return the initial learning rate of the chosen optimizer."""
        return self.learning_rate if self.sgd else self.adamw_lr

    def students(self: "TrainConfigType") -> "list[TrainConfigType]":
        """Return one config for each combination of --model and --seed, with only that model and that seed.

        If there are several combinations, each config has its own sub-folder of --output-dir.
        """
        pairs = list(itertools.product(self.models, self.seeds))
        alone = [replace(self, models=(model,), seeds=(seed,)) for model, seed in pairs]
        if len(alone) == 1:
            return alone
        return [replace(one, output_dir=f"{self.output_dir}/{one.student_name}") for one in alone]

    def settings(self) -> dict[str, Any]:
        """Return `CommandConfig.settings`, but `model` and `seed` (as in earlier releases) for `models` and `seeds`."""
        found = super().settings()
        return {"model": self.model, "seed": self.seed} | {
            k: v for k, v in found.items() if k not in ("models", "seeds")
        }

    def resolved(self: "TrainConfigType") -> "TrainConfigType":
        """See `CommandConfig.resolved`."""
        self.check_optimizer()
        self.check_temperatures()
        self.check_hard_epochs()
        self.check_students()
        self.check_run()
        hard = self.hard_epochs or None
        return replace(
            self,
            schedule=self.schedule or ("cos" if self.cos else "linear"),
            hard_epochs=hard,
            hard_batch_size=(self.hard_batch_size or 16) if hard else None,
            label_smoothing=(0.8 if self.label_smoothing is None else self.label_smoothing) if hard else None,
            output_dir=self.output_dir or self.default_output(),
        )

    def check_optimizer(self) -> None:
        """Raise InputError if flags of batch size, schedule or EMA contradict each other."""
        if self.batch_size % self.gradient_accumulation_steps:
            raise InputError(
                f"--batch-size {self.batch_size} is not divisible by --gradient-accumulation-steps "
                f"{self.gradient_accumulation_steps}; choose steps that divide it"
            )
        if self.cos and self.schedule not in (None, "cos"):
            raise InputError(f"--cos contradicts --schedule {self.schedule}; give one of them")
        if self.schedule == "linear-smoothed" and self.smoothing < 1:
            raise InputError(
                f"--smoothing {self.smoothing} takes the rate of --schedule linear-smoothed below zero; give 1 or more"
            )
        if self.ema_buffers != "averaged" and self.ema_decay is None:
            raise InputError(
                f"--ema-buffers {self.ema_buffers} has no effect without --ema-decay; give both, or neither"
            )

    def check_temperatures(self) -> None:
        """Raise InputError if a temperature flag has no effect, or -T is below the minimum of the schedule."""
        if self.loss_type not in TEMPERED_LOSSES:
            for name, usual in (("temperature_schedule", "constant"), ("student_temperature", "teacher")):
                if getattr(self, name) != usual:
                    raise InputError(
                        f"--{name.replace('_', '-')} {getattr(self, name)} has no effect with --loss-type "
                        f"{self.loss_type}; use kl or dist"
                    )
        if self.temperature_schedule == "step" and self.temperature < STEP_FLOOR:
            raise InputError(f"-T {self.temperature} is below {STEP_FLOOR}, which --temperature-schedule step falls to")
        if self.temperature_schedule.startswith("cosine") and self.temperature < self.temperature_min:
            raise InputError(f"-T {self.temperature} is less than --temperature-min {self.temperature_min}; raise it")

    def check_hard_epochs(self) -> None:
        """Raise InputError if a flag of hard epochs has no effect or an impossible value."""
        if not self.hard_epochs:
            for name in ("hard_batch_size", "label_smoothing"):
                if getattr(self, name) is not None:
                    raise InputError(
                        f"--{name.replace('_', '-')} has no effect without --hard-epochs; give both, or neither"
                    )
            return
        if self.hard_epochs >= self.epochs:
            raise InputError(
                f"--hard-epochs {self.hard_epochs} leaves none of --epochs {self.epochs} to the stored labels; lower it"
            )
        if (self.hard_batch_size or 16) % 2:
            raise InputError(
                f"--hard-batch-size {self.hard_batch_size} is odd, but images are mixed in pairs; make it even"
            )

    def check_students(self) -> None:
        """Raise InputError if a model or seed is given twice, or one checkpoint for several students."""
        for name, values in (("--model", self.models), ("--seed", self.seeds)):
            twice = next((value for value in values if values.count(value) > 1), None)
            if twice is not None:
                raise InputError(f"{name} names {twice} twice; name each once")
        if self.resume and len(self.models) * len(self.seeds) > 1:
            raise InputError(
                f"--resume {self.resume} is one student's checkpoint, and --model and --seed name several; give "
                "--resume alone, and --output-dir"
            )

    def check_run(self) -> None:
        """Raise InputError if an image folder is missing, or flags of epochs or resuming contradict each other."""
        if self.start_epoch >= self.epochs:
            raise InputError(f"--start-epoch {self.start_epoch} leaves nothing of --epochs {self.epochs}; lower it")
        if self.resume is not None and self.overwrite:
            raise InputError("--resume contradicts --overwrite; give one of them")
        if self.resume == "" and not self.output_dir:
            raise InputError(
                "--resume needs --output-dir, the folder of the run to continue, or the PATH of a checkpoint"
            )
        for name in ("train_dir", "val_dir"):
            if not getattr(self, name):
                raise InputError(f"--{name.replace('_', '-')} is missing; give a folder with one sub-folder per class")

    def default_output(self) -> str:
        """Return the default of --output-dir, which names the models (only the first ones of many) and the time."""
        shown = 1
        while shown < len(self.models) and len("+".join(self.models[: shown + 1])) <= NAME_LETTERS:
            shown += 1
        more = f"+{len(self.models) - shown}-more" if shown < len(self.models) else ""
        return f"./save/{self.prefix}{'+'.join(self.models[:shown])}{more}-{time.strftime('%Y%m%d-%H%M%S')}"


TrainConfigType = TypeVar("TrainConfigType", bound=TrainConfig)
NAME_LETTERS = 100  # maximum for the joined model names in a folder's name; file systems allow 255 bytes


@dataclass(frozen=True, kw_only=True)
class FKDConfig(LabelFlags, TrainConfig):
    """Settings of train_FKD_parallel.py."""

    about = "Train a student on distilled images with stored FKD soft labels."
    groups = (
        *(DataFlags, ImageFlags, LabelFlags, StudentFlags, LossFlags, OptimizerFlags),
        *(RunFlags, DeviceFlags, WandbFlags, HardFlags),
    )


@dataclass(frozen=True, kw_only=True)
class KDConfig(LiveTeacherFlags, ViewFlags, TrainConfig):
    """Settings of train_KD_parallel.py."""

    about = "Train a student on distilled images with a live teacher, or with hard labels alone."
    groups = (
        *(DataFlags, ImageFlags, LiveTeacherFlags, ViewFlags, StudentFlags, LossFlags, OptimizerFlags),
        *(RunFlags, DeviceFlags, WandbFlags),
    )
    prefix = "kd-"

    def resolved(self) -> "KDConfig":
        """See `TrainConfig.resolved`."""
        if self.teacher_weights and self.teacher_checkpoint:
            raise InputError(
                f"--teacher-weights {self.teacher_weights} contradicts --teacher-checkpoint {self.teacher_checkpoint}; "
                "give one of them"
            )
        if self.teacher_weights and self.loss_type == "ce":
            raise InputError("--teacher-weights has no effect with --loss-type ce, which asks no teacher; leave it out")
        refuse_exchanged_scales(self)
        return super().resolved()


@dataclass(frozen=True, kw_only=True)
class RelabelConfig(TeacherFlags, StoreFlags, CodecFlags, ViewFlags, ImageFlags, DeviceFlags, CommandConfig):
    """Settings of relabel_FKD.py, named as in the reference's relabel code."""

    about = "Write FKD soft labels with one teacher or several."
    groups = (TeacherFlags, StoreFlags, CodecFlags, ImageFlags, ViewFlags, DeviceFlags)

    def resolved(self) -> "RelabelConfig":
        """See `CommandConfig.resolved`."""
        if self.use_fp16 and self.bits not in (None, 16):
            raise InputError(f"--use-fp16 contradicts --bits {self.bits}; give one of them")
        bits = self.bits or (16 if self.use_fp16 else 32)
        if self.format == "tar" and (bits < 16 or self.keep_topk or self.views == "drawn"):
            raise InputError(
                "--format tar cannot hold --bits 8 or 4, --keep-topk or --views drawn; use --format packed"
            )
        refuse_exchanged_scales(self)
        return replace(self, bits=bits)


def refuse_exchanged_scales(config: ViewFlags) -> None:
    """Raise InputError if the smallest crop is larger than the largest."""
    if config.min_scale_crops > config.max_scale_crops:
        raise InputError(
            f"--min-scale-crops {config.min_scale_crops} is more than --max-scale-crops {config.max_scale_crops}; swap "
            "them"
        )


@dataclass(frozen=True, kw_only=True)
class SeedFlag(Group):
    """The flag that all commands of `python -m utils.labels` have."""

    fkd_seed: int = flag(42, "seed of the image order", SEED, names=("--fkd-seed", "--fkd_seed"))


@dataclass(frozen=True, kw_only=True)
class PathArgument(Group):
    """The label folder that a command reads."""

    path: str = flag(None, "label folder", names=("path",))


@dataclass(frozen=True, kw_only=True)
class FoldersArguments(Group):
    """The folders that a command reads and writes."""

    source: str = flag(None, "label folder to read", names=("source",))
    target: str = flag(None, "folder to write", names=("target",))


@dataclass(frozen=True, kw_only=True)
class PackFlags(Group):
    """The further flag of `python -m utils.labels pack`."""

    num_classes: int | None = flag(
        None, "number of the teacher's classes, for top-k labels that do not state it", COUNT
    )


@dataclass(frozen=True, kw_only=True)
class UnpackFlags(Group):
    """The further flags of `python -m utils.labels unpack`."""

    items: int | None = flag(None, "6: SRe2L's files, 7: PRISM's (default: as packed)", INTEGER, choices=(6, 7))
    fp32: bool = flag(False, "write logits as float32 (default: as stored)")


@dataclass(frozen=True, kw_only=True)
class VerifyFlags(Group):
    """Flags with which `python -m utils.labels verify` compares labels with a teacher's answers."""

    title = "questions to a teacher"

    images: str | None = flag(None, "distilled images, one sub-folder per class: ask a teacher about them", FOLDER)
    input_size: int | None = flag(
        None, "side of the views, in pixels (default: as the labels, or their cutmix boxes, say; or 224)", PIXELS
    )
    mean: tuple[float, ...] | None = flag(
        None, "channel means (default: as the labels state, or ImageNet's)", Kind(float, "M"), nargs=3
    )
    std: tuple[float, ...] | None = flag(
        None, "channel standard deviations (default: as the mean)", Kind(POSITIVE, "S"), nargs=3
    )
    temperature: float = flag(20.0, "temperature of labels that are probabilities (HALD)", Kind(POSITIVE, "T"))
    device: str = flag("auto", "auto: CUDA if there is a GPU", choices=("auto", "cpu", "cuda"))
    precision: str = flag("fp32", "arithmetic of the teacher", choices=("auto", "fp32", "bf16", "fp16"))
    verbose: bool = flag(False, "print the differences of each batch", names=("-v", "--verbose"))


@dataclass(frozen=True, kw_only=True)
class InfoConfig(PathArgument, SeedFlag, CommandConfig):
    """Settings of `python -m utils.labels info`."""

    about = "what is in a label folder"
    groups = (PathArgument, SeedFlag)


@dataclass(frozen=True, kw_only=True)
class PackConfig(FoldersArguments, CodecFlags, PackFlags, SeedFlag, CommandConfig):
    """Settings of `python -m utils.labels pack`."""

    about = "label files of any project to packed"
    groups = (FoldersArguments, CodecFlags, PackFlags, SeedFlag)


@dataclass(frozen=True, kw_only=True)
class UnpackConfig(FoldersArguments, UnpackFlags, SeedFlag, CommandConfig):
    """Settings of `python -m utils.labels unpack`."""

    about = "packed to .tar files"
    groups = (FoldersArguments, UnpackFlags, SeedFlag)


@dataclass(frozen=True, kw_only=True)
class VerifyConfig(PathArgument, VerifyFlags, TeacherFlags, SeedFlag, CommandConfig):
    """Settings of `python -m utils.labels verify`."""

    about = "read and check everything, or ask the teacher"
    groups = (PathArgument, VerifyFlags, TeacherFlags, SeedFlag)


LabelCommand = InfoConfig | PackConfig | UnpackConfig | VerifyConfig
LABEL_COMMANDS: dict[str, type[CommandConfig]] = {
    "info": InfoConfig,
    "pack": PackConfig,
    "unpack": UnpackConfig,
    "verify": VerifyConfig,
}


def parse_label_command(argv: Sequence[str] | None) -> Any:
    """Parse a command line of `python -m utils.labels`; return the config of the command, one of LABEL_COMMANDS."""
    parser = Parser("Look into FKD labels, pack, unpack and verify them.")
    commands = parser.add_subparsers(
        parser_class=Parser, dest="command", required=True, metavar=f"{{{','.join(LABEL_COMMANDS)}}}"
    )
    for name, kind in LABEL_COMMANDS.items():
        kind.fill(commands.add_parser(name, help=kind.about))
    values = given(vars(parser.parse_args(argv)))
    return LABEL_COMMANDS[values.pop("command")](**values).resolved()


@dataclass(frozen=True, kw_only=True)
class ReportFlags(Group):
    """Which runs to compare, and how."""

    title = "report"

    runs: tuple[str, ...] = flag(
        (), "--output-dir of a run, or a folder with many of them", Kind(str, "RUN"), names=("runs",), nargs="+"
    )
    output: str = flag(None, "folder for report.md, report.tex, *.csv and the figures", FOLDER, required=True)
    random: str = flag("random", "image set of random real images: its folder's name", NAME)
    full_data: tuple[str, ...] = flag(
        (),
        "top-1 in percent of a student trained on all real images with hard labels, for hard-label recovery",
        Kind(str, "[STUDENT=]TOP1"),
        nargs="+",
    )
    ignore: tuple[str, ...] = flag(
        (),
        "settings whose differences do not keep runs apart, git_commit for instance; the report names them",
        Kind(str, "SETTING"),
        nargs="+",
    )


@dataclass(frozen=True, kw_only=True)
class ReportConfig(ReportFlags, WandbFlags, CommandConfig):
    """Settings of `python -m utils.report`."""

    about = "Compare finished runs: one table, one figure."
    groups = (ReportFlags, WandbFlags)


@dataclass(frozen=True, kw_only=True)
class RandomImagesFlags(Group):
    """Source, number and seed of the images to draw, and the output folder."""

    title = "draw"

    real: str = flag(None, "folder of real images, one sub-folder per class", names=("real",))
    like: str = flag(None, "folder of the set to match: its classes and images per class", FOLDER, required=True)
    seed: int = flag(0, "seed of the draw", SEED)
    output: str = flag(None, "folder to make; OUTPUT.txt beside it lists the images", FOLDER, required=True)
    class_map: str | None = flag(
        None,
        "lines REAL_FOLDER<tab>LIKE_FOLDER, for class folders whose names differ; the word `sorted` pairs them by "
        "position (default: by name)",
        FILE,
    )
    again: bool = flag(False, "keep --output if it is there and holds the same draw")


@dataclass(frozen=True, kw_only=True)
class RandomImagesConfig(RandomImagesFlags, CommandConfig):
    """Settings of `python -m utils.report.random_images`."""

    about = "Draw a random subset of real images, with as many images per class as another set."
    groups = (RandomImagesFlags,)


# Findings: settings that are known before a run starts, but are not flags


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Settings of a run that are derived from labels, folders and the machine before training starts.

    If a finding has the name of a flag, the finding is the value that the run uses.

    Attributes:
        device: `cpu` or `cuda`.
        processes: number of processes.
        arithmetic: precision and memory layout, in words.
        workers: data loading processes; at most one per core.
        side_by_side: number of students that train in the same process, and so share the measured seconds.
        input_size: S, side of the model's input in pixels.
        mean, std: mean and standard deviation of each channel of images in [0, 1].
        val_resize: shorter side of validation images in pixels, before the centre is cropped.
        classes: how class folders were numbered and paired, in words.
        mix_type: `cutmix`, `mixup` or `none`; with a live teacher the unchanged value of --mix-type.
        keep_topk, topk_mass: values of the flags, adjusted to the stored labels.
        answers: kind of the stored answers: `logits` or `probabilities`.
        label_order: value of --label-order; None for the stored order.
        labels: digest of all labels that the run needs; None in a dry run without --resume.
        labels_accepted: faults of the labels that --accept-labels tolerates, in words; None without faults.
        teachers: `Ensemble.described` of the live teachers.
        train_images: digest of the classes of the training images.
        val_images: digest of the names, sizes and classes of the validation images.
        earlier: digests as earlier releases computed them, for comparison with their checkpoints; not published.
    """

    device: str = finding("cpu", ONE_GROUP)
    processes: int = finding(1, ONE_GROUP)
    arithmetic: str = finding("", RESULT)
    workers: int = finding(0, NEUTRAL)
    side_by_side: int = finding(1, NEUTRAL)
    input_size: int = finding(224, RESULT)
    mean: tuple[float, ...] = finding(IMAGENET_MEAN, RESULT)
    std: tuple[float, ...] = finding(IMAGENET_STD, RESULT)
    val_resize: int = finding(256, RESULT)
    classes: str = finding("", NEUTRAL)
    mix_type: str | None = finding(None, RESULT)
    keep_topk: int | None = finding(None, RESULT)
    topk_mass: str = finding("kept", RESULT, earlier="kept")
    answers: str = finding("logits", ONE_GROUP)
    label_order: str | None = finding(None, RESULT)
    labels: str | None = finding(None, RESULT)
    labels_accepted: str | None = finding(None, ONE_GROUP)
    teachers: Any = finding(None, RESULT)
    train_images: str | None = finding(None, RESULT)
    val_images: str | None = finding(None, RESULT)
    earlier: Mapping[str, str] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """Return name -> value of all findings that are published."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name != "earlier"}


def run_settings(config: TrainConfig, found: Findings) -> dict[str, Any]:
    """Return the flags and findings of one student's run, as args.json, summary.json and checkpoints store them."""
    return config.settings() | found.settings()


def default_val_resize(input_size: int) -> int:
    """Return the default of --val-resize in pixels: 256/224 of `input_size` from 128 px on, else `input_size`."""
    return round(input_size * 256 / 224) if input_size >= MAGNIFIED_FROM else input_size


def resolve_views(
    config: TrainConfig | RelabelConfig, found: Findings, stated: Mapping[str, Any], labels: str | None = None
) -> Findings:
    """Return `found` with input size, mean, std and validation size, each from the flags, the labels or a default.

    Args:
        config: the flags; a flag that was not given is None.
        found: the findings so far.
        stated: `input_size`, `mean` and `std`, if the labels state them.
        labels: the label folder, for error messages.

    Raises:
        InputError: a flag contradicts the labels, or validation images would be smaller than their crop.
    """
    values: dict[str, Any] = {}
    for name, usual in (("input_size", 224), ("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
        asked, known = getattr(config, name), stated.get(name)
        if asked is not None and known is not None and comparable(asked) != comparable(known):
            raise InputError(
                f"--{name.replace('_', '-')} {typed(asked)} contradicts the labels in {labels}, which were made with "
                f"{typed(known)}; leave it out"
            )
        value: Any = next(value for value in (asked, known, usual) if value is not None)
        values[name] = value if name == "input_size" else tuple(value)
    if not isinstance(config, TrainConfig):  # relabelling evaluates nothing
        return replace(found, **values)
    resize = config.val_resize or default_val_resize(values["input_size"])
    if resize < values["input_size"]:
        raise InputError(
            f"--val-resize {resize} is less than --input-size {values['input_size']}, so that validation images would "
            "have black edges; give at least as much"
        )
    return replace(found, val_resize=resize, **values)


def comparable(value: Any) -> Any:
    """Return a list or tuple as a list of rounded floats, so that values from JSON and from flags compare equal."""
    return [round(float(one), 6) for one in value] if isinstance(value, list | tuple) else value


# Lists of settings by meaning, derived from the fields


def every_setting() -> dict[str, Flag]:
    """Return name in args.json -> `Flag` of every setting of a run; a finding replaces a flag of the same name."""
    kinds: list[type] = [FKDConfig, KDConfig, Findings]
    found = {item.name: item.metadata["flag"] for kind in kinds for item in fields(kind) if "flag" in item.metadata}
    return {{"models": "model", "seeds": "seed"}.get(name, name): about for name, about in found.items()}


def names_with(meaning: Callable[[Meaning], bool]) -> list[str]:
    """Return the names of the settings for whose `Meaning` the predicate `meaning` is true."""
    return [name for name, about in every_setting().items() if meaning(about.meaning)]


FIXED_ON_RESUME = names_with(lambda meaning: meaning.resume)
NEUTRAL_IN_REPORTS = frozenset(names_with(lambda meaning: not meaning.report))
EARLIER = {name: about.earlier for name, about in every_setting().items() if about.earlier is not None}
# Settings of labels, views and loss, which may differ between regimes: hard labels, stored soft labels, live teacher.
REGIME_SETTINGS = [
    *(item.name for group in (LossFlags, LabelFlags, ViewFlags, LiveTeacherFlags) for item in own_fields(group)),
    *("labels", "answers", "teachers"),
]
