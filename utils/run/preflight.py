"""Every check that can fail before time is spent. Each failure names the flag or file and the remedy."""

import argparse
import copy
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torchvision.datasets import ImageFolder

from utils.labels.agreement import sample_labels, teacher_agreement
from utils.labels.batch import BatchLabels
from utils.labels.hard import HardViews
from utils.labels.packed_manifest import digest_of_names
from utils.labels.pool import PooledLabels, smallest_batch, stored_batches
from utils.labels.store import LabelStore, ViewSource
from utils.run.arguments import micro_batch
from utils.run.checkpoint import restore_rng, rng_state
from utils.run.folder import RUN_FILES
from utils.run.label_checks import soft_epochs
from utils.run.run import Run
from utils.system.errors import InputError, clause
from utils.system.log import log
from utils.training.precision import Precision, unsearched
from utils.views.folders import Samples, load_rgb, open_folder

SAMPLED_IMAGES = 16


def check_folders(train_dir: str | None, val_dir: str | None) -> tuple[ImageFolder, ImageFolder]:
    """Open both image folders; they must have the same number of classes.

    Returns:
        (training ImageFolder, validation ImageFolder).
    """
    train, val = open_folder(train_dir, "--train-dir"), open_folder(val_dir, "--val-dir")
    if len(train.classes) != len(val.classes):
        raise InputError(
            f"--val-dir {val_dir} has {len(val.classes)} class folders and --train-dir {train_dir} has "
            f"{len(train.classes)}; both must hold the same classes"
        )
    warn_of_folder_order(train.classes)
    check_images(train.samples)
    check_images(val.samples)
    return train, val


