"""Define the command-line flags and the other settings of training, relabelling, the label tools and the reports.

The config of a command is a frozen dataclass that inherits its fields from groups of flags. Each field describes one
flag: its name, its help text, whether a changed value prevents resuming a run, and whether reports compare the value.
The argparse parser is built from these fields:

    config = FKDConfig.parse(["--train-dir", "images", "--val-dir", "val", "--epochs", "300"])
    config.epochs  # 300

`Findings` holds the settings of a run that are not flags. Before training starts, they are derived from labels, folders
and the machine. `Findings` is a frozen dataclass too, so a function that derives a setting returns a new `Findings`.
"""

import argparse
import difflib
import itertools
import math
import os
import re
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field as DataclassField
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from typing import Any, ClassVar, NamedTuple, NoReturn, TypeVar

from utils.system.errors import InputError, listing
from utils.system.model_names import folder_name, plain_name

VERSION = "2026.11.dev0"  # version of the program: year and month of the release, see CHANGELOG.md

LOSS_TYPES = ("kl", "dist", "softce", "mse_gt", "mae_gt", "gift", "cosine", "ce")
TEMPERED_LOSSES = ("kl", "dist", "softce")  # losses that divide logits by a temperature
HARD_TERM_LOSSES = ("mse_gt", "mae_gt", "gift")  # losses with a hard-label term, whose weight is --ce-weight
T2_LOSSES = ("kl", "softce")  # losses that --loss-scale-t2 multiplies by T²; dist has this factor in any case
OWN_SOFT_LABELS = ("probabilities", "logits")  # values of `Findings.image_labels` for images with soft labels
# Losses that are not a mean over the rows of a batch. With several ranks, every rank computes such a loss over the rows
# of all ranks.
JOINT_LOSSES = ("dist",)
SCHEDULES = ("linear", "linear-smoothed", "cos", "smoothed", "cos2", "prism", "step")
TEMPERATURE_SCHEDULES = ("constant", "step", "cosine", "step-reverse", "cosine-reverse")
# Prefix of digests that cover all label files. Earlier releases used no prefix and covered only the first file.
NEW_LABEL_DIGEST = "v2:"
STEP_FLOOR = 2.0  # lowest temperature of the schedule `step` (--temperature-schedule)
EMA_BUFFERS = ("averaged", "live")
LABEL_ORDERS = ("stored", "sampled", "shuffled")
ENSEMBLE_RULES = ("mean", "norm-mean", "main-weighted")
AUGMENTS = ("rrc", "dsa", "none", "imagenet-hard")
# value of --augment -> default (smallest, largest) share of the image area in a crop, and probability of a flip
CROPS = {"rrc": (0.08, 1.0, 0.5), "dsa": (1.0, 1.0, 0.0), "none": (1.0, 1.0, 0.0), "imagenet-hard": (0.5, 1.0, 0.5)}
# operations of DSA (Zhao and Bilen, ICML 2021) that --dsa-strategy can list
DSA_OPERATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")
DSA_MODES = ("single", "all", "gift")
# parameters of DSA, and their default values in the code of DSA's authors
DSA_PARAMETERS = {
    "prob_flip": 0.5,
    "ratio_scale": 1.2,
    "ratio_rotate": 15.0,
    "ratio_crop_pad": 0.125,
    "ratio_cutout": 0.5,
    "brightness": 1.0,
    "saturation": 2.0,
    "contrast": 0.5,
}
# patterns of the settings in --auto-augment; see `rand_augment_transform` of timm
RAND_AUGMENT = r"m\d+ n[1-9]\d* p(0(\.\d+)?|1(\.0+)?) mstd\d+(\.\d+)? mmax[1-9]\d* inc1 t(weights|3aw?)".split()
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# A validation image is first resized, then its centre of S x S pixels is cropped. If S is at least this number, the
# shorter side is resized to 256/224 · S pixels; otherwise to S pixels. The code of the papers does the same.
MAGNIFIED_FROM = 128


class Preset(NamedTuple):
    """The teachers of a project, and how it combines their logits.

    Attributes:
        names: models, in the order of the project's code.
        rule: one of ENSEMBLE_RULES.
        accuracies: figures a from which the teachers' weights softmax(a / 10) are computed; None: equal weights.
        bssl: whether batch normalisation uses the statistics of the batch, see --bssl.
    """

    names: tuple[str, ...]
    rule: str = "mean"
    accuracies: tuple[float, ...] | None = None
    bssl: bool = False

    def shares(self, count: int) -> tuple[float, ...] | None:
        """Return the weights of the first `count` teachers, with a sum of 1; None if all weights are equal."""
        if self.accuracies is None:
            return None
        return shares_of([math.exp(accuracy / 10) for accuracy in self.accuracies[:count]])


# r18, r50, r101: PRISM's teachers for this student. edc, cvdd, fadrm: the teachers of EDC, CV-DD and FADRM+ for
# ImageNet-1K.
PRESETS = {
    "r18": Preset(("resnet18", "mobilenet_v2", "alexnet", "shufflenet_v2_x0_5"), "norm-mean"),
    "r50": Preset(("resnet50", "mobilenet_v2", "alexnet", "shufflenet_v2_x0_5"), "main-weighted"),
    "r101": Preset(("resnet101", "mobilenet_v2", "alexnet", "shufflenet_v2_x0_5"), "main-weighted"),
    "edc": Preset(("resnet18", "mobilenet_v2", "shufflenet_v2_x0_5", "alexnet")),
    "cvdd": Preset(
        ("resnet18", "resnet50", "shufflenet_v2_x1_0", "mobilenet_v2", "densenet121"),
        accuracies=(56.4, 42.3, 52.5, 44.2, 40.6),
        bssl=True,
    ),
    "fadrm": Preset(("resnet18", "shufflenet_v2_x1_0", "mobilenet_v2", "densenet121"), bssl=True),
}

Config = TypeVar("Config", bound="CommandConfig")
Number = TypeVar("Number", int, float)


def number(
    kind: type[Number], low: float = -math.inf, high: float = math.inf, open_low: bool = False
) -> Callable[[str], Number]:
    """Return a function that argparse can use as `type`: it converts text to a finite number in a given interval.

    The returned function raises `argparse.ArgumentTypeError` if the text is not a number in the interval.

    Args:
        kind: int or float, the type of the number.
        low, high: bounds of the interval [low, high].
        open_low: whether `low` itself is excluded.
    """

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


def shares_of(weights: Sequence[float]) -> tuple[float, ...] | None:
    """Divide weights by their sum, so that the results have a sum of 1; return None if all weights are equal.

    Weights whose sum is 1 already, but for rounding, are not changed.
    """
    total = math.fsum(weights)
    total = 1.0 if abs(total - 1) < 1e-9 else total
    return None if len(set(weights)) == 1 else tuple(weight / total for weight in weights)


@dataclass(frozen=True)
class Kind:
    """Type of a flag's value: how it is parsed, and how --help abbreviates it.

    Attributes:
        parse: function text -> value.
        metavar: placeholder that --help shows for the value, for instance `PX` for pixels; None: argparse's default.
    """

    parse: Callable
    metavar: str | None


COUNT = Kind(number(int, 1), "N")
NATURAL = Kind(number(int, 0), "N")
PIXELS = Kind(number(int, 1), "PX")
SEED = Kind(number(int, 0), "SEED")
INTEGER = Kind(int, None)
TEXT = Kind(str, None)
NAME, PATH, FILE, FOLDER = (Kind(str, metavar) for metavar in ("NAME", "PATH", "FILE", "DIR"))


def milestone(text: str) -> int | Fraction:
    """Convert a value of --milestones: the number of an epoch (1 or more), or a share of all epochs (0.667 or 2/3).

    A share becomes an exact fraction, because a float times the number of epochs may lie just below a whole number.

    Raises:
        argparse.ArgumentTypeError: the text is neither an integer of at least 1 nor a number between 0 and 1.
    """
    try:
        value = Fraction(text)
    except (ValueError, ZeroDivisionError):
        value = Fraction(0)
    if value >= 1 and text.strip().isdecimal():
        return int(text)
    if 0 < value < 1:
        return value
    raise argparse.ArgumentTypeError(
        f"{text!r} is neither an epoch, as an integer from 1, nor a share of all epochs between 0 and 1 (0.667, 2/3)"
    )


def auto_augment(text: str) -> str:
    """Return the text of --auto-augment unchanged if it describes a RandAugment of timm: `rand` and settings after `-`.

    timm itself ignores some settings that it does not know, and some of its versions take `inc0` for `inc1`.

    Raises:
        argparse.ArgumentTypeError: a part of the text is not one of RAND_AUGMENT.
    """
    name, *parts = text.split("-")
    unknown = [part for part in parts if not any(re.fullmatch(pattern, part) for pattern in RAND_AUGMENT)]
    if name != "rand" or unknown:
        raise argparse.ArgumentTypeError(
            f"{unknown[0] if unknown else name!r} in {text!r} is no setting of RandAugment; write rand, then any of m9 "
            "(magnitude), n2 (operations on an image), p0.5 (probability of each), mstd1.0 (deviation of the "
            "magnitude), mmax10 (its bound), inc1 (a larger magnitude is always stronger) and tweights, t3a or t3aw "
            "(which operations), joined by -"
        )
    return text


def dsa_strategy(text: str) -> str:
    """Return the text of --dsa-strategy unchanged if it names operations of DSA, joined by `_`.

    Raises:
        argparse.ArgumentTypeError: a word is not an operation of DSA.
    """
    unknown = [word for word in text.split("_") if word not in DSA_OPERATIONS]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"{unknown[0]!r} in {text!r} is no operation of DSA; join some of {', '.join(DSA_OPERATIONS)} by _"
        )
    return text


def dsa_parameter(text: str) -> str:
    """Check a text NAME=VALUE of --dsa-param; return it with VALUE written as Python prints a float.

    Raises:
        argparse.ArgumentTypeError: the name is unknown, or the value is not a number in the range of the parameter.
    """
    name, _, value = text.partition("=")
    if name not in DSA_PARAMETERS:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE; NAME is one of {', '.join(DSA_PARAMETERS)}")
    low = 1.0 if name == "ratio_scale" else 0.0
    high = 1.0 if name in ("prob_flip", "ratio_crop_pad", "ratio_cutout") else math.inf
    return f"{name}={number(float, low, high)(value)}"


def resized_side(text: str) -> int | str:
    """Convert the text of --val-resize to a value: `squash`, or a number of pixels from 1 up.

    Raises:
        argparse.ArgumentTypeError: the text is neither.
    """
    if text == "squash":
        return text
    try:
        return number(int, 1)(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}; give a number of pixels, or squash") from None


def student_temperature(text: str) -> str | float:
    """Convert the text of --student-temperature to a value: `teacher`, `calibrated` or a number above 0.

    Raises:
        argparse.ArgumentTypeError: the text is none of these.
    """
    return text if text in ("teacher", "calibrated") else POSITIVE(text)


