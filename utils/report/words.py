"""Say settings in words that a reader of a table understands: `crops ≥ 0.5` for min_scale 0.5 of the labels' views.

WORDS has an entry for each setting. Its order is the order of the words in a name: what the field varies most comes
first. A setting whose value is a dict or a list of dicts, such as the view policy of labels, is split into its parts;
the name of a part is that of the setting, a dot, and the key.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

NO_VALUE = "none"  # word for a setting that a run does not have
LETTERS = 40  # maximum length of a value; longer ones are cut
# a digest, with or without a prefix such as `v2:`, or a commit, which ends in -dirty if files were changed
DIGEST = re.compile(r"(?:\w+:)?([0-9a-f]{16,})(-dirty)?")


@dataclass(frozen=True)
class Words:
    """Words for one setting.

    Attributes:
        noun: the setting, such as `smallest crop`, for sentences like `smallest crop 0.08 against 0.5`.
        phrase: the setting with its value in place of `{}`, for names; empty: the noun, a space and the value.
        values: value as text -> its words. The key "" is a missing value.
    """

    noun: str
    phrase: str = ""
    values: Mapping[str, str] = field(default_factory=dict)


ON_OFF = {"True": "on", "False": "off"}
SHARE = {"": "0"}
POLICY = {  # parts of a view policy, and the flags of train_KD_parallel.py with the same meaning
    "min_scale": Words("smallest crop", "crops ≥ {}"),
    "max_scale": Words("largest crop", "crops ≤ {}"),
    "mix_type": Words("mixing", "{}", {"none": "no mixing", "": "no mixing", "None": "no mixing"}),
    "mixup_alpha": Words("mixup alpha"),
    "cutmix_alpha": Words("cutmix alpha"),
    "hflip": Words("flips"),
    "input_size": Words("view size", "views of {} px"),
    "seed": Words("view seed"),
}
TEACHERS = {
    "arch": Words("teacher", values={"": "no teacher"}),
    "weights": Words("teacher weights"),
    "model_file": Words("teacher code"),
}
TEACHER_STEM = Words("teacher stem", "teacher stem {}")
ENSEMBLE = Words("ensemble", "ensemble {}", {"": "mean"})
ENSEMBLE_WEIGHTS = Words("ensemble weights", values={"": "equal"})
WORDS: dict[str, Words] = {
    # data and labels
    "images": Words("images"),
    "model": Words("student"),
    "stem": Words("stem", "{} stem"),
    "model_file": Words("model code"),
    **{f"teachers.{name}": words for name, words in TEACHERS.items()},
    "teachers": Words("teachers"),
    "teacher_model": Words("teacher"),
    "teacher_weights": Words("teacher weights"),
    "teacher_stem": TEACHER_STEM,
    "ensemble": ENSEMBLE,
    "ensemble_weights": ENSEMBLE_WEIGHTS,
    **{f"labels.settings.teachers.{name}": words for name, words in TEACHERS.items()},
    "labels.settings.teachers": Words("teachers of the labels"),
    "labels.settings.ensemble": ENSEMBLE,
    "labels.settings.ensemble_weights": ENSEMBLE_WEIGHTS,
    "labels.settings.bssl": Words("batch-specific labels", values=ON_OFF | {"": "off"}),
    "labels.settings.stem": TEACHER_STEM,
    "labels.settings.arithmetic": Words("arithmetic of the labels", "labels in {}"),
    "labels.settings.replay": Words("views of the labels resized", "label views resized {}", {"": "by PIL"}),
    "labels.settings.mean": Words("channel means of the labels"),
    "labels.settings.std": Words("channel deviations of the labels"),
    "labels.settings.pixel_values": Words("pixels of the labels", "labels of {} images", {"": "8-bit"}),
    "labels.settings.teacher_classes": Words("classes of the teacher", values={"": "all"}),
    "labels.settings.labels_accepted": Words("labels", "{}", {"": "checked"}),
    "labels.settings.packed_from": Words("packed from", "packed from {} labels", {"": "none"}),
    "labels.settings.input_size": Words("view size", "views of {} px"),
    "labels.settings": Words("settings of the labels", "{}", {"": "label settings unknown"}),
    "labels.dialect": Words("label format", "{} labels"),
    "labels.codec.bits": Words("bits of the labels", "labels at {} bits"),
    "labels.codec.keep_topk": Words("classes kept in the labels", "top-{} labels", {"": "all"}),
    "labels.codec.views": Words("views of the labels", "{} views"),
    "labels.codec": Words("encoding of the labels", "{}", {"": "label encoding unknown"}),
    "labels.epochs": Words("epochs of the labels", "labels of {} epochs"),
    "labels.batch_size": Words("batch size of the labels", "labels in batches of {}"),
    "labels.num_classes": Words("classes of the labels", "{} classes"),
    "labels": Words("label set", "labels {}"),
    "label_order": Words("order of the labels", "labels {}", {"": "stored"}),
    "answers": Words("kind of the soft labels", "labels as {}"),
    "image_labels": Words("labels of the images", "image labels: {}"),
    "train_images": Words("class folders of the images"),
    "train_values": Words("training pixels", "training pixels: {}"),
    "keep_topk": Words("classes kept in the loss", "top-{} classes", {"": "all"}),
    "num_classes": Words("classes", "{} classes"),
    "kept_classes": Words("subset of the classes", "classes {}", {"": "all"}),
    "hard_epochs": Words("epochs with hard labels", values=SHARE),
    "hard_batch_size": Words("batch size with hard labels"),
    "label_smoothing": Words("label smoothing"),
    # views
    **{f"labels.policy.{name}": words for name, words in POLICY.items()},
    "labels.policy": Words("views", "{}", {"": "views of unknown policy"}),
    "augment": Words("augmentation", "augmentation {}", {"none": "none (whole images)"}),
    "min_scale_crops": POLICY["min_scale"],
    "max_scale_crops": POLICY["max_scale"],
    "hflip": POLICY["hflip"],
    "mix_type": POLICY["mix_type"],
    "mixup": POLICY["mixup_alpha"],
    "cutmix": POLICY["cutmix_alpha"],
    "shuffle_patches": Words("patches shuffled", "patches shuffled {0} x {0}", {"1": "off"}),
    "auto_augment": Words("RandAugment", "RandAugment {}"),
    "factor_crop": Words("grid of views", "grid {0} x {0}"),
    "dsa_strategy": Words("DSA operations", "DSA {}"),
    "dsa_mode": Words("DSA mode"),
    "dsa_param": Words("DSA parameters"),
    "zca": Words("ZCA", values={"": "off"}),
    "fkd_seed": Words("seed of the views"),
    "input_size": Words("input size", "input {} px"),
    "mean": Words("channel means"),
    "std": Words("channel deviations"),
    "channels": Words("channels", "{} channels", {"1": "1 (grey)"}),
    # training
    "epochs": Words("epochs"),
    "start_epoch": Words("first epoch", "from epoch {}"),
    "batch_size": Words("batch size"),
    "gradient_accumulation_steps": Words("micro-batches per step", "{} micro-batches per step"),
    "loss_type": Words("loss"),
    "temperature": Words("temperature", "T {}"),
    "temperature_schedule": Words("schedule of the temperature", "temperature {}"),
    "temperature_step_size": Words("epochs between temperature drops"),
    "temperature_gamma": Words("factor of a temperature drop"),
    "temperature_min": Words("lowest temperature"),
    "student_temperature": Words("student temperature"),
    "loss_scale_t2": Words("loss times T²", values=ON_OFF),
    "ce_weight": Words("weight of the hard-label term", "hard-label term {}"),
    "logit_smoothing": Words("logit smoothing", values=SHARE),
    "topk_mass": Words("top-k probabilities", "top-k probabilities {}"),
    "sgd": Words("optimizer", "{}", {"True": "SGD", "False": "AdamW"}),
    "adamw_lr": Words("learning rate of AdamW", "learning rate {}"),
    "learning_rate": Words("learning rate of SGD", "learning rate {}"),
    "momentum": Words("momentum"),
    "adamw_weight_decay": Words("weight decay of AdamW", "weight decay {}"),
    "weight_decay": Words("weight decay of SGD", "weight decay {}"),
    "decay_all": Words("weight decay on all parameters", values=ON_OFF),
    "schedule": Words("learning-rate schedule", "schedule {}"),
    "cos": Words("cosine schedule", values=ON_OFF),
    "smoothing": Words("smoothing of the schedule", "schedule smoothing {}"),
    "milestones": Words("milestones"),
    "gamma": Words("factor at milestones"),
    "step_momentum": Words("momentum at milestones", "momentum {} at milestones"),
    "warmup_epochs": Words("warm-up epochs", "warm-up of {} epochs"),
    "warmup_factor": Words("factor at the start of the warm-up", "warm-up factor {}"),
    "ema_decay": Words("EMA decay", "EMA {}", {"": "off"}),
    "ema_buffers": Words("EMA statistics", "EMA statistics {}"),
    "sync_bn": Words("synchronised batch norm", values=ON_OFF),
    # validation, machine and versions
    "validation": Words("validation images", "validated on {}"),
    "val_images": Words("validation images", "validated on {}"),
    "val_ipc": Words("validation images per class", "validated on {} per class", {"": "all"}),
    "val_resize": Words("resized validation images", "validation resized to {} px"),
    "val_values": Words("validation pixels", "validation pixels: {}"),
    "labels_accepted": Words("accepted labels", "labels accepted ({})", {"": "no"}),
    "arithmetic": Words("arithmetic"),
    "precision": Words("precision"),
    "processes": Words("processes", "{} processes"),
    "device": Words("device"),
    "device_name": Words("device name", "on {}"),
    "torch": Words("PyTorch"),
    "torchvision": Words("torchvision"),
    "timm": Words("timm"),
    "python": Words("Python"),
    "git_commit": Words("commit", values={"": "unknown"}),
}
RANK = {name: rank for rank, name in enumerate(WORDS)}
# part -> beginnings of parts: a name that has words for one of these needs none for the part, which follows from it
FOLLOWS = {
    "labels": ("labels.",),
    "teachers.weights": ("teachers.arch",),
    "labels.settings.teachers.weights": ("labels.settings.teachers.arch",),
    "teacher_model": ("teachers.",),
    "teacher_weights": ("teachers.",),
    "input_size": ("labels.policy.input_size",),
    "hard_batch_size": ("hard_epochs",),
    "label_smoothing": ("hard_epochs",),
    "warmup_factor": ("warmup_epochs",),
}


def split(name: str, value: Any) -> dict[str, str]:
    """Split the value of a setting into its parts: name of the part -> value as text, "" for None.

    A dict has a part for each key, a list of dicts a part for each key of the dicts, with the values joined by ` + `.
    """
    if isinstance(value, dict):
        return {key: text for inner, one in value.items() for key, text in split(f"{name}.{inner}", one).items()}
    if isinstance(value, list | tuple) and value and all(isinstance(one, dict) for one in value):
        keys = dict.fromkeys(key for one in value for key in one)
        return {f"{name}.{key}": " + ".join(text_of(one.get(key)) for one in value) for key in keys}
    return {name: text_of(value)}


def text_of(value: Any) -> str:
    """Return a value as text without brackets or braces; "" for None and for empty lists.

    Digests are cut to their first seven digits.
    """
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return " ".join(map(text_of, value))
    text = str(value)
    if digest := DIGEST.fullmatch(text):
        return digest[1][:7] + (" with changes" if digest[2] else "")
    return re.sub(r"[{}'\"]", "", text) if isinstance(value, dict) else text


def is_nested(value: Any) -> bool:
    """Return whether `split` splits a value into parts."""
    return split("", value).keys() != {""}


def cut(text: str) -> str:
    """Cut a text to LETTERS characters; a cut text ends in an ellipsis."""
    return text if len(text) <= LETTERS else f"{text[: LETTERS - 1].rstrip()}…"


def words_of(part: str) -> Words:
    """Return the words for a part of a setting; for one that is unknown, its name without underscores."""
    return WORDS.get(part) or Words(re.sub(r"[._]", " ", part))


def value_words(part: str, text: str) -> str:
    """Return the value of a part in words."""
    known = words_of(part).values
    return known.get(text, cut(text) if text else NO_VALUE)


def phrase(part: str, text: str) -> str:
    """Return the phrase of a part with its value, for a name: `epochs 100`."""
    words = words_of(part)
    said = value_words(part, text)
    if words.phrase == "{}":
        return said
    # without a value, `classes kept in the labels all` is clearer than `top-all labels`
    return words.phrase.format(said) if words.phrase and text else f"{words.noun} {said}"


def rank_of(part: str) -> tuple[int, str]:
    """Return the place of a part among the words of a name; unknown parts come last."""
    return RANK.get(part, len(RANK)), part


def apart_in_words(name: str, mine: Any, others: Sequence[Any]) -> dict[str, str]:
    """Return the phrases for one setting that tell a group apart: part -> phrase.

    Args:
        name: the setting.
        mine: its value in the group.
        others: its values in the groups to tell it from.
    """
    own = split(name, mine)
    known = [split(name, other) for other in others if is_nested(other)]
    if not is_nested(mine):
        return {name: phrase(name, text_of(mine))}
    parts = dict.fromkeys([*own, *(part for other in known for part in other)])
    apart = [part for part in parts if {other.get(part, "") for other in known} != {own.get(part, "")}]
    return {part: phrase(part, own.get(part, "")) for part in apart}


def without_followers(parts: Mapping[str, str]) -> list[str]:
    """Return the phrases of a name in the order of WORDS, without those that follow from another one (FOLLOWS)."""
    kept = {
        part: said
        for part, said in parts.items()
        if not any(other.startswith(FOLLOWS.get(part, ())) for other in parts if other != part)
    }
    return list(dict.fromkeys(kept[part] for part in sorted(kept, key=rank_of)))


def changes_in_words(
    names: Sequence[str], ours: Mapping[str, Any], theirs: Mapping[str, Any], joint: str = " against "
) -> list[str]:
    """Return a phrase for each difference of two groups: `smallest crop 0.08 against 0.5`.

    Args:
        names: the settings that differ.
        ours, theirs: setting -> value of each group.
        joint: text between the two values.
    """
    parts: dict[str, tuple[str, str]] = {}
    for name in names:
        one, other = (split(name, values.get(name)) for values in (ours, theirs))
        if name in one and name in other:  # no dict on either side
            parts[name] = (one[name], other[name])
        elif name in one or name in other:  # one side lacks the dict
            parts[name] = ("unknown", "recorded") if name in one else ("recorded", "unknown")
        else:
            for part in dict.fromkeys([*one, *other]):
                if one.get(part, "") != other.get(part, ""):
                    parts[part] = (one.get(part, ""), other.get(part, ""))
    said = {
        part: f"{words_of(part).noun} {value_words(part, one)}{joint}{value_words(part, other)}"
        for part, (one, other) in parts.items()
    }
    return without_followers(said)


def short_paths(paths: Mapping[str, PurePath]) -> dict[str, str]:
    """Return a short unique name for each path: its last components, as few as tell it from the other paths.

    Args:
        paths: key, such as the digest of a folder's content -> path. Equal paths get the start of the key as well.

    Returns:
        key -> name.
    """
    names = {}
    for key, path in paths.items():
        others = [other for rival, other in paths.items() if rival != key]
        depths = range(1, len(path.parts) + 1)
        ends = (path.parts[-depth:] for depth in depths)
        end = next((end for end in ends if not any(other.parts[-len(end) :] == end for other in others)), path.parts)
        same = any(other == path for other in others)
        names[key] = f"{path.name} ({key.rpartition(':')[2][:6]})" if same else str(PurePath(*end))
    return names
