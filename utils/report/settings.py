"""Find the settings that affect a run's result, except the seed. Reports group runs by such settings.

Two kinds of flags are left out:

* flags without effect, for example --momentum without --sgd;
* flags that repeat another flag, for example --cos, which means --schedule cos.

Data are compared by digests of their content. For old runs without digests, names of folders or files are compared.
"""

import re
from collections.abc import Iterator
from typing import Any

from utils.config import EARLIER, HARD_TERM_LOSSES, NEUTRAL_IN_REPORTS, TEMPERED_LOSSES
from utils.report.runs import FinishedRun

# entries of `labels` in summary.json that tell how the labels were made
LABEL_FACTS = "dialect epochs batch_size num_classes policy codec settings".split()
# entries of `labels["settings"]` in summary.json that are ignored, because they only name class folders
NAMES_OF_CLASSES = "classes", "class_names"
# Settings with a digest of the validation set. `validation` covers the content of the images. Old runs have only
# `val_images`, which covers names and sizes of the files.
VALIDATION = "validation", "val_images"
ALPHAS = "mixup", "cutmix"  # parameters of mixing; each has an effect only if the mix type has the same name
# value of --temperature-schedule -> further settings that this schedule uses
SCHEDULED = {
    "constant": (),
    "step": ("temperature_step_size", "temperature_gamma"),
    "cosine": ("temperature_min",),
}
CPU = re.compile(r"x86_64|amd64|i\d86|i386|arm.*|aarch64|ppc64.*|riscv.*|s390x|.*\bFamily \d+.*", re.IGNORECASE)


def settings_of(run: FinishedRun) -> dict[str, str]:
    """Return the settings that affect a run's result, except the seed: name -> value as text."""
    return {name: str(value) for name, value in values_of(run).items()}


def values_of(run: FinishedRun) -> dict[str, Any]:
    """Return the settings that affect a run's result, except the seed: name -> value, which is never None.

    If an old run lacks a setting, the value is the one that old releases always used.
    """
    args = earlier_arguments(run.args) | run.args
    labels = run.summary["labels"]
    idle = {*NEUTRAL_IN_REPORTS, *without_effect(args, labels)}
    settings = {name: value for name, value in args.items() if name not in idle and value is not None}
    settings["images"] = image_digest(run)
    settings |= run.summary.get("versions", {})
    settings |= {f"labels.{fact}": value for fact in LABEL_FACTS if (value := labels.get(fact)) is not None}
    settings["git_commit"] = run.summary.get("git_commit")

    if "schedule" in args:
        settings.pop("cos", None)  # --cos and --schedule cos both set `schedule` to `cos`
    if "arithmetic" in args:
        settings.pop("precision", None)  # `arithmetic` states the precision that was used, even with --precision auto
    settings["device"] = device_of(run)
    if mix_type_of(args) == "none":
        settings.pop("mix_type", None)  # runs without mixing record `none` or no `mix_type`; both mean the same
    validation = run.summary.get("validation", {}).get("digest")
    if validation:
        # `validation`, a digest of the content, replaces `val_images`, a digest of names and sizes, and --val-ipc
        for name in ("val_images", "val_ipc"):
            settings.pop(name, None)
        settings["validation"] = validation
    if labels.get("num_classes") is not None:
        settings.pop("num_classes", None)  # `labels.num_classes` states the same number
    if labels.get("policy"):
        settings["labels.policy"] = policy_of(labels["policy"], args)
    if isinstance(labels.get("settings"), dict):
        made = labels["settings"].items()
        settings["labels.settings"] = {name: value for name, value in made if name not in NAMES_OF_CLASSES}
    return {name: value for name, value in settings.items() if value is not None}


def image_digest(run: FinishedRun) -> str:
    """Return the digest of the pixels of a run's training images.

    Runs of the first releases did not record this digest. For such a run, return the path of the image folder.
    """
    return run.summary.get("images", {}).get("digest") or run.args["train_dir"]