def device_name(text: str) -> str:
    """Return the text of --device if it is `auto`, `cpu`, `cuda`, `cuda:N`, `mps` or `xpu`.

    Raises:
        argparse.ArgumentTypeError: the text is none of these.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps|xpu", text):
        raise argparse.ArgumentTypeError(f"{text!r} is none of auto, cpu, cuda, cuda:N, mps and xpu")
    return text


@dataclass(frozen=True)
class Meaning:
    """Consequences of a changed setting: for resuming a run, and for grouping runs in a report.

    Attributes:
        resume: whether a changed value prevents resuming a run.
        report: whether a report puts runs with different values into different groups.
    """

    resume: bool
    report: bool


# for settings that may change the result of a run
RESULT = Meaning(resume=True, report=True)
# for settings that must not change within a run, but may differ between the runs of one group in a report
ONE_RUN = Meaning(resume=True, report=False)
# for settings that may change when a run is resumed, but must agree between the runs of one group in a report
ONE_GROUP = Meaning(resume=False, report=True)
# for settings that are never compared: they do not change the final metrics, or another setting records their effect
NEUTRAL = Meaning(resume=False, report=False)


@dataclass(frozen=True)
class Flag:
    """Description of a command-line flag, stored in the metadata of a dataclass field.

    Attributes:
        help: text for --help, with the unit of the value. If the default of the dataclass field says nothing to a user
            (such as None), the text ends in `(default: …)`.
        kind: how the value is parsed and shown in --help.
        meaning: whether a changed value prevents resuming a run, and whether reports compare the value.
        names: spellings of the flag. If empty, the only spelling is made from the field's name: `--batch-size` for
            `batch_size`. A name without leading dashes makes a positional argument.
        choices, nargs, const: arguments of argparse's `add_argument`.
        required: whether `CommandConfig.parse` refuses a command line without the flag.
        repeats: whether the flag may be given several times, so that its value is the list of all given values.
        earlier: value assumed for runs of older releases, which did not have this setting yet; None: no assumed value.
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

    def spellings(self, name: str) -> tuple[str, ...]:
        """Return all spellings of the flag that sets the dataclass field `name`."""
        return self.names or (f"--{name.replace('_', '-')}",)

    def add_to(self, parser: Any, name: str, default: Any) -> None:
        """Add this flag to an argparse parser or argument group.

        Args:
            parser: the argparse parser, or one of its argument groups.
            name: name of the dataclass field, under which argparse stores the value.
            default: value if the flag is not given. If the default is False, the flag takes no value: giving it sets
                the field to True.
        """
        names = self.spellings(name)
        about, usual = self.described(default)
        note = "required" if self.required and names[0].startswith("-") else usual and f"default: {usual}"
        help_text = f"{about} ({note})".replace("%", "%%") if note else about.replace("%", "%%")
        if default is False:
            parser.add_argument(*names, dest=name, action="store_true", help=help_text)
            return
        options: dict[str, Any] = {"type": self.kind.parse, "default": default, "help": help_text}
        asked = {"choices": self.choices, "nargs": self.nargs, "const": self.const, "metavar": self.kind.metavar}
        options |= {key: value for key, value in asked.items() if value is not None}
        options |= {"action": "append"} if self.repeats else {}
        if names[0].startswith("-"):
            parser.add_argument(*names, dest=name, **options)
        else:
            parser.add_argument(name, **{"metavar": name.upper()} | options)

    def usage(self, name: str) -> list[str]:
        """Return what the usage line of --help says about this flag: nothing unless it is required or positional."""
        spelling = self.spellings(name)[0]
        if not spelling.startswith("-"):
            word = (self.kind.metavar or name).upper()
            return [f"[{word} ...]" if self.nargs else word]
        return [f"{spelling} {self.kind.metavar}"] if self.required else []

    def described(self, default: Any) -> tuple[str, str]:
        """Return (meaning of the flag, its default as text); the default is empty if there is nothing to say about it.

        Args:
            default: default of the dataclass field.
        """
        about, _, usual = self.help.partition(" (default: ")
        if not usual and default not in (None, (), "") and default is not False:
            return about, typed(default)
        return about, usual.removesuffix(")")


def typed(value: Any) -> str:
    """Return a flag's value as the text that a user would type; separate the items of a list or tuple by spaces."""
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def flag(default: Any, help: str, kind: Kind = TEXT, meaning: Meaning = NEUTRAL, **options: Any) -> Any:
    """Return a dataclass field for a setting that is a command-line flag.

    The field's metadata holds a `Flag` with the given `help`, `kind` and `meaning`. The `options` set other attributes
    of the `Flag`.
    """
    return field(default=default, metadata={"flag": Flag(help, kind, meaning, **options)})


def finding(default: Any, meaning: Meaning, earlier: Any = None) -> Any:
    """Return a dataclass field of `Findings`, for a setting that is derived before training and is not a flag.

    Args:
        default: default of the field.
        meaning: whether a changed value prevents resuming a run, and whether reports compare the value.
        earlier: value assumed for runs of older releases, which did not have this setting yet; None: no assumed value.
    """
    return flag(default, "", meaning=meaning, earlier=earlier)


class HelpFormatter(argparse.HelpFormatter):
    """Formatter of --help: names the value of a flag once, after all spellings, and keeps the lines of examples.

    It breaks no line at a hyphen, so that flags and file names stay whole.
    """

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith(EXAMPLES) else super()._fill_text(text, width, indent)


EXAMPLES = "examples:\n"  # start of the examples at the end of --help


class Parser(argparse.ArgumentParser):
    """ArgumentParser that raises InputError instead of exiting, and suggests a similar flag for a mistyped flag.

    Args:
        program: words that start the program, for the usage line of --help.
        description: what the program does.
        examples: commands for the end of --help, each on lines of its own.
    """

    def __init__(self, program: str, description: str, examples: str = ""):
        about = f"{description[0].upper()}{description[1:].rstrip('.')}."
        end = EXAMPLES + textwrap.indent(examples.strip(), "  ") if examples else None
        super().__init__(program, None, about, end, formatter_class=HelpFormatter, allow_abbrev=False, add_help=False)
        self.add_argument("-h", "--help", action="help", help="show this text and exit")
        version = f"validator of dataset distillation {VERSION}"
        self.add_argument(
            "--version", action="version", version=version, help="show the version of the program and exit"
        )

    def values(self, argv: Sequence[str] | None) -> dict[str, Any]:
        """Parse a command line; return a dict of field name -> value. A list becomes a tuple: a config is immutable.

        If a shell asks for a completion of its command line, print the possible words and end the process.
        """
        if "_ARGCOMPLETE" in os.environ:
            import argcomplete

            argcomplete.autocomplete(self)
        parsed = vars(self.parse_args(argv))
        return {name: tuple(value) if isinstance(value, list) else value for name, value in parsed.items()}

    def error(self, message: str) -> NoReturn:
        unknown = re.search(r"unrecognized arguments:.*?(--[\w-]+)", message)
        near = difflib.get_close_matches(unknown[1], self._option_string_actions, n=1) if unknown else []
        # the message repeats unknown arguments; one of them may be a secret W&B key that followed a mistyped flag
        message = re.sub(r"\b\w{40,}\b", "<key>", message)
        start, found, words = message.partition("unrecognized arguments: ")
        if found:  # a pattern such as data/* may have become a thousand words
            message = start + found + listing(words.split())
        raise InputError(f"{message}{f' (did you mean {near[0]}?)' if near else ''}; see --help")


class Group:
    """Base class of groups of flags. Each group is a frozen dataclass with one field per flag.

    Attributes:
        title: heading of the group in --help and in docs/flags.md.
    """

    title: ClassVar[str] = ""

    def refuse_alone(self, names: Sequence[str], needed: str) -> None:
        """Raise InputError if a flag in `names` was changed, because such a flag has no effect without `needed`.

        Args:
            names: field names of the flags that must have their default values.
            needed: a flag that was not given, as typed on the command line.
        """
        self.refuse_changed(names, f"without {needed}", "give both, or neither")

    def refuse_changed(self, names: Sequence[str], where: str, remedy: str) -> None:
        """Raise InputError if a flag in `names` was changed, because such a flag has no effect.

        Args:
            names: field names of the flags that must have their default values.
            where: the condition, for the error message: `with --loss-type ce`.
            remedy: what to do, for the error message.
        """
        for name in names:
            default, value = getattr(type(self), name), getattr(self, name)
            if value != default:
                shown = f" {typed(value)}" if isinstance(default, float | str | tuple) else ""
                raise InputError(f"--{name.replace('_', '-')}{shown} has no effect {where}; {remedy}")


