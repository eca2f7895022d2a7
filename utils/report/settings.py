"""Everything that a run's figure depends on, and nothing else.

A flag may be without effect beside the others (momentum without --sgd), and two flags may say the same (--cos and
--schedule cos). Neither may keep runs of equal figures apart. Data are told apart by digests of their content, never by
the names of folders and files.
"""

import re
from collections.abc import Iterator
from typing import Any

from utils.config import EARLIER, NEUTRAL_IN_REPORTS, TEMPERED_LOSSES
from utils.report.runs import FinishedRun
from utils.training.losses import NEEDS_LOGITS

LABEL_FACTS = "dialect epochs batch_size num_classes policy codec settings".split()  # how labels were made
NAMES_OF_CLASSES = "classes", "class_names"  # in `settings`: names of folders, not what is in them
VALIDATION = "validation", "val_images"  # settings that name the validation set: by content, in old runs by file names
ALPHAS = "mixup", "cutmix"  # each counts for the mix type of its name
SCHEDULED = {  # --temperature-schedule -> the flags that shape it
    "constant": (),
    "step": ("temperature_step_size", "temperature_gamma"),
    "cosine": ("temperature_min",),
}
CPU = re.compile(r"x86_64|amd64|i\d86|i386|arm.*|aarch64|ppc64.*|riscv.*|s390x|.*\bFamily \d+.*", re.IGNORECASE)


def settings_of(run: FinishedRun) -> dict[str, str]:
    """Return everything that a run's figure depends on, the seed left out: name -> value as text.

    Summaries of earlier releases are read as well: arguments that they lack have the value that had to be.
    """
    args, labels = earlier_arguments(run.args) | run.args, run.summary["labels"]
    idle = {*NEUTRAL_IN_REPORTS, *without_effect(args, labels)}
    settings = {name: value for name, value in args.items() if name not in idle and value is not None}
    settings["images"] = image_digest(run)
    settings |= run.summary.get("versions", {})
    settings |= {f"labels.{fact}": value for fact in LABEL_FACTS if (value := labels.get(fact)) is not None}
    settings["git_commit"] = run.summary.get("git_commit")

    if "schedule" in args:
        settings.pop("cos", None)  # the same as --schedule cos
    if "arithmetic" in args:
        settings.pop("precision", None)  # `auto`, or what it led to
    settings["device"] = device_of(run)
    if mix_type_of(args) == "none":
        settings.pop("mix_type", None)  # given, or left out
    validation = run.summary.get("validation", {}).get("digest")
    if validation:
        settings.pop("val_images", None)  # names and sizes of the files
        settings["validation"] = validation
    if labels.get("num_classes") is not None:
        settings.pop("num_classes", None)  # given, or as many as folders
    if labels.get("policy"):
        settings["labels.policy"] = policy_of(labels["policy"], args)
    if isinstance(labels.get("settings"), dict):
        made = labels["settings"].items()
        settings["labels.settings"] = {name: value for name, value in made if name not in NAMES_OF_CLASSES}
    return {name: str(value) for name, value in settings.items() if value is not None}


def image_digest(run: FinishedRun) -> str:
    """Digest of the training images' pixels; in the summaries of the first releases, their folder."""
    return run.summary.get("images", {}).get("digest") or run.args["train_dir"]


def earlier_arguments(args: dict[str, Any]) -> dict[str, Any]:
    """Return what runs were made with before an argument existed."""
    known = dict(EARLIER)
    if "input_size" in args:
        known["val_resize"] = round(args["input_size"] * 256 / 224)
    return known


def mix_type_of(args: dict[str, Any]) -> str:
    """Return `mixup`, `cutmix` or `none`."""
    return str(args.get("mix_type") or "none").lower()


def device_of(run: FinishedRun) -> str | None:
    """Return `cpu` or `cuda`; for runs of earlier releases that say `auto`, what the name of their device tells."""
    device = run.args.get("device")
    name = run.summary.get("versions", {}).get("device_name")
    if device == "auto" and name is not None:
        return "cpu" if CPU.fullmatch(name) else "cuda"
    return device


def policy_of(policy: dict[str, Any], args: dict[str, Any]) -> dict[str, Any] | None:
    """Return what counts of the way in which views were drawn; None where the arguments say all of it."""
    if all(name in args for name in ("hflip", *ALPHAS)):  # a live teacher's views: the flags
        return None
    idle = [alpha for alpha in ALPHAS if alpha != policy.get("mix_type")]
    return {name: value for name, value in policy.items() if name not in idle}


def without_effect(args: dict[str, Any], labels: dict[str, Any]) -> Iterator[str]:
    """Yield the arguments that have no effect beside the others, and beside the `labels` of summary.json."""
    loss = args.get("loss_type")
    if "sgd" in args:
        yield from ("adamw_lr", "adamw_weight_decay") if args["sgd"] else ("learning_rate", "momentum", "weight_decay")
    if "smoothed" not in args.get("schedule", "smoothed"):  # linear-smoothed, smoothed
        yield "smoothing"
    if args.get("processes") == 1:
        yield "sync_bn"
    if not args.get("teachers"):
        yield from (name for name in args if name.startswith("teacher_"))
    yield from (alpha for alpha in ALPHAS if alpha != mix_type_of(args))
    drawn_again = any(args.get(name) for name in ("reuse_labels", "label_order", "hard_epochs"))
    if labels.get("dialect") == "packed" and labels.get("policy") and not drawn_again:
        yield "fkd_seed"  # such labels know the image of every row
    if loss not in NEEDS_LOGITS:
        yield "ce_weight"
    if loss == "ce":
        yield "keep_topk"

    # stored probabilities stay as they are, so that only the student's logits may be divided by --temperature
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