def earlier_arguments(args: dict[str, Any]) -> dict[str, Any]:
    """Return a dict of argument -> value for the arguments that earlier releases lacked.

    Each value is the one that earlier releases always used. `val_resize` is computed from `input_size` in `args`.
    """
    known = dict(EARLIER)
    if "input_size" in args:
        known["val_resize"] = round(args["input_size"] * 256 / 224)
    return known


def mix_type_of(args: dict[str, Any]) -> str:
    """Return how a run mixed the images of a batch: `mixup`, `cutmix` or `none`."""
    return str(args.get("mix_type") or "none").lower()


def device_of(run: FinishedRun) -> str | None:
    """Return the type of a run's device, `cpu` or `cuda`; None if it was not recorded.

    Old runs recorded `auto`. Their type is inferred from the device's name. Without a name, the result is `auto`.
    """
    device = run.args.get("device")
    name = run.summary.get("versions", {}).get("device_name")
    if device == "auto" and name is not None:
        return "cpu" if CPU.fullmatch(name) else "cuda"
    return device


def policy_of(policy: dict[str, Any], args: dict[str, Any]) -> dict[str, Any] | None:
    """Return the view policy (parameters of crop, flip and mixing) without the parameters that have no effect.

    Args:
        policy: the view policy of the labels.
        args: arguments of the run.

    Returns:
        name -> value; None for runs of train_KD_parallel.py, whose `args` hold the same parameters.
    """
    # Only train_KD_parallel.py has these flags. It draws views during training, according to its flags.
    if all(name in args for name in ("hflip", *ALPHAS)):
        return None
    idle = [alpha for alpha in ALPHAS if alpha != policy.get("mix_type")]
    return {name: value for name, value in policy.items() if name not in idle}


def without_effect(args: dict[str, Any], labels: dict[str, Any]) -> Iterator[str]:
    """Yield the names of a run's arguments that have no effect, because of other arguments or of the labels.

    Args:
        args: arguments of the run.
        labels: entry `labels` of summary.json, which tells how the labels were made.
    """
    loss = args.get("loss_type")
    if "sgd" in args:
        yield from ("adamw_lr", "adamw_weight_decay") if args["sgd"] else ("learning_rate", "momentum", "weight_decay")
    if args.get("schedule", "smoothed") not in ("smoothed", "linear-smoothed", "cos2"):
        yield "smoothing"
    yield from () if args.get("warmup_epochs") else ("warmup_factor",)
    if args.get("schedule") != "step":
        yield from ("milestones", "gamma", "step_momentum")
    if args.get("processes") == 1:
        yield "sync_bn"
    if not args.get("teachers"):
        yield from ("ensemble", "ensemble_weights", *(name for name in args if name.startswith("teacher_")))
    yield from (alpha for alpha in ALPHAS if alpha != mix_type_of(args))
    drawn_again = any(args.get(name) for name in ("reuse_labels", "label_order", "hard_epochs"))
    if labels.get("dialect") == "packed" and labels.get("policy") and not drawn_again:
        # --fkd-seed has no effect: packed labels with a policy store the image numbers or the seed of the image order
        yield "fkd_seed"
    if loss not in HARD_TERM_LOSSES:
        yield "ce_weight"
    if loss == "ce":
        yield "keep_topk"

    # Whether --temperature divides any logits. If the labels are logits, --temperature divides the labels. If
    # --student-temperature is `teacher`, --temperature divides the student's logits.
    divided = args.get("answers") != "probabilities" or args["student_temperature"] == "teacher"
    kind = args["temperature_schedule"].removesuffix("-reverse")
    shape = {name for names in SCHEDULED.values() for name in names}
    if loss in TEMPERED_LOSSES and divided:
        shape -= set(SCHEDULED.get(kind, shape))
    else:
        shape |= {"temperature", "temperature_schedule"}
    yield from shape
    if loss not in TEMPERED_LOSSES:
        yield "student_temperature"
    if loss not in TEMPERED_LOSSES or args.get("keep_topk") is None:
        yield "topk_mass"