@dataclass(frozen=True, kw_only=True)
class CommandConfig:
    """Base class of the configs. A config holds the settings of one command, and can be parsed from a command line.

    Attributes:
        program: words that start the command.
        about: description of the command for --help.
        examples: example commands for --help, with lines of at most 78 characters; `#` starts a comment.
        groups: the command's groups of flags, in the order of --help. The config also inherits from each group.
    """

    program: ClassVar[str] = ""
    about: ClassVar[str] = ""
    examples: ClassVar[str] = ""
    groups: ClassVar[tuple[type[Group], ...]] = ()

    @classmethod
    def parse(cls: type[Config], argv: Sequence[str] | None = None) -> Config:
        """Parse a command line; return the config with all defaults filled in.

        Args:
            argv: the words of the command line, without the program's name; None: the command line of this process.

        Raises:
            InputError: a flag is unknown, a value is invalid, or flags contradict each other.
        """
        return cls.from_values(cls.parser().values(argv))

    @classmethod
    def parser(cls) -> Parser:
        """Return the command's parser, with one argument group for each group of flags."""
        parser = Parser(cls.program, cls.about, cls.examples)
        words = [cls.program]
        for group in cls.groups:
            place = parser.add_argument_group(group.title)
            for item in own_fields(group):
                about: Flag = item.metadata["flag"]
                about.add_to(place, item.name, item.default)
                words += about.usage(item.name)
        words.append("[flags]")
        parser.usage = textwrap.fill(" ".join(words), 70, subsequent_indent="           ", break_on_hyphens=False)
        return parser

    @classmethod
    def from_values(cls: type[Config], values: Mapping[str, Any]) -> Config:
        """Return the config with the parsed `values`, a dict of field name -> value, and with all defaults filled in.

        Raises:
            InputError: a required flag is missing, or flags contradict each other.
        """
        for item in fields(cls):
            about: Flag = item.metadata["flag"]
            if about.required and not values[item.name]:
                raise InputError(f"{about.spellings(item.name)[0]} is missing; give {about.help}; see --help")
        return cls(**values).resolved()

    def resolved(self: Config) -> Config:
        """Check that the flags fit together, and return the config.

        Subclasses override this method. They may also set defaults that depend on other flags.

        Raises:
            InputError: flags contradict each other. The message names them.
        """
        return self

    def settings(self) -> dict[str, Any]:
        """Return a dict of field name -> value, without secret API keys, so that the dict may be published."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name not in SECRET}


SECRET = {"wandb_api_key"}


def own_fields(group: type) -> list[DataclassField]:
    """Return the dataclass fields that are declared in the class `group` itself, not in its base classes."""
    return [item for item in fields(group) if item.name in vars(group).get("__annotations__", {})]


# Groups of flags


NORMALISED = (  # help text of --normalised, in training and in `python -m utils.images`
    "whether floating-point images are already normalised by mean and standard deviation; auto: decided from their "
    "values, and logged"
)


@dataclass(frozen=True, kw_only=True)
class ImageFlags(Group):
    """Flags of training and relabelling: how images are loaded and normalised, and how class folders are numbered."""

    title = "images"

    loader: str = flag(
        "auto",
        "workers: processes decode the images in every epoch; resident: they are decoded once and kept in memory, on "
        "the GPU if there is one; auto: resident if the decoded images fit in half of the free host memory or, on a "
        "GPU, in the memory that training leaves free, else workers",
        choices=("auto", "workers", "resident"),
    )
    class_order: str | None = flag(
        None,
        "file with one class folder a line: that of class 0, 1, 2, … of the labels or the teacher (default: as the "
        "labels state, else sorted names)",
        FILE,
    )
    # field of --classes; the name `classes` is taken by a field of `Findings`
    subset: str | None = flag(
        None,
        "the classes of the run, in order: a file with one class folder a line, or imagenette, imagewoof, imagenet-10, "
        "imagenet-100, imagemeow, imagesquawk, imagefruit, imageyellow; other folders are left out, and logits of more "
        "classes are reduced to these (default: all folders, and all classes of the labels or the teacher)",
        Kind(str, "FILE|NAME"),
        names=("--classes",),
    )
    accept_labels: bool = flag(
        False,
        "go on with labels, or a teacher, that do not fit the images or the class folders; the summary and every "
        "report say so",
    )
    workers: int = flag(4, "data loading processes; 0 loads in this process", NATURAL, names=("-j", "--workers"))
    input_size: int | None = flag(
        None,
        "side of the model's input, in pixels (default: as the labels state, else that of tensors, CIFAR, MNIST and "
        "other sets of one size, else 224)",
        PIXELS,
        RESULT,
    )
    mean: tuple[float, ...] | None = flag(
        None,
        "channel means of images in [0, 1], three or one (default: as the labels state, else ImageNet's)",
        Kind(float, "M"),
        RESULT,
        nargs="+",
    )
    std: tuple[float, ...] | None = flag(
        None,
        "channel standard deviations of images in [0, 1], three or one (default: as the labels state, else ImageNet's)",
        Kind(POSITIVE, "S"),
        RESULT,
        nargs="+",
    )
    normalised: str = flag(
        "auto",
        NORMALISED,
        choices=("auto", "yes", "no"),
    )


@dataclass(frozen=True, kw_only=True)
class DataFlags(Group):
    """Flags for the training and validation images: their folders, the batch size and the resizing in validation."""

    title = "data"

    train_dir: str = flag(
        "", "distilled images, one sub-folder per class or another layout of docs/images.md", PATH, required=True
    )
    val_dir: str = flag(
        "", "validation images, one sub-folder per class or another layout of docs/images.md", PATH, required=True
    )
    val_labels: str | None = flag(
        None,
        "classes of validation images that lie in one folder: a table FILE,CLASS, the ground truth or the class list "
        "of ImageNet's development kit, or one class a line in the order of sorted file names (default: the table that "
        "is found beside the images or one level above)",
        FILE,
    )
    batch_size: int = flag(
        1024, "images per optimizer step; with stored labels, the batch size that they were made with", COUNT, RESULT
    )
    class_map: str | None = flag(
        None,
        "file with lines VALIDATION_FOLDER<tab>TRAINING_FOLDER, for folders whose names differ; the word `sorted` "
        "pairs folders by position (default: by name)",
        FILE,
    )
    val_resize: int | str | None = flag(
        None,
        "shorter side of validation images in pixels, before the central --input-size x --input-size pixels are "
        "cropped; squash: both sides become --input-size, and nothing is cropped (LPLD and LPQLD for ImageNet-21K) "
        "(default: 256/224 of --input-size from 128 px on, else --input-size)",
        Kind(resized_side, "{PX,squash}"),
        RESULT,
    )
    val_ipc: int | None = flag(None, "validate on only the first N images of each class (default: all)", COUNT, RESULT)


@dataclass(frozen=True, kw_only=True)
class LabelFlags(Group):
    """Flags for training on stored soft labels: the label folder, the order of the batches, and checks."""

    title = "soft labels"

    fkd_path: str = flag(
        "",
        "folder of FKD labels, of any project in docs/label-formats.md; relabel_FKD.py makes such labels",
        FOLDER,
        required=True,
    )
    mix_type: str | None = flag(
        None,
        "how the views were mixed; only checked, because the labels state it",
        meaning=RESULT,
        choices=("mixup", "cutmix", "None"),
    )
    fkd_seed: int = flag(
        42, "seed of the image order, for labels without an index", SEED, RESULT, names=("--fkd_seed", "--fkd-seed")
    )
    # Reports do not compare this flag, because it does not change the result of a run. If a run needs more labels than
    # are stored, the run starts only with this flag.
    reuse_labels: bool = flag(
        False, "allow more --epochs, or batches, than are stored: stored ones are visited again", meaning=ONE_RUN
    )
    label_order: str | None = flag(
        None,
        "order of the stored batches; stored: epoch by epoch; sampled: each epoch draws from all stored batches "
        "(LPLD, LPQLD); shuffled: each epoch draws from a pool, which is refilled when it is empty (HALD); --fkd-seed "
        "is the seed of the draws (default: as the project that made the labels does)",
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
    verify_labels: bool = flag(
        False, "compare packed label files with their digests; a dry run then also compares all images with theirs"
    )


@dataclass(frozen=True, kw_only=True)
class ViewFlags(Group):
    """Flags for random crop, flip, cutmix and mixup; names and defaults follow SRe2L's and PRISM's relabel code."""

    title = "views"

    min_scale_crops: float | None = flag(
        None, "area of the smallest crop, as a share of the image (default: 0.08)", Kind(POSITIVE_FRACTION, "A"), RESULT
    )
    max_scale_crops: float | None = flag(
        None, "area of the largest crop, as a share of the image (default: 1.0)", Kind(POSITIVE_FRACTION, "A"), RESULT
    )
    mix_type: str | None = flag(
        None,
        "how the images of a batch are mixed (default: not at all)",
        meaning=RESULT,
        choices=("mixup", "cutmix", "None"),
    )
    mixup: float = flag(0.8, "alpha of mixup's Beta(alpha, alpha)", Kind(POSITIVE, "ALPHA"), RESULT)
    cutmix: float = flag(1.0, "alpha of cutmix's Beta(alpha, alpha)", Kind(POSITIVE, "ALPHA"), RESULT)
    hflip: float | None = flag(None, "probability of a left-right flip (default: 0.5)", Kind(FRACTION, "P"), RESULT)
    fkd_seed: int = flag(42, "seed of image order and views", SEED, RESULT, names=("--fkd-seed", "--fkd_seed"))

    def crop_settings(self, augment: str = "rrc") -> dict[str, Any]:
        """Return a dict field name -> value of --min-scale-crops, --max-scale-crops and --hflip; default if not given.

        Args:
            augment: value of --augment, which sets the defaults; see CROPS.

        Raises:
            InputError: a flag has no effect with `augment`, or the smallest crop is larger than the largest.
        """
        names = ("min_scale_crops", "max_scale_crops", "hflip")
        values = {}
        for name, usual in zip(names, CROPS[augment], strict=True):
            asked = getattr(self, name)
            if asked not in (None, usual) and augment in ("dsa", "none"):
                raise InputError(
                    f"--{name.replace('_', '-')} {asked} has no effect with --augment {augment}, which shows the whole "
                    "image; leave it out"
                )
            values[name] = usual if asked is None else asked
        if values["min_scale_crops"] > values["max_scale_crops"]:
            raise InputError(
                f"--min-scale-crops {values['min_scale_crops']} is more than --max-scale-crops "
                f"{values['max_scale_crops']}; swap them"
            )
        return values


@dataclass(frozen=True, kw_only=True)
class AugmentFlags(Group):
    """Flags for the augmentation of training images in train_KD_parallel.py, except crops, flips and mixing."""

    title = "augmentation"

    augment: str = flag(
        "rrc",
        "rrc: random resized crops and flips; none: whole images; dsa: whole images with DSA (DSA, DM, MTT, DATM); "
        "imagenet-hard: crops of half the image and more, flips, colour jitter, lighting and cutmix (IDC, Minimax "
        "Diffusion), where --min-scale-crops and --mix-type change the defaults",
        meaning=RESULT,
        choices=AUGMENTS,
        earlier="rrc",
    )
    shuffle_patches: int = flag(
        1,
        "cut each image into N strips across its width and N across its height, and put them together in random order "
        "before the crop (RDED); 1: off",
        COUNT,
        RESULT,
        earlier=1,
    )
    auto_augment: str | None = flag(
        None,
        "RandAugment of timm on each image before the crop, such as rand-m6-n2-mstd1.0 (DELT); decoded by worker "
        "processes in every epoch (default: off)",
        Kind(auto_augment, "rand-…"),
        RESULT,
    )
    zca: str | None = flag(
        None,
        "real training set; ZCA is fitted on it once and saved beside it, and whitens the images that are not yet "
        "normalised, in place of mean and standard deviation (MTT, TESLA, DATM)",
        PATH,
    )
    dsa_strategy: str | None = flag(
        None,
        f"operations of DSA, joined by _ (default: {'_'.join(DSA_OPERATIONS)})",
        Kind(dsa_strategy, "A_B_…"),
        RESULT,
    )
    dsa_mode: str | None = flag(
        None,
        "single: each batch gets one operation of the strategy; all: all, in its order; gift: flip and color, then one "
        "of crop, scale and rotate, then cutout, as far as the strategy names them (GIFT, CIM); numbers such as angles "
        "are drawn for each image (default: single, as the code of DSA evaluates)",
        meaning=RESULT,
        choices=DSA_MODES,
    )
    dsa_param: tuple[str, ...] | None = flag(
        None,
        "parameters of DSA (default: " + " ".join(f"{name}={value}" for name, value in DSA_PARAMETERS.items()) + ")",
        Kind(dsa_parameter, "NAME=VALUE"),
        RESULT,
        nargs="+",
    )
    factor_crop: int = flag(
        1,
        "F: with probability 1 - 1/F², a view shows one cell of a grid of F x F cells, else the whole image, for "
        "images that consist of several (GIFT, CIM); with --augment dsa or none",
        COUNT,
        RESULT,
        earlier=1,
    )

    def loader_for(self, loader: str) -> str:
        """Return the value of --loader that the run uses: `workers` with --auto-augment, otherwise `loader` itself.

        Raises:
            InputError: `loader` is `resident`, although --auto-augment is given.
        """
        if self.auto_augment and loader == "resident":
            raise InputError(
                f"--auto-augment {self.auto_augment} changes each image anew before it is cropped, which only worker "
                "processes do; leave out --loader resident"
            )
        return "workers" if self.auto_augment else loader

    def dsa_parameters(self) -> dict[str, float]:
        """Return a dict of all parameters of DSA, name -> value: from --dsa-param if given there, else the default."""
        return DSA_PARAMETERS | {name: float(value) for name, value in (one.split("=") for one in self.dsa_param or ())}

    def dsa_settings(self) -> dict[str, Any]:
        """Return {field name: value or default} of --dsa-strategy, --dsa-mode, --dsa-param; {} without --augment dsa.

        Raises:
            InputError: a flag of DSA is given without --augment dsa.
        """
        names = ("dsa_strategy", "dsa_mode", "dsa_param")
        if self.augment != "dsa":
            self.refuse_alone(names, "--augment dsa")
            return {}
        parameters = tuple(f"{name}={value}" for name, value in self.dsa_parameters().items())
        values = (self.dsa_strategy or "_".join(DSA_OPERATIONS), self.dsa_mode or DSA_MODES[0], parameters)
        return dict(zip(names, values, strict=True))


@dataclass(frozen=True, kw_only=True)
class StudentFlags(Group):
    """Flags for the students. A command trains one student for each combination of a model and a seed."""

    title = "student"

    models: tuple[str, ...] = flag(
        ("resnet18",),
        "torchvision or timm model, a network of dataset condensation such as convnet3, or path/to/file.py:FUNCTION; "
        "several train side by side in one process",
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
    """Flags for the loss and for the temperatures that divide the logits of teacher and student."""

    title = "loss"

    loss_type: str = flag(
        "kl",
        "kl, dist: divergence of softened probabilities; softce: cross-entropy with them; mse_gt, mae_gt: distance of "
        "logits plus hard-label cross-entropy; gift: cosine distance to normalised logits plus smoothed hard labels "
        "(GIFT); cosine: cosine distance of logits; ce: cross-entropy with the folder classes alone",
        meaning=RESULT,
        choices=LOSS_TYPES,
    )
    temperature: float = flag(
        3.0,
        "temperature of kl, dist and softce, which divides logits",
        Kind(POSITIVE, "T"),
        RESULT,
        names=("-T", "--temperature"),
    )
    loss_scale_t2: bool = flag(
        False,
        "multiply kl or softce by T², where T is the student's temperature (Hinton et al., LPLD on Tiny-ImageNet, BPS)",
        meaning=RESULT,
        earlier=False,
    )
    ce_weight: float = flag(
        0.1, "weight of the hard-label term of mse_gt, mae_gt and gift", Kind(NOT_NEGATIVE, "W"), RESULT
    )
    keep_topk: int | None = flag(None, "number of teacher classes kept per image (default: all)", COUNT, RESULT)
    logit_smoothing: float = flag(
        0.0,
        "share S by which the teacher's logits z are smoothed before the loss: (1 - S) z + S / number of classes (LPLD "
        "and LPQLD for ImageNet-21K)",
        Kind(FRACTION, "S"),
        RESULT,
        earlier=0.0,
    )
    topk_mass: str = flag(
        "auto",
        "probabilities of the K largest answers in kl, dist and softce: renormalised to a sum of 1, or kept as they "
        "were while the other classes share the rest; auto: renormalised if the labels do not store the rest (LPQLD), "
        "else kept",
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
    temperature_gamma: float = flag(
        0.7,
        "factor of the temperature at each drop, for the step and step-reverse schedules",
        Kind(POSITIVE_FRACTION, "F"),
        RESULT,
        earlier=0.7,
    )
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
    """Flags for number of epochs, gradient accumulation, optimizer, learning-rate schedule and EMA of the weights."""

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
        "HALD); cos2: stretched by s, with a linear end from 5/6 of the epochs on (EDC's small sets); prism: cos2 with "
        "s = 2.5; step: --gamma at each of --milestones (default: linear)",
        meaning=RESULT,
        choices=SCHEDULES,
    )
    smoothing: float = flag(
        2.0,
        "s of the smoothed, linear-smoothed and cos2 schedules; at least 1 for the last two",
        Kind(POSITIVE, "S"),
        RESULT,
    )
    milestones: tuple[int | Fraction, ...] = flag(
        (),
        "epochs from which on the step schedule multiplies the learning rate by --gamma once more, counted from 0; or "
        "shares of --epochs, such as 2/3 5/6 or 0.5, rounded down to an epoch",
        Kind(milestone, "EPOCH"),
        RESULT,
        nargs="+",
        earlier=(),
    )
    gamma: float = flag(
        0.1, "factor of the step schedule at each milestone", Kind(POSITIVE_FRACTION, "F"), RESULT, earlier=0.1
    )
    step_momentum: str | None = flag(
        None,
        "what the optimizer's momentum does at a milestone: fresh: starts from zero, as in DC, DSA, DM and MTT, which "
        "make a new optimizer; kept: goes on, as in IDC, GIFT and PyTorch's MultiStepLR (default: fresh with --sgd, "
        "else kept)",
        meaning=RESULT,
        choices=("fresh", "kept"),
    )
    warmup_epochs: int = flag(
        0,
        "epochs in which the learning rate first rises linearly from --warmup-factor times its initial value; the "
        "schedule then covers the remaining epochs, but --milestones stay epochs of the whole run",
        NATURAL,
        RESULT,
        earlier=0,
    )
    warmup_factor: float = flag(
        0.01,
        "factor of the learning rate in the first epoch of a warm-up",
        Kind(POSITIVE_FRACTION, "F"),
        RESULT,
        earlier=0.01,
    )
    decay_all: bool = flag(
        False,
        "weight decay on all parameters, as plain SGD and AdamW do (default: not on biases and not on the weights of "
        "normalisation layers)",
        meaning=RESULT,
        earlier=False,
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
    """Flags for the hard-label epochs that a run inserts in the middle of its soft-label epochs (HALD)."""

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
    """Flags for the output folder, the evaluation interval, resuming a run, and a dry run without training."""

    title = "run"

    eval_every: int = flag(10, "epochs between evaluations; the last epoch is always evaluated", COUNT)
    # The best top-1 of a run is that of the evaluations from this epoch on, so the flag must not change within the run.
    # Reports do not compare the flag, because it does not change the last epoch's top-1.
    eval_from: int = flag(
        0, "first epoch that is evaluated, counted from 0; then every --eval-every epochs", NATURAL, ONE_RUN, earlier=0
    )
    output_dir: str = flag("", "folder of the run (default: ./save/<model>-<time>)", FOLDER)
    overwrite: bool = flag(False, "replace a run that is in --output-dir")
    resume: str | None = flag(
        None,
        "continue from the checkpoint PATH; without PATH, continue the run in --output-dir",
        PATH,
        nargs="?",
        const="",
    )
    dry_run: bool = flag(False, "check everything, draw views.png, train nothing")


@dataclass(frozen=True, kw_only=True)
class DeviceFlags(Group):
    """Flags for the device, the floating-point precision and the progress bars."""

    title = "device"

    device: str = flag(
        "auto",
        "auto: CUDA if there is a GPU, else the CPU; AMD's PyTorch calls its GPUs cuda as well; mps: Apple, xpu: Intel "
        "(both untested)",
        Kind(device_name, "{auto,cpu,cuda,cuda:N,mps,xpu}"),
        ONE_GROUP,
    )
    precision: str = flag(
        "auto",
        "auto: bf16 if it is native, else fp32; fp32 uses the NCHW layout of the reference, to reproduce its figures",
        meaning=RESULT,
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    no_progress: bool = flag(False, "show no progress bars, even on a terminal")


@dataclass(frozen=True, kw_only=True)
class WandbFlags(Group):
    """Flags for logging to Weights & Biases: project, key, mode, group and tags."""

    title = "logging to W&B"

    wandb_project: str | None = flag(None, "name of the project; W&B is off without it", NAME)
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


@dataclass(frozen=True)
class Committee:
    """The teachers that the flags of a command select, and how their logits are combined.

    Attributes:
        names: model of each teacher.
        files: for each teacher, the file with its weights; None for pretrained weights of the library.
        weights: for each teacher, the name of its pretrained weights; None for the default, and for a teacher with a
            file.
        stems: stem of each teacher, `standard` or `small`.
        rule: how the logits are combined, one of ENSEMBLE_RULES.
        shares: weight of each teacher in the rule `mean`, with a sum of 1; None if all weights are equal.
        bssl: whether batch normalisation uses the statistics of the batch, see --bssl.
    """

    names: list[str]
    files: list[str | None]
    weights: list[str | None]
    stems: list[str]
    rule: str = "mean"
    shares: tuple[float, ...] | None = None
    bssl: bool = False


@dataclass(frozen=True, kw_only=True)
class EnsembleFlags(Group):
    """Flags for the rule that combines the logits of several teachers, stored or live."""

    title = "several teachers"

    ensemble: str | None = flag(
        None,
        "how answers are combined (default: mean, or with --preset its rule)",
        meaning=RESULT,
        choices=ENSEMBLE_RULES,
    )
    ensemble_weights: tuple[float, ...] | None = flag(
        None,
        "weight of each teacher in --ensemble mean, in turn; divided by their sum (default: equal, or the preset's)",
        Kind(POSITIVE, "W"),
        RESULT,
        nargs="+",
    )

    def shares(self, count: int, rule: str) -> tuple[float, ...] | None:
        """Return --ensemble-weights divided by their sum; None if the flag was not given, or all weights are equal.

        Args:
            count: number of teachers.
            rule: how their logits are combined.

        Raises:
            InputError: the flag has no effect, or does not give one weight for each teacher.
        """
        given = self.ensemble_weights
        if given is None:
            return None
        if rule != "mean":
            raise InputError(
                f"--ensemble-weights {typed(given)} has no effect with --ensemble {rule}; give --ensemble mean, or "
                "leave out the weights"
            )
        if count == 1:
            raise InputError(f"--ensemble-weights {typed(given)} has no effect with one teacher; leave it out")
        if len(given) != count:
            raise InputError(
                f"{len(given)} --ensemble-weights for {count} teachers; give one per teacher in the same order, or none"
            )
        if not math.isfinite(sum(given)):
            raise InputError(
                f"--ensemble-weights {typed(given)}: their sum is too large for a number; give smaller ones"
            )
        return shares_of(given)


@dataclass(frozen=True, kw_only=True)
class LiveTeacherFlags(EnsembleFlags):
    """Flags for live teachers, which compute the soft labels of every batch during training (naive KD)."""

    title = "live teacher"

    teacher_model: tuple[str, ...] = flag(
        ("resnet18",),
        "model of each teacher, a name as for --model; the answers of several are combined",
        NAME,
        RESULT,
        nargs="+",
    )
    teacher_checkpoint: tuple[str, ...] | None = flag(
        None,
        "weights of each --teacher-model in turn: a file, or `pretrained` for the library's (default: the library's "
        "for all; with --loss-type ce no teacher at all)",
        FILE,
        nargs="+",
    )
    teacher_weights: tuple[str, ...] | None = flag(
        None,
        "name of the library's pretrained weights of each --teacher-model without a file, in turn (default: "
        "IMAGENET1K_V1)",
        NAME,
        ONE_GROUP,
        nargs="+",
    )
    teacher_stem: tuple[str, ...] = flag(
        ("standard",),
        "stem of the teachers, as --stem: one for all, or one for each in turn",
        meaning=RESULT,
        choices=("standard", "small"),
        nargs="+",
    )
    ipc: int | None = flag(
        None, "train on only the first N images of each class (default: all)", COUNT, ONE_RUN, names=("--ipc", "--IPC")
    )

    def teachers(self) -> Committee:
        """Return the live teachers that the flags select.

        Raises:
            InputError: flags contradict each other.
        """
        names, rule = list(self.teacher_model), self.ensemble or "mean"
        files = files_of(names, self.teacher_checkpoint, "--teacher-checkpoint")
        weights = weights_of(names, files, self.teacher_weights, "--teacher-weights", "--teacher-checkpoint")
        stems = stems_of(names, self.teacher_stem, "--teacher-stem")
        if rule == "norm-mean" and len(names) == 1:
            raise InputError("--ensemble norm-mean has no effect with one teacher; leave it out")
        return Committee(names, files, weights, stems, rule, self.shares(len(names), rule))


@dataclass(frozen=True, kw_only=True)
class TeacherFlags(EnsembleFlags):
    """Flags for the teachers whose logits are stored as soft labels."""

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
        None,
        "the teachers of a project for ImageNet-1K, and how it combines their answers: PRISM's for this student, or "
        "those of EDC, CV-DD, FADRM+",
        choices=tuple(PRESETS),
    )
    candidate_number: int | None = flag(None, "number of teachers taken from --preset (default: all)", COUNT)
    bssl: bool = flag(
        False,
        "batch-specific soft labels (CV-DD, FADRM): the teachers answer each half of a batch on its own, and their "
        "batch normalisation uses the statistics of these images in place of the running ones; --preset cvdd and "
        "fadrm include it",
    )
    stem: tuple[str, ...] | None = flag(
        None,
        "small: 3x3 convolution with stride 1 as a ResNet's stem; once for all teachers, or for each in turn (default: "
        "standard)",
        choices=("standard", "small"),
        repeats=True,
    )

    def teachers(self, stated: Mapping[str, Any] | None = None) -> Committee:
        """Return the teachers that the flags select.

        Args:
            stated: settings that the labels state; their `ensemble`, `ensemble_weights` and `bssl` are used where
                neither a flag nor --preset sets the value.

        Raises:
            InputError: flags contradict each other.
        """
        names, rule, bssl = list(self.arch or ["resnet18"]), self.ensemble, self.bssl
        preset = Preset(())
        if self.preset:
            if self.arch:
                raise InputError("--preset contradicts --arch; give one of them")
            preset = PRESETS[self.preset]
            names = list(preset.names[: self.candidate_number])
            rule, bssl = rule or preset.rule, bssl or preset.bssl
            stated = None
        else:
            self.refuse_alone(["candidate_number"], "--preset")
        stated = stated or {}
        rule = rule or stated.get("ensemble") or "mean"
        shares = self.shares(len(names), rule)
        if self.ensemble_weights is None and rule == "mean":
            shares = preset.shares(len(names)) if self.preset else sound_shares(stated.get("ensemble_weights"), names)
        files = files_of(names, self.checkpoint, "--checkpoint")
        weights = weights_of(names, files, self.weights, "--weights", "--checkpoint")
        stems = stems_of(names, self.stem or ("standard",), "--stem")
        return Committee(names, files, weights, stems, rule, shares, bssl or stated.get("bssl") is True)


def files_of(names: Sequence[str], given: Sequence[str] | None, flag: str) -> list[str | None]:
    """Return the file with the weights of each teacher; None for a teacher with pretrained weights.

    Args:
        names: models of the teachers.
        given: a file or `pretrained` for each teacher; None: all have pretrained weights.
        flag: the flag that set `given`; the error message mentions it.

    Raises:
        InputError: `given` has more or fewer items than there are teachers.
    """
    files = list(given or ["pretrained"] * len(names))
    if len(files) != len(names):
        raise InputError(
            f"{len(files)} {flag} for {len(names)} teachers; give one per teacher in the same order, or none"
        )
    return [None if file == "pretrained" else file for file in files]


def weights_of(
    names: Sequence[str], files: Sequence[str | None], given: Sequence[str] | None, flag: str, file_flag: str
) -> list[str | None]:
    """Return the name of each teacher's pretrained weights; None for the default, and for a teacher with a file.

    Args:
        names: models of the teachers.
        files: weight file of each teacher; None for pretrained weights.
        given: one name for each teacher without a file, in the order of the teachers; None: the default for all.
        flag: the flag that set `given`; error messages mention it.
        file_flag: the flag that set `files`; error messages mention it.

    Raises:
        InputError: `given` has more or fewer items than there are teachers without a file.
    """
    asked: Sequence[str | None] = given or [None] * files.count(None)
    if len(asked) != files.count(None):
        file = next((file for file in files if file is not None), None)
        if file is not None and len(asked) > files.count(None):
            raise InputError(
                f"{flag} {listing(asked)} contradicts {file_flag} {file}; give one {flag} for each teacher without a "
                "file, in the same order, or none"
            )
        raise InputError(
            f"{len(asked)} {flag} for {files.count(None)} teachers without a {file_flag} (of {listing(names)}); give "
            "one for each in the same order, or none"
        )
    left = iter(asked)
    return [next(left) if file is None else None for file in files]


def stems_of(names: Sequence[str], given: Sequence[str], flag: str) -> list[str]:
    """Return the stem of each teacher: `given` itself, or its only item for all teachers.

    Args:
        names: models of the teachers.
        given: `standard` or `small`, one for all teachers or one for each.
        flag: the flag that set `given`; the error message mentions it.

    Raises:
        InputError: `given` has neither one item nor one for each teacher.
    """
    if len(given) not in (1, len(names)):
        raise InputError(f"{len(given)} {flag} for {len(names)} teachers; give one for all, or one per teacher")
    return list(given) if len(given) == len(names) else list(given) * len(names)


def sound_shares(stated: Any, names: Sequence[str]) -> tuple[float, ...] | None:
    """Return the weights that labels state, if they are one positive number for each teacher; otherwise None."""
    sound = isinstance(stated, list) and len(stated) == len(names) and all(isinstance(one, float) for one in stated)
    return tuple(stated) if sound and all(0 < one < math.inf for one in stated) else None


def alone(values: Sequence[Any] | None) -> Any:
    """Return the only item of a sequence; return a sequence of several items, or None, unchanged.

    args.json records the settings of a single live teacher in this way, because earlier releases knew only one.
    """
    return values[0] if values is not None and len(values) == 1 else values


@dataclass(frozen=True, kw_only=True)
class CodecFlags(Group):
    """Flags for the size of packed labels: bits per logit, and number of logits stored per image."""

    title = "storage"

    bits: int | None = flag(
        None,
        "bits per stored value; 8 and 4 quantise (default: 32; pack: as in the labels)",
        INTEGER,
        choices=(32, 16, 8, 4),
    )
    keep_topk: int | None = flag(None, "store only the K largest logits of an image (default: all)", COUNT)


@dataclass(frozen=True, kw_only=True)
class StoreFlags(Group):
    """Flags of relabelling: the images to label, the label folder to write, its batch size, epochs and file format."""

    title = "labels to write"

    data: str = flag(
        "", "distilled images, one sub-folder per class or another layout of docs/images.md", PATH, required=True
    )
    fkd_path: str = flag(None, "folder to write the labels to", FOLDER, required=True)
    batch_size: int = flag(256, "images per batch, in training as well", COUNT, names=("-b", "--batch-size"))
    epochs: int = flag(300, "epochs of views to label", COUNT)
    format: str = flag(
        "packed",
        "packed: the small format of this project; tar: the 7-item files of PRISM, which other projects read",
        choices=("packed", "tar"),
    )
    use_fp16: bool = flag(False, "store logits in half precision; the same as --bits 16")
    views: str = flag(
        "stored",
        "stored: crops are written beside the logits; drawn: training draws them again from the seed",
        choices=("stored", "drawn"),
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
    """Settings that are common to training with stored labels and training with a live teacher."""

    # start of the folder's name in the default --output-dir, which is ./save/{prefix}{model}-{time}
    prefix: ClassVar[str] = ""

    @property
    def model(self) -> str:
        """Return the name of the student's model; if --model names several models, the first name."""
        return self.models[0]

    @property
    def seed(self) -> int:
        """Return the seed of the student's initial weights; if --seed gives several seeds, the first one."""
        return self.seeds[0]

    @property
    def student_name(self) -> str:
        """Return a name made of the student's model and seed, for instance `resnet18-seed0`."""
        return f"{folder_name(self.model)}-seed{self.seed}"

    @property
    def micro_batch(self) -> int:
        """Return the number of images in a micro-batch, over all ranks."""
        return self.batch_size // self.gradient_accumulation_steps

    @property
    def base_lr(self) -> float:
        """Return the initial learning rate of the chosen optimizer."""
        return self.learning_rate if self.sgd else self.adamw_lr

    def evaluates(self, epoch: int) -> bool:
        """Return whether students are evaluated after `epoch`, which follows from --eval-from and --eval-every."""
        since = epoch - self.eval_from
        return epoch == self.epochs - 1 or (since >= 0 and since % self.eval_every == 0)

    def students(self: "TrainConfigType") -> "list[TrainConfigType]":
        """Return one config per student, that is, per combination of a model in --model and a seed in --seed.

        Each config names only the model and the seed of its student. If there are several students, the `output_dir` of
        each is a sub-folder of --output-dir.
        """
        pairs = list(itertools.product(self.models, self.seeds))
        alone = [replace(self, models=(model,), seeds=(seed,)) for model, seed in pairs]
        if len(alone) == 1:
            return alone
        return [replace(one, output_dir=f"{self.output_dir}/{one.student_name}") for one in alone]

    def settings(self) -> dict[str, Any]:
        """Return a dict of setting name -> value for one student, without secret API keys.

        The keys `model` and `seed` replace `models` and `seeds`, because earlier releases used these keys. The value of
        `model` is the `plain_name`, which depends neither on the spelling nor on the folder of the model's file.
        """
        found = super().settings()
        return {"model": plain_name(self.model), "seed": self.seed} | {
            k: v for k, v in found.items() if k not in ("models", "seeds")
        }

    def resolved(self: "TrainConfigType") -> "TrainConfigType":
        """Check that the flags fit together, and set defaults that depend on other flags. Return the resulting config.

        Raises:
            InputError: flags contradict each other; the message names these flags.
        """
        self.check_optimizer()
        self.check_temperatures()
        self.check_hard_epochs()
        self.check_students()
        self.check_run()
        hard = self.hard_epochs or None
        return replace(
            self,
            schedule=self.schedule or ("cos" if self.cos else "linear"),
            milestones=self.milestone_epochs(),
            step_momentum=(self.step_momentum or ("fresh" if self.sgd else "kept")) if self.milestones else None,
            hard_epochs=hard,
            hard_batch_size=(self.hard_batch_size or 16) if hard else None,
            label_smoothing=(0.8 if self.label_smoothing is None else self.label_smoothing) if hard else None,
            output_dir=self.output_dir or self.default_output(),
        )

    def check_optimizer(self) -> None:
        """Raise InputError if the flags for batch size, learning rate or EMA contradict each other."""
        if self.batch_size % self.gradient_accumulation_steps:
            raise InputError(
                f"--batch-size {self.batch_size} is not divisible by --gradient-accumulation-steps "
                f"{self.gradient_accumulation_steps}; choose steps that divide it"
            )
        if self.cos and self.schedule not in (None, "cos"):
            raise InputError(f"--cos contradicts --schedule {self.schedule}; give one of them")
        if self.schedule in ("linear-smoothed", "cos2") and self.smoothing < 1:
            wrong = "lets the rate of --schedule cos2 rise again"
            if self.schedule == "linear-smoothed":
                wrong = "takes the rate of --schedule linear-smoothed below zero"
            raise InputError(f"--smoothing {self.smoothing} {wrong}; give 1 or more")
        if not self.warmup_epochs:
            self.refuse_alone(["warmup_factor"], "--warmup-epochs")
        if self.warmup_epochs >= self.epochs:
            raise InputError(
                f"--warmup-epochs {self.warmup_epochs} leaves none of --epochs {self.epochs} to the schedule; lower it"
            )
        if self.ema_decay is None:
            self.refuse_alone(["ema_buffers"], "--ema-decay")

    def milestone_epochs(self) -> tuple[int, ...]:
        """Return --milestones as epoch numbers, counted from 0; () without --schedule step.

        A milestone that is a share s of all E epochs becomes epoch int(s E).

        Raises:
            InputError: --milestones, --gamma, --step-momentum, --schedule and --epochs contradict each other.
        """
        if self.schedule != "step":
            self.refuse_alone(["milestones", "gamma", "step_momentum"], "--schedule step")
            return ()
        if not self.milestones:
            raise InputError(
                "--schedule step needs --milestones, the epochs from which on the learning rate is multiplied by "
                "--gamma; give one or more"
            )
        shown = typed(self.milestones)
        epochs = tuple(int(one * self.epochs) if isinstance(one, Fraction) else one for one in self.milestones)
        if min(epochs) < 1:
            raise InputError(f"--milestones {shown}: a share of --epochs {self.epochs} is below 1 epoch; raise it")
        if any(one >= two for one, two in itertools.pairwise(epochs)):
            raise InputError(f"--milestones {shown}: the epochs {typed(epochs)} are not in ascending order; sort them")
        if epochs[0] <= self.warmup_epochs:
            raise InputError(
                f"--milestones {shown}: epoch {epochs[0]} is not after the {self.warmup_epochs} --warmup-epochs, which "
                "end at the initial rate; raise it"
            )
        if epochs[-1] >= self.epochs:
            raise InputError(
                f"--milestones {shown}: epoch {epochs[-1]} is not reached, since the last of --epochs {self.epochs} is "
                f"{self.epochs - 1}; lower it"
            )
        return epochs

    def check_temperatures(self) -> None:
        """Raise InputError if a flag for the teacher's logits has no effect, or --temperature is below its schedule."""
        if self.logit_smoothing == 1:
            raise InputError("--logit-smoothing 1 leaves nothing of the teacher's logits; give less than 1")
        loss = f"with --loss-type {self.loss_type}"
        if self.loss_type == "ce":
            self.refuse_changed(["logit_smoothing"], f"{loss}, which compares no logits", "leave it out")
        if self.loss_type not in TEMPERED_LOSSES:
            self.refuse_changed(["temperature_schedule", "student_temperature"], loss, "use kl, dist or softce")
        if self.loss_type not in T2_LOSSES:
            self.refuse_changed(["loss_scale_t2"], loss, "use kl or softce")
        if self.temperature_schedule == "step" and self.temperature < STEP_FLOOR:
            raise InputError(f"-T {self.temperature} is below {STEP_FLOOR}, which --temperature-schedule step falls to")
        if self.temperature_schedule.startswith("cosine") and self.temperature < self.temperature_min:
            raise InputError(f"-T {self.temperature} is less than --temperature-min {self.temperature_min}; raise it")

    def check_hard_epochs(self) -> None:
        """Raise InputError if a flag for epochs on hard labels has no effect or an impossible value."""
        if not self.hard_epochs:
            self.refuse_alone(["hard_batch_size", "label_smoothing"], "--hard-epochs")
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
        """Raise InputError if a model or seed is given twice, or --resume names one checkpoint for several students."""
        for name, values in (("--model", self.models), ("--seed", self.seeds)):
            twice = next((value for value in values if values.count(value) > 1), None)
            if twice is not None:
                raise InputError(f"{name} names {twice} twice; name each once")
        for first, second in itertools.combinations(self.models, 2):
            if plain_name(first) == plain_name(second):
                raise InputError(
                    f"--model {first} and {second} are both called {plain_name(first)}; name one model once, or rename "
                    "one of the files"
                )
        if self.resume and len(self.models) * len(self.seeds) > 1:
            raise InputError(
                f"--resume {self.resume} is one student's checkpoint, and --model and --seed name several; give "
                "--resume alone, and --output-dir"
            )

    def check_run(self) -> None:
        """Raise InputError if --start-epoch, --eval-from or --resume cannot be used.

        * --start-epoch and --eval-from must be below --epochs.
        * --resume excludes --overwrite, and needs --output-dir or the path of a checkpoint.
        """
        if self.start_epoch >= self.epochs:
            raise InputError(f"--start-epoch {self.start_epoch} leaves nothing of --epochs {self.epochs}; lower it")
        if self.eval_from >= self.epochs:
            raise InputError(
                f"--eval-from {self.eval_from} is not reached, since the last of --epochs {self.epochs} is "
                f"{self.epochs - 1}; lower it"
            )
        if self.resume is not None and self.overwrite:
            raise InputError("--resume contradicts --overwrite; give one of them")
        if self.resume == "" and not self.output_dir:
            raise InputError(
                "--resume needs --output-dir, the folder of the run to continue, or the PATH of a checkpoint"
            )

    def default_output(self) -> str:
        """Return the default of --output-dir: a sub-folder of ./save, named by the models and the current time.

        If the joined model names are longer than NAME_LETTERS, only the first models are named.
        """
        models = [folder_name(model) for model in self.models]
        shown = 1
        while shown < len(models) and len("+".join(models[: shown + 1])) <= NAME_LETTERS:
            shown += 1
        more = f"+{len(models) - shown}-more" if shown < len(models) else ""
        return f"./save/{self.prefix}{'+'.join(models[:shown])}{more}-{time.strftime('%Y%m%d-%H%M%S')}"