def check_images(samples: Samples) -> None:
    """Decode a few images spread over a list of (path, class)."""
    for path, _ in samples[:: max(1, len(samples) // SAMPLED_IMAGES)]:
        load_rgb(path)


def names_digest(root: str, samples: Samples) -> str:
    """Digest of an image folder's relative file names, in order: a resumed run needs the same images."""
    return digest_of_names([os.path.relpath(path, root) for path, _ in samples])


def note_images(args: argparse.Namespace, train: Samples, val: Samples) -> None:
    """Note in `args` which images a run is about: digests of two lists of (path, class)."""
    args.train_images = names_digest(args.train_dir, train)
    args.val_images = names_digest(args.val_dir, val)


def warn_of_folder_order(names: Sequence[str]) -> None:
    """Warn where sorted folder names do not follow the numbers at their ends (`new1000` before `new101`)."""
    parts = [trailing_number(name) for name in names]
    numbers = [number for _, number in parts if number is not None]
    if len({prefix for prefix, _ in parts}) != 1 or len(numbers) < len(names):
        return
    for first, second, name, following in zip(numbers, numbers[1:], names, names[1:], strict=False):
        if first > second:
            log.warning(
                "warning: class folders sort as text, so %s comes before %s; pad the numbers with zeros unless the "
                "labels were made in this order",
                name,
                following,
            )
            return


def warn_of_last_batch(images: int, batch_size: int) -> None:
    """Warn where the last batch of an epoch is a single image: training refuses it for students with batch norm."""
    if (images - 1) % batch_size == 0:
        log.warning(
            "WARNING: the last batch of %d images in batches of %d is a single image, on which students with batch "
            "normalisation cannot train; give another -b/--batch-size",
            *(images, batch_size),
        )


def trailing_number(name: str) -> tuple[str, int | None]:
    """Split a folder name into (prefix, number at its end or None)."""
    prefix = name.rstrip("0123456789")
    return prefix, int(name[len(prefix) :]) if len(prefix) < len(name) else None


def check_views(args: argparse.Namespace, store: LabelStore) -> list[BatchLabels]:
    """Cutmix boxes are in pixels of the view that the teacher saw: they must fit --input-size.

    Returns:
        the batches that were looked at: a few `BatchLabels`, spread over the epochs to train, or over a pool.
    """
    if isinstance(store, PooledLabels):
        samples = sample_labels(store.store, range(store.store.epochs))
    else:
        samples = sample_labels(store, soft_epochs(args))
    reach = max((max(labels.mix_bbox[2:]) for labels in samples if labels.mix_bbox is not None), default=0)
    if reach > args.input_size:
        raise InputError(
            f"--input-size {args.input_size} is smaller than the views of the labels in {args.fkd_path}, whose cutmix "
            f"boxes reach pixel {reach}; give the --input-size of relabelling"
        )
    return samples


def report_folders(args: argparse.Namespace, num_train: int, num_val: int, num_classes: int) -> None:
    """Log what is in the two image folders."""
    log.info("train   %d images, %d classes (%s)", num_train, num_classes, args.train_dir)
    log.info("val     %d images, %d classes (%s)", num_val, num_classes, args.val_dir)


def report(
    args: argparse.Namespace, train: ImageFolder, val: ImageFolder, store: LabelStore, samples: Sequence[BatchLabels]
) -> None:
    """Log what was found, in a few lines, and warn loudly where labels and folders seem not to match."""
    report_folders(args, len(train.samples), len(val.samples), len(train.classes))
    batches = f"{count_batches(store)} batches of {store.batch_size}"
    what = store.dialect, store.mix_type, store.num_classes, batches, args.fkd_path
    log.info("labels  %s, %s, %d classes, %s (%s)", *what)
    warn_of_class_names(store, train.classes)
    report_agreement(*teacher_agreement(samples, torch.tensor(train.targets), store.num_classes))


def count_batches(store: LabelStore) -> str:
    """How many batches there are, in words that end before `batches`."""
    if isinstance(store, PooledLabels):
        return f"{store.order}, {store.batches_per_epoch} an epoch, from {stored_batches(store.store)}"
    return f"{store.epochs} epochs of {store.batches_per_epoch}"


def warn_of_class_names(store: LabelStore, names: Sequence[str]) -> None:
    """Warn where packed labels say that they were made for other class folders, or another order of them."""
    stated = store.class_names
    if stated is not None and stated != digest_of_names(names):
        log.warning(
            "WARNING: the labels were made for class folders with other names or in another order than those of "
            "--train-dir; classes are numbered in the order of sorted folder names"
        )


def report_agreement(share: float, chance: float) -> None:
    """Log how often the teacher agrees with the folders; warn loudly where that is near chance."""
    log.info("teacher agrees with the folders on %.1f%% of sampled views (chance: %.1f%%)", 100 * share, 100 * chance)
    if share < chance + (1 - chance) / 10:
        log.warning(
            "WARNING: the teacher's answers hardly match the class folders. The labels were most likely made for "
            "another class order, image order or --fkd_seed, and the result would be meaningless"
        )


def check_run(run: Run, source: ViewSource, num_classes: int, input_size: int, hard: HardViews | None = None) -> None:
    """Check that a `Run` can train and save: one forward pass, free disk; log what it will do and write.

    `source` is the label store or `DrawnViews` that it trains on, `hard` the `HardViews` of its hard epochs.
    """
    args, precision = run.args, run.precision
    rows = smallest_micro_batch(smallest_batch(source), args)
    rows = min(rows, smallest_batch(hard)) if hard else rows
    if not args.sync_bn:  # each process has its own batch statistics
        rows = max(rows // run.world.size, 1)
    for student in run.students:
        check_student(student.model, student.args, rows, num_classes, input_size, precision)
    if run.world.is_first:
        check_room(run)
    steps = args.gradient_accumulation_steps
    log.info(
        "run     %s on %s in %s, %d epochs of %d batches of %d in %d micro-batches",
        ", ".join(student.name if len(run.students) > 1 else student.args.model for student in run.students),
        *(precision.device, precision, len(run.epochs), source.batches_per_epoch, args.batch_size, steps),
    )
    if hard:
        first = run.phases.soft // 2
        log.info(
            "phases  %d epochs on stored labels, %d hard ones of %d batches of %d, %d on stored labels",
            *(first, run.phases.hard, hard.batches_per_epoch, hard.batch_size, run.phases.soft - first),
        )
    log.info("writes  %s to %s", ", ".join(RUN_FILES), args.output_dir)


def check_room(run: Run) -> None:
    """Check that what a `Run` writes fits on its disk."""
    needed = 0
    for student in run.students:
        size = sum(t.numel() * t.element_size() for t in student.model.state_dict().values())
        # weights, optimizer state, best weights; twice, since a file is replaced only when the new one is complete
        needed += 2 * size * ((3 if run.args.sgd else 4) + (run.args.ema_decay is not None))
        needed -= sum(student.folder.file(name).stat().st_size for name in student.folder.previous)
    check_disk(run.args.output_dir, needed, "checkpoints need")


def smallest_micro_batch(rows: int, args: argparse.Namespace) -> int:
    """Rows of the smallest micro-batch, where the smallest batch has `rows`: what is left over for its end."""
    micro = micro_batch(args)
    return rows % micro or micro


def check_student(
    model: nn.Module, args: argparse.Namespace, rows: int, num_classes: int, input_size: int, precision: Precision
) -> None:
    """Run a copy of the student forward, as in training, on the smallest micro-batch; nothing else changes."""
    images = torch.zeros(rows, 3, input_size, input_size, device=precision.device)
    images = images.to(memory_format=precision.memory_format)
    random_state = rng_state()
    try:
        with torch.no_grad(), unsearched(), precision.autocast():
            outputs = copy.deepcopy(model).train()(images)
    except torch.cuda.OutOfMemoryError:  # not the model's fault
        raise
    except Exception as error:  # whatever a model meets in images that are too few, or too small for it
        raise InputError(
            f"--model {args.model} cannot train on a micro-batch of {rows} at --input-size {input_size} "
            f"({clause(error)}); change --gradient-accumulation-steps, the batch size of the labels, "
            + ("--hard-batch-size, " if args.hard_epochs else "")
            + "or the size"
            + (", or add --sync-bn" if args.processes > 1 and not args.sync_bn else "")
        ) from None
    finally:
        restore_rng(random_state)
    shape = list(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
    if shape != [rows, num_classes]:
        raise InputError(
            f"--model {args.model} answers with {shape}, not with logits [{rows}, {num_classes}]; choose a classifier"
        )


def check_disk(folder: str | Path, needed: float, purpose: str) -> None:
    """Raise InputError where fewer than `needed` bytes are free where `folder` is, or will be."""
    place = os.path.abspath(folder)
    while not os.path.exists(place):
        place = os.path.dirname(place)
    free = shutil.disk_usage(place).free
    if free < needed:
        raise InputError(
            f"{folder}: {free / 1e6:.0f} MB of disk are free, and {purpose} {needed / 1e6:.0f} MB; free some space or "
            "choose another folder"
        )
