"""Find the settings that the result of a run depends on. Runs of one group agree in all these settings.

A flag may have no effect because of another (momentum without --sgd), and two flags may mean the same (--cos and
--schedule cos). Runs that differ only in such flags belong to one group. Data are identified by digests of their
content, never by names of folders and files.
"""

import re
from collections.abc import Iterator
from typing import Any

from utils.config import EARLIER, NEUTRAL_IN_REPORTS, TEMPERED_LOSSES
from utils.report.runs import FinishedRun
from utils.training.losses import NEEDS_LOGITS

LABEL_FACTS = "dialect epochs batch_size num_classes policy codec settings".split()  # facts on how labels were made
NAMES_OF_CLASSES = "classes", "class_names"  # ignored in `settings` of labels: names of folders, not content
VALIDATION = "validation", "val_images"  # digests of the validation set: of content; in old runs, of names and sizes
ALPHAS = "mixup", "cutmix"  # each has an effect only with the mix type of the same name
SCHEDULED = {  # --temperature-schedule -> the flags that it reads
    "constant": (),
    "step": ("temperature_step_size", "temperature_gamma"),
    "cosine": ("temperature_min",),
}
CPU = re.compile(r"x86_64|amd64|i\d86|i386|arm.*|aarch64|ppc64.*|riscv.*|s390x|.*\bFamily \d+.*", re.IGNORECASE)


def settings_of(run: FinishedRun) -> dict[str, str]:
    """Return name -> value as text of the settings that a run's result depends on, without the seed.

    Arguments that the summaries of earlier releases lack get the value that those releases used.
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
        settings.pop("cos", None)  # the same as --schedule cos, which `schedule` records
    if "arithmetic" in args:
        settings.pop("precision", None)  # `arithmetic` says what `auto` chose
    settings["device"] = device_of(run)
    if mix_type_of(args) == "none":
        settings.pop("mix_type", None)  # `none` means the same as no flag
    validation = run.summary.get("validation", {}).get("digest")
    if validation:
        settings.pop("val_images", None)  # digest of names and sizes; the content says more
        settings["validation"] = validation
    if labels.get("num_classes") is not None:
        settings.pop("num_classes", None)  # redundant, as the labels state it
    if labels.get("policy"):
        settings["labels.policy"] = policy_of(labels["policy"], args)
    if isinstance(labels.get("settings"), dict):
        made = labels["settings"].items()
        settings["labels.settings"] = {name: value for name, value in made if name not in NAMES_OF_CLASSES}
    return {name: str(value) for name, value in settings.items() if value is not None}


def image_digest(run: FinishedRun) -> str:
    """Return the digest of the training images' pixels, or the folder's path for runs of the first releases."""
    return run.summary.get("images", {}).get("digest") or run.args["train_dir"]


def earlier_arguments(args: dict[str, Any]) -> dict[str, Any]:
    """Return argument -> value that earlier releases used, for arguments that these releases lacked."""
    known = dict(EARLIER)
    if "input_size" in args:
        known["val_resize"] = round(args["input_size"] * 256 / 224)
    return known


def mix_type_of(args: dict[str, Any]) -> str:
    """Return `mixup`, `cutmix` or `none`."""
    return str(args.get("mix_type") or "none").lower()


def device_of(run: FinishedRun) -> str | None:
    """Return `cpu` or `cuda`; if an earlier release recorded `auto`, derive it from the name of the device."""
    device = run.args.get("device")
    name = run.summary.get("versions", {}).get("device_name")
    if device == "auto" and name is not None:
        return "cpu" if CPU.fullmatch(name) else "cuda"
    return device


def policy_of(policy: dict[str, Any], args: dict[str, Any]) -> dict[str, Any] | None:
    """Return the entries of a view policy that have an effect; None if the arguments hold all of them."""
    if all(name in args for name in ("hflip", *ALPHAS)):  # a live teacher: flags define the views
        return None
    idle = [alpha for alpha in ALPHAS if alpha != policy.get("mix_type")]
    return {name: value for name, value in policy.items() if name not in idle}


def without_effect(args: dict[str, Any], labels: dict[str, Any]) -> Iterator[str]:
    """Yield the arguments that have no effect, given the other arguments and the `labels` of summary.json."""
    loss = args.get("loss_type")
    if "sgd" in args:
        yield from ("adamw_lr", "adamw_weight_decay") if args["sgd"] else ("learning_rate", "momentum", "weight_decay")
    if "smoothed" not in args.get("schedule", "smoothed"):  # `linear-smoothed` and `smoothed` read it
        yield "smoothing"
    if args.get("processes") == 1:
        yield "sync_bn"
    if not args.get("teachers"):
        yield from (name for name in args if name.startswith("teacher_"))
    yield from (alpha for alpha in ALPHAS if alpha != mix_type_of(args))
    drawn_again = any(args.get(name) for name in ("reuse_labels", "label_order", "hard_epochs"))
    if labels.get("dialect") == "packed" and labels.get("policy") and not drawn_again:
        yield "fkd_seed"  # these labels state the image of every row
    if loss not in NEEDS_LOGITS:
        yield "ce_weight"
    if loss == "ce":
        yield "keep_topk"

    # --temperature never divides stored probabilities; it divides student logits if --student-temperature is `teacher`
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