TrainConfigType = TypeVar("TrainConfigType", bound=TrainConfig)
# maximum length of the joined model names in the name of an output folder; file systems allow names of 255 bytes
NAME_LETTERS = 100


@dataclass(frozen=True, kw_only=True)
class FKDConfig(LabelFlags, TrainConfig):
    """Settings of train_FKD_parallel.py, which trains students with stored soft labels."""

    program = "python train_FKD_parallel.py"
    about = "Train a student from scratch on distilled images with stored FKD soft labels, and report its top-1."
    examples = r"""
# on the data of `make demo`
python train_FKD_parallel.py --train-dir demo/work/distilled \
    --val-dir demo/work/val --fkd-path demo/work/labels --input-size 32 \
    --batch-size 50 --epochs 5 --output-dir save/smoke
# ImageNet-1K, 10 images per class, as train_FKD_10_r18.sh does
python train_FKD_parallel.py --train-dir DISTILLED --val-dir IMAGENET/val \
    --fkd-path LABELS --batch-size 50 --gradient-accumulation-steps 2 --cos \
    --loss-type mse_gt --ce-weight 0.1 --output-dir save/resnet18
"""
    groups = (
        *(DataFlags, LabelFlags, ImageFlags, StudentFlags, LossFlags, OptimizerFlags, HardFlags),
        *(RunFlags, DeviceFlags, WandbFlags),
    )


@dataclass(frozen=True, kw_only=True)
class KDConfig(LiveTeacherFlags, ViewFlags, AugmentFlags, TrainConfig):
    """Settings of train_KD_parallel.py, which trains students with a live teacher or with hard labels."""

    program = "python train_KD_parallel.py"
    about = (
        "Train a student from scratch on distilled images with a live teacher, or with hard labels alone, and report "
        "its top-1."
    )
    examples = r"""
# a live teacher, on the data of `make demo`
python train_KD_parallel.py --train-dir demo/work/distilled \
    --val-dir demo/work/val --teacher-checkpoint demo/work/teacher.pth \
    --input-size 32 --batch-size 50 --mix-type cutmix --epochs 5 \
    --output-dir save/smoke_kd
# no teacher: the classes of the images are the labels
python train_KD_parallel.py --train-dir DISTILLED --val-dir IMAGENET/val \
    --loss-type ce --batch-size 50 --cos --output-dir save/hard
"""
    groups = (
        *(DataFlags, LiveTeacherFlags, EnsembleFlags, ViewFlags, AugmentFlags, ImageFlags, StudentFlags, LossFlags),
        *(OptimizerFlags, RunFlags, DeviceFlags, WandbFlags),
    )
    prefix = "kd-"

    def settings(self) -> dict[str, Any]:
        """Return a dict of setting name -> value for one student, without secret API keys.

        The settings of a single teacher are recorded as in earlier releases, which knew only one; see `alone`.
        """
        own = ("teacher_model", "teacher_checkpoint", "teacher_weights", "teacher_stem")
        return super().settings() | {name: alone(getattr(self, name)) for name in own}

    def resolved(self) -> "KDConfig":
        """Check that the flags fit together, and set defaults that depend on other flags. Return the resulting config.

        Raises:
            InputError: flags contradict each other; the message names these flags.
        """
        if self.loss_type == "ce":
            names = ["teacher_weights", "ensemble", "ensemble_weights"]
            self.refuse_changed(names, "with --loss-type ce, which asks no teacher", "leave it out")
        chosen = self.teachers()
        # `mean` is recorded as None, and one stem for all teachers as one, whether or not the flags say so
        rule = None if chosen.rule == "mean" else chosen.rule
        stems = tuple(chosen.stems if len(set(chosen.stems)) > 1 else chosen.stems[:1])
        if self.augment not in ("dsa", "none"):
            self.refuse_alone(["factor_crop"], "--augment dsa or --augment none")
        mix_type = "cutmix" if self.augment == "imagenet-hard" and self.mix_type is None else self.mix_type
        views = self.crop_settings(self.augment) | self.dsa_settings() | {"mix_type": mix_type}
        views["loader"] = self.loader_for(self.loader)
        known = super().resolved()
        return replace(known, ensemble=rule, ensemble_weights=chosen.shares, teacher_stem=stems, **views)


@dataclass(frozen=True, kw_only=True)
class RelabelConfig(TeacherFlags, StoreFlags, CodecFlags, ViewFlags, ImageFlags, DeviceFlags, CommandConfig):
    """Settings of relabel_FKD.py, which writes the logits of one teacher or several as soft labels."""

    program = "python relabel_FKD.py"
    about = "Write FKD soft labels: the logits of one teacher or several for every view that students will train on."
    examples = r"""
# on the data of `make demo`
python relabel_FKD.py --data demo/work/distilled -a resnet18 \
    --checkpoint demo/work/teacher.pth --input-size 32 -b 50 --epochs 5 \
    --mix-type cutmix --use-fp16 --fkd-path save/labels
# ImageNet-1K, with the four teachers of PRISM for a ResNet-50
python relabel_FKD.py --data DISTILLED --preset r50 -b 50 --epochs 300 \
    --mix-type cutmix --use-fp16 --fkd-path LABELS
"""
    groups = (StoreFlags, TeacherFlags, EnsembleFlags, ViewFlags, CodecFlags, ImageFlags, DeviceFlags)

    def resolved(self) -> "RelabelConfig":
        """Check that the flags fit together, and set the default of --bits. Return the resulting config.

        Raises:
            InputError: flags contradict each other; the message names these flags.
        """
        if self.use_fp16 and self.bits not in (None, 16):
            raise InputError(f"--use-fp16 contradicts --bits {self.bits}; give one of them")
        bits = self.bits or (16 if self.use_fp16 else 32)
        if self.format == "tar" and (bits < 16 or self.keep_topk or self.views == "drawn"):
            raise InputError(
                "--format tar cannot hold --bits 8 or 4, --keep-topk or --views drawn; use --format packed"
            )
        return replace(self, bits=bits, **self.crop_settings())


@dataclass(frozen=True, kw_only=True)
class SeedFlag(Group):
    """Flag --fkd-seed (seed of the image order), common to all commands of `python -m utils.labels`."""

    title = "image order"

    fkd_seed: int = flag(42, "seed of the image order", SEED, names=("--fkd-seed", "--fkd_seed"))


@dataclass(frozen=True, kw_only=True)
class PathArgument(Group):
    """Positional argument of `python -m utils.labels info` and `verify`: the label folder to read."""

    title = "labels to read"

    path: str = flag(None, "label folder", names=("path",))


@dataclass(frozen=True, kw_only=True)
class FoldersArguments(Group):
    """Positional arguments of `python -m utils.labels pack` and `unpack`: the folders to read and to write."""

    title = "label folders"

    source: str = flag(None, "label folder to read", names=("source",))
    target: str = flag(None, "folder to write", names=("target",))


@dataclass(frozen=True, kw_only=True)
class PackFlags(Group):
    """Flag of `python -m utils.labels pack` for top-k labels that do not state their number of classes."""

    title = "top-k labels"

    num_classes: int | None = flag(
        None, "number of the teacher's classes, for top-k labels that do not state it", COUNT
    )


@dataclass(frozen=True, kw_only=True)
class UnpackFlags(Group):
    """Flags for the file format and the precision that `python -m utils.labels unpack` writes."""

    title = "files to write"

    items: int | None = flag(
        None,
        "items in each file: 6 as in SRe2L's, 7 as in PRISM's or, if the labels hold weights, in WMDD's (default: as "
        "packed)",
        INTEGER,
        choices=(6, 7),
    )
    fp32: bool = flag(False, "write logits as float32 (default: as stored)")


@dataclass(frozen=True, kw_only=True)
class VerifyFlags(Group):
    """Flags with which `python -m utils.labels verify` compares stored soft labels with the logits of a teacher."""

    title = "questions to a teacher"

    images: str | None = flag(
        None, "distilled images, as for --train-dir: compare the labels with a teacher's logits for these images", PATH
    )
    input_size: int | None = flag(
        None, "side of the views, in pixels (default: as the labels state or their cutmix boxes show, else 224)", PIXELS
    )
    mean: tuple[float, ...] | None = flag(
        None, "channel means (default: as the labels state, or ImageNet's)", Kind(float, "M"), nargs=3
    )
    std: tuple[float, ...] | None = flag(
        None, "channel standard deviations (default: as the labels state, or ImageNet's)", Kind(POSITIVE, "S"), nargs=3
    )
    temperature: float = flag(20.0, "temperature of labels that are probabilities (HALD)", Kind(POSITIVE, "T"))
    device: str = flag("auto", "auto: CUDA if there is a GPU", Kind(device_name, "{auto,cpu,cuda,cuda:N,mps,xpu}"))
    precision: str = flag("fp32", "arithmetic of the teacher", choices=("auto", "fp32", "bf16", "fp16"))
    verbose: bool = flag(False, "print the differences of each batch", names=("-v", "--verbose"))


@dataclass(frozen=True, kw_only=True)
class InfoConfig(PathArgument, SeedFlag, CommandConfig):
    """Settings of `python -m utils.labels info`, which describes the content of a label folder."""

    program = "python -m utils.labels info"
    about = "describe a label folder"
    examples = """
python -m utils.labels info demo/work/labels
"""
    groups = (PathArgument, SeedFlag)


@dataclass(frozen=True, kw_only=True)
class PackConfig(FoldersArguments, CodecFlags, PackFlags, SeedFlag, CommandConfig):
    """Settings of `python -m utils.labels pack`, which converts label files to the packed format."""

    program = "python -m utils.labels pack"
    about = "convert the label files of any project to a packed store"
    examples = """
python -m utils.labels pack LABELS PACKED --bits 8 --keep-topk 100
"""
    groups = (FoldersArguments, CodecFlags, PackFlags, SeedFlag)


@dataclass(frozen=True, kw_only=True)
class UnpackConfig(FoldersArguments, UnpackFlags, SeedFlag, CommandConfig):
    """Settings of `python -m utils.labels unpack`, which converts packed labels to .tar files."""

    program = "python -m utils.labels unpack"
    about = "convert a packed store to .tar files"
    examples = """
python -m utils.labels unpack demo/work/labels save/tar --items 6
"""
    groups = (FoldersArguments, UnpackFlags, SeedFlag)


@dataclass(frozen=True, kw_only=True)
class VerifyConfig(PathArgument, VerifyFlags, TeacherFlags, SeedFlag, CommandConfig):
    """Settings of `python -m utils.labels verify`, which checks label files or compares labels with a teacher."""

    program = "python -m utils.labels verify"
    about = "read and check all labels, or compare them with a teacher"
    examples = r"""
# read every file
python -m utils.labels verify demo/work/labels
# and ask the teacher: are these its answers to these images?
python -m utils.labels verify demo/work/labels \
    --images demo/work/distilled -a resnet18 \
    --checkpoint demo/work/teacher.pth
"""
    groups = (PathArgument, VerifyFlags, TeacherFlags, EnsembleFlags, SeedFlag)


LabelCommand = InfoConfig | PackConfig | UnpackConfig | VerifyConfig
LABEL_COMMANDS: dict[str, type[CommandConfig]] = {
    "info": InfoConfig,
    "pack": PackConfig,
    "unpack": UnpackConfig,
    "verify": VerifyConfig,
}


def parse_label_command(argv: Sequence[str] | None) -> Any:
    """Parse a command line of `python -m utils.labels`; return the config of the command that it names.

    Args:
        argv: the words of the command line, starting with a key of LABEL_COMMANDS; None: the process's command line.

    Raises:
        InputError: the command is unknown, or its flags are invalid.
    """
    about = "Describe, pack, unpack and verify folders of FKD labels."
    return parse_command("python -m utils.labels", LABEL_COMMANDS, about, argv)


def parse_command(
    program: str, commands: Mapping[str, type[CommandConfig]], about: str, argv: Sequence[str] | None
) -> Any:
    """Parse a command line whose first word names a command; return the config of this command.

    Args:
        program: words that start the program.
        commands: name of each command -> class of its config.
        about: description of the program for --help.
        argv: the words of the command line; None: the command line of this process.

    Raises:
        InputError: the command is unknown, or its flags are invalid.
    """
    parser = Parser(program, about, f"{program} {next(iter(commands))} --help")
    parser.usage = f"{program} {{{','.join(commands)}}} ..."

    def subparser(kind: type[CommandConfig], **_unused: Any) -> Parser:
        return kind.parser()

    metavar = f"{{{','.join(commands)}}}"
    places = parser.add_subparsers(
        title="commands", dest="command", required=True, metavar=metavar, parser_class=subparser
    )  # type: ignore[call-overload]  # any function that returns a parser serves as its class
    for name, kind in commands.items():
        places.add_parser(name, help=kind.about, kind=kind)
    values = parser.values(argv)
    return commands[values.pop("command")].from_values(values)


@dataclass(frozen=True, kw_only=True)
class ImageSetArgument(Group):
    """Positional argument of `python -m utils.images info`: the image set to describe."""

    title = "image set"

    path: str = flag(None, "image set", names=("path",))


@dataclass(frozen=True, kw_only=True)
class ConvertArguments(Group):
    """Positional arguments of `python -m utils.images convert`: the image set to read and the folder to write."""

    title = "image sets"

    source: str = flag(None, "image set to read", names=("source",))
    target: str = flag(None, "folder to make", names=("target",))


@dataclass(frozen=True, kw_only=True)
class OpenFlags(Group):
    """Flags of `python -m utils.images` that say how to read an image set: part, pixel format and class table."""

    title = "reading the set"

    part: str = flag("train", "part to read if the set has a train and a val part", choices=("train", "val"))
    normalised: str = flag(
        "auto",
        NORMALISED,
        choices=("auto", "yes", "no"),
    )
    val_labels: str | None = flag(None, "classes of images that lie in one folder; see --val-labels of training", FILE)


@dataclass(frozen=True, kw_only=True)
class ImageInfoConfig(ImageSetArgument, OpenFlags, CommandConfig):
    """Settings of `python -m utils.images info`, which describes an image set."""

    program = "python -m utils.images info"
    about = "describe an image set"
    examples = """
python -m utils.images info demo/work/distilled
"""
    groups = (ImageSetArgument, OpenFlags)


@dataclass(frozen=True, kw_only=True)
class ConvertConfig(ConvertArguments, OpenFlags, CommandConfig):
    """Settings of `python -m utils.images convert`, which writes an image set as folders or as tensors."""

    program = "python -m utils.images convert"
    about = "convert an image set of any layout to class folders, or to tensors if it holds floating-point numbers"
    examples = """
python -m utils.images convert SET FOLDER --part val
"""
    groups = (ConvertArguments, OpenFlags)


IMAGE_COMMANDS: dict[str, type[CommandConfig]] = {"info": ImageInfoConfig, "convert": ConvertConfig}


def parse_image_command(argv: Sequence[str] | None) -> Any:
    """Parse a command line of `python -m utils.images`; return the config of the command that it names.

    Args:
        argv: the words of the command line, starting with a key of IMAGE_COMMANDS; None: the process's command line.

    Raises:
        InputError: the command is unknown, or its flags are invalid.
    """
    about = "Describe image sets, and convert them to folders."
    return parse_command("python -m utils.images", IMAGE_COMMANDS, about, argv)


@dataclass(frozen=True, kw_only=True)
class ReportFlags(Group):
    """Flags of reports: the runs to compare, the output folder, and how runs are grouped and rated."""

    title = "report"

    runs: tuple[str, ...] = flag(
        (), "--output-dir of a run, or a folder with many of them", Kind(str, "RUN"), names=("runs",), nargs="*"
    )
    compare: tuple[str, ...] | None = flag(
        None,
        "say in one sentence for each student whether the second folder of runs is better than the first; takes the "
        "place of RUN, and --output is optional",
        FOLDER,
        nargs=2,
    )
    output: str | None = flag(None, "folder for report.html, report.md, report.tex, *.csv and the figures", FOLDER)
    random: str = flag("random", "folder name of the image set that holds random real images", NAME)
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
    searched: tuple[str, ...] = flag(
        (),
        "settings that were searched, adamw_lr for instance: of groups that differ only in these, the one with the "
        "highest top-1 is reported, and the report says that it was picked on the validation set",
        Kind(str, "SETTING"),
        nargs="+",
    )


@dataclass(frozen=True, kw_only=True)
class ReportConfig(ReportFlags, WandbFlags, CommandConfig):
    """Settings of `python -m utils.report`, which compares finished runs."""

    program = "python -m utils.report"
    about = "Compare finished runs: write tables and figures, or say in a sentence which of two folders is better."
    examples = """
python -m utils.report save/runs --output save/report
# is labels_b better than labels_a?
python -m utils.report --compare save/runs/labels_a save/runs/labels_b
"""
    groups = (ReportFlags, WandbFlags)

    def resolved(self) -> "ReportConfig":
        """Return the config; raise InputError if it lacks what to report on, or if a flag has no effect."""
        for name, settings in (("ignore", self.ignore), ("searched", self.searched)):
            if "images" in settings:
                raise InputError(
                    f"--{name} images would mix the results of image sets; leave it out, and compare the groups"
                )
        unknown = [name for name in self.searched if name not in every_setting()]
        if unknown:
            raise InputError(f"--searched {unknown[0]} is no setting of a run; args.json of a run lists them")
        if self.compare is None:
            if not self.runs or not self.output:
                raise InputError(
                    "give RUN and --output DIR for a report, or --compare A B for an answer in words; see --help"
                )
            return self
        self.refuse_with_comparison()
        return self

    def refuse_with_comparison(self) -> None:
        """Raise InputError if a flag is given that has no effect with --compare, or if both folders are the same."""
        first, second = self.compare or ("", "")
        if self.runs:
            raise InputError(f"RUN {self.runs[0]} has no effect with --compare {first} {second}; leave it out")
        self.refuse_changed(["random", "full_data"], "with --compare", "leave it out")
        if self.wandb_project and not self.output:
            raise InputError("--wandb-project with --compare needs --output, the folder whose tables are logged")


@dataclass(frozen=True, kw_only=True)
class RandomImagesFlags(Group):
    """Flags for choosing random real images: their source, their number per class, the seed and the output folder."""

    title = "draw"

    real: str = flag(None, "real images, one sub-folder per class or another layout of docs/images.md", names=("real",))
    like: str | None = flag(None, "the set to match: its classes and images per class", PATH)
    per_class: int | None = flag(None, "instead of --like: number of images to draw of every class of REAL", COUNT)
    seed: int = flag(0, "seed of the draw", SEED)
    output: str = flag(None, "folder to make; OUTPUT.txt beside it lists the images", FOLDER, required=True)
    class_map: str | None = flag(
        None,
        "file with lines REAL_FOLDER<tab>LIKE_FOLDER, for folders whose names differ; the word `sorted` pairs folders "
        "by position (default: by name)",
        FILE,
    )
    subset: str | None = flag(
        None,
        "draw images of these classes only: a file with one class folder a line, or a subset's name, as for training",
        Kind(str, "FILE|NAME"),
        names=("--classes",),
    )
    again: bool = flag(False, "if --output exists, succeed if it holds the same draw")


@dataclass(frozen=True, kw_only=True)
class RandomImagesConfig(RandomImagesFlags, CommandConfig):
    """Settings of `python -m utils.report.random_images`, which chooses a random subset of real images."""

    program = "python -m utils.report.random_images"
    about = "Draw a random subset of real images, with as many images per class as another set."
    examples = r"""
# on the data of `make demo`
python -m utils.report.random_images demo/work/train \
    --like demo/work/distilled --output save/random
python -m utils.report.random_images IMAGENET/train --per-class 10 \
    --output save/random10
"""
    groups = (RandomImagesFlags,)

    def resolved(self) -> "RandomImagesConfig":
        """Return the config; raise InputError unless exactly one of --like and --per-class is given."""
        if (self.like is None) == (self.per_class is None):
            raise InputError("give either --like SET or --per-class N")
        return self


# Settings that are derived before training starts


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Settings of a run that are derived from labels, folders and the machine before training starts.

    Some settings have the same name as a flag. The config then holds the value from the command line, and `Findings`
    holds the value that the run uses.

    Attributes:
        device: kind of device: `cpu`, `cuda`, `mps` or `xpu`.
        processes: number of processes of the run, one per rank.
        arithmetic: description of the floating-point precision and the memory layout.
        workers: number of data loading processes; at most one per CPU core.
        side_by_side: number of students that one command trains at the same time.
        input_size: S, side of the model's input in pixels.
        mean, std: mean and standard deviation of each channel of images in [0, 1].
        channels: C, number of channels of the model's input: 3 for RGB, 1 for grey.
        model_file: digest of the file of a student's model, if --model names a function in a file.
        train_values, val_values: pixel format of the images: `bytes`, `unit` or `normalised`, see `Values`.
        val_resize: shorter side of validation images in pixels, before the centre is cropped; or `squash`, if both
            sides are resized to `input_size`, without a crop.
        classes: description of how classes were numbered, and how validation folders were paired with training folders.
        kept_classes: description of the classes whose logits --classes keeps: their number, the number of classes of
            the labels or the live teacher, and a digest of the kept class numbers; None if all are kept in order.
        mix_type: how images are mixed: `cutmix`, `mixup` or `none`. With a live teacher, this is the value of
            --mix-type as typed, and None if the flag was not given.
        keep_topk: K, if the loss uses only the K most probable classes of an image; None: all classes.
        topk_mass: `kept` or `renormalised`: how the loss treats the probabilities of the top-k classes.
        answers: kind of the soft labels: `logits` or `probabilities`.
        image_labels: kind of the labels that come with the images. `classes`: one class per image; also used if a
            teacher made the labels. `mixed classes`: a mixed view gets the classes of both images, weighted by their
            shares of the view. `probabilities` or `logits`: soft labels that are stored with the images.
        zca: digest of the images that ZCA was fitted on; None without ZCA.
        label_order: `sampled` or `shuffled`; None if stored batches are visited in the stored order.
        labels: digest of all soft labels that the run needs; None with a live teacher or in a dry run without --resume.
        labels_accepted: description of the faults of labels or teacher that --accept-labels tolerated; None if there
            were none.
        teachers: model and weights of each live teacher, as in `Ensemble.described`; None without a live teacher.
        train_images: digest of the classes of the training images.
        val_images: digest of the names, sizes and classes of the validation images.
        earlier: setting name -> digest, computed as in earlier releases, for comparison with checkpoints of these
            releases. `settings` omits this field.
    """

    device: str = finding("cpu", ONE_GROUP)
    processes: int = finding(1, ONE_GROUP)
    arithmetic: str = finding("", RESULT)
    workers: int = finding(0, NEUTRAL)
    side_by_side: int = finding(1, NEUTRAL)
    input_size: int = finding(224, RESULT)
    mean: tuple[float, ...] = finding(IMAGENET_MEAN, RESULT)
    std: tuple[float, ...] = finding(IMAGENET_STD, RESULT)
    channels: int = finding(3, RESULT, earlier=3)
    model_file: str | None = finding(None, RESULT)
    train_values: str = finding("bytes", RESULT, earlier="bytes")
    val_values: str = finding("bytes", RESULT, earlier="bytes")
    val_resize: int | str = finding(256, RESULT)
    classes: str = finding("", NEUTRAL)
    kept_classes: str | None = finding(None, RESULT)
    mix_type: str | None = finding(None, RESULT)
    keep_topk: int | None = finding(None, RESULT)
    topk_mass: str = finding("kept", RESULT, earlier="kept")
    answers: str = finding("logits", ONE_GROUP)
    image_labels: str = finding("classes", RESULT, earlier="classes")
    zca: str | None = finding(None, RESULT)
    label_order: str | None = finding(None, RESULT)
    labels: str | None = finding(None, RESULT)
    labels_accepted: str | None = finding(None, ONE_GROUP)
    teachers: Any = finding(None, RESULT)
    train_images: str | None = finding(None, RESULT)
    val_images: str | None = finding(None, RESULT)
    earlier: Mapping[str, str] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """Return a dict of field name -> value. It has all fields except `earlier`."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name != "earlier"}


def run_settings(config: TrainConfig, found: Findings) -> dict[str, Any]:
    """Return a dict of all settings of one student's run, without secret API keys.

    If a flag and a derived setting have the same name, the dict has the derived value. args.json, summary.json and
    checkpoints store these settings.
    """
    return config.settings() | found.settings()


def default_val_resize(input_size: int) -> int:
    """Return the default of --val-resize in pixels.

    It is 256/224 of `input_size` if `input_size` is at least MAGNIFIED_FROM (128 px), otherwise `input_size` itself.
    """
    return round(input_size * 256 / 224) if input_size >= MAGNIFIED_FROM else input_size


def resolve_views(
    config: TrainConfig | RelabelConfig | VerifyConfig,
    found: Findings,
    stated: Mapping[str, Any],
    labels: str | None = None,
    side: int | None = None,
) -> Findings:
    """Choose input size, mean and standard deviation of the images. For training, also choose --val-resize.

    Each value comes from its flag, else from the labels, else from a default. --val-resize comes from its flag, else
    from `default_val_resize`.

    Args:
        config: the flags; a flag that was not given is None.
        found: the settings that were derived before.
        stated: settings that the labels state, as name -> value. Only `input_size`, `mean` and `std` are used.
        labels: the label folder, for error messages.
        side: default of --input-size, from `ImageSet.side`; None: the default is 224.

    Returns:
        a copy of `found` with the chosen values in `input_size`, `mean`, `std` and, for training, `val_resize`.

    Raises:
        InputError: a flag contradicts the labels; --mean or --std does not have one or three values; or validation
            images would be smaller than their crop.
    """
    values: dict[str, Any] = {}
    for name, usual in (("input_size", side or 224), ("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
        asked, known = getattr(config, name), stated.get(name)
        if name != "input_size" and known is not None and asked is not None:
            asked *= len(known) // len(asked) or 1  # one number stands for three equal ones
        if asked is not None and known is not None and comparable(asked) != comparable(known):
            raise InputError(
                f"--{name.replace('_', '-')} {typed(asked)} contradicts the labels in {labels}, which were made with "
                f"{typed(known)}; leave it out, or relabel with it"
            )
        value: Any = next(value for value in (asked, known, usual) if value is not None)
        if name != "input_size":
            if len(value) not in (1, 3):
                raise InputError(
                    f"--{name} {typed(value)} has {len(value)} numbers; give three, or one for grey images"
                )
            value = tuple(value) * (3 // len(value))
        values[name] = value
    # relabelling and verifying use no validation images, so their configs lack --val-resize
    if not isinstance(config, TrainConfig):
        return replace(found, **values)
    resize = config.val_resize or default_val_resize(values["input_size"])
    if isinstance(resize, int) and resize < values["input_size"]:
        raise InputError(
            f"--val-resize {resize} is less than --input-size {values['input_size']}, so that validation images would "
            "have black edges; give at least as much"
        )
    return replace(found, val_resize=resize, **values)


def grey(found: Findings) -> Findings:
    """Return `found` for models with one input channel: with `channels` 1, and one mean and standard deviation.

    These are the averages of the means and of the standard deviations of the three channels, as in timm.
    """
    return replace(found, channels=1, mean=(sum(found.mean) / 3,), std=(sum(found.std) / 3,))


def comparable(value: Any) -> Any:
    """Convert a list or tuple of numbers to a list of floats with 6 decimals; return any other value unchanged.

    Use this to compare the tuple of a flag with a list that was read from JSON.
    """
    return [round(float(one), 6) for one in value] if isinstance(value, list | tuple) else value


# Lists of the settings that are compared on resuming and in reports


def every_setting() -> dict[str, Flag]:
    """Return a dict of all settings of a training run: name in args.json -> `Flag`.

    If a flag and a field of `Findings` have the same name, the field of `Findings` is used.
    """
    kinds: list[type] = [FKDConfig, KDConfig, Findings]
    found = {item.name: item.metadata["flag"] for kind in kinds for item in fields(kind) if "flag" in item.metadata}
    return {{"models": "model", "seeds": "seed"}.get(name, name): about for name, about in found.items()}


def names_with(meaning: Callable[[Meaning], bool]) -> list[str]:
    """Return the names of those settings of a training run for which `meaning` returns True.

    Args:
        meaning: function `Meaning` of a setting -> bool.
    """
    return [name for name, about in every_setting().items() if meaning(about.meaning)]


FIXED_ON_RESUME = names_with(lambda meaning: meaning.resume)
NEUTRAL_IN_REPORTS = frozenset(names_with(lambda meaning: not meaning.report))
EARLIER = {name: about.earlier for name, about in every_setting().items() if about.earlier is not None}
# Settings that may differ between runs with different kinds of labels: hard labels, stored soft labels, or soft labels
# of a live teacher.
REGIME_SETTINGS = [
    *(
        item.name
        for group in (LossFlags, LabelFlags, ViewFlags, AugmentFlags, LiveTeacherFlags, EnsembleFlags)
        for item in own_fields(group)
    ),
    *("labels", "answers", "image_labels", "teachers", "kept_classes"),
]
