"""Every check that can fail before time is spent. Each failure names the flag or file and the remedy."""

import argparse
import copy
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from utils.labels.agreement import VIEWS_PER_CLASS, Agreement, fitting_seed, judge, pick_evenly, sample_labels, views_of
from utils.labels.hard import HardViews
from utils.labels.image_digests import ImageDigests
from utils.labels.packed_manifest import digest_of_names
from utils.labels.store import LabelStore, ViewSource
from utils.labels.training_views import TrainingViews
from utils.labels.types import BatchLabels, values_of
from utils.run.arguments import micro_batch
from utils.run.checkpoint import restore_rng, rng_state
from utils.run.classes import Numbering, display_names, number_train_folders, number_val_folders
from utils.run.folder import RUN_FILES
from utils.run.label_checks import soft_epochs
from utils.run.run import Run
from utils.run.teacher_check import states_index, unchecked
from utils.system.errors import InputError, clause, listing
from utils.system.log import log
from utils.system.memory import readable_size
from utils.system.ranks import World
from utils.training.precision import Precision, without_cudnn_benchmark
from utils.views.folders import ImageSet, Samples, load_rgb, open_folder
from utils.views.identity import KnownImages, file_digest, identify, know_images, relative_names
from utils.views.preview import ask_teacher
from utils.views.replay import Normalise
from utils.views.workers import ViewDataset

SAMPLED_IMAGES = 16
PROBES = 64  # images whose content is compared where not all are
MOST_RIVALS = 2000  # validation images that are read for it at the most
EVEN = 0.9  # share of validation classes of one size from which on the sizes of all should be one


def check_folders(train_dir: str | None, val_dir: str | None) -> tuple[ImageSet, ImageSet]:
    """Open both image folders and decode a few of their images.

    Returns:
        (training ImageSet, validation ImageSet).
    """
    train, val = open_folder(train_dir, "--train-dir"), open_folder(val_dir, "--val-dir")
    warn_of_folder_order(train.classes)
    check_images(train.samples)
    check_images(val.samples)
    return train, val


def number_classes(
    args: argparse.Namespace,
    train: ImageSet,
    val: ImageSet,
    num_classes: int,
    stated: Mapping[str, int] | None = None,
) -> list[str]:
    """Give every image the number of its class among those of the labels, in place; log where that is not plain.

    Args:
        args: settled flags; `classes` is noted in them, how the folders were numbered and paired.
        train, val: the image folders; validation images of classes that are not trained are left out.
        num_classes: C of the labels, or of the live teacher.
        stated: folder name -> class, as the labels state it.

    Returns:
        a name for each of C classes, for pictures.

    Raises:
        InputError: names or files do not say which class a folder is.
    """
    own = number_train_folders(train.classes, num_classes, args.class_order, stated)
    where = f"--val-dir {args.val_dir} and --train-dir {args.train_dir}"
    theirs = number_val_folders(val.classes, train.classes, own, args.class_map, where)
    if max(number for number in own.numbers if number is not None) >= num_classes:
        raise InputError(
            f"--train-dir {args.train_dir} has {len(train.classes)} class folders, but there are only {num_classes} "
            "classes to answer; give a teacher, or labels, of all classes"
        )
    if own.numbers != list(range(len(own.numbers))):
        log.info("classes %d training folders are numbered %s", len(train.classes), own.how)
    if theirs.how != "by name":
        log.info("classes validation folders are paired with training folders %s", theirs.how)
    absent = theirs.numbers.count(None)
    if absent:
        log.info(
            "classes %d of %d validation folders are left out: their classes are not trained", absent, len(val.classes)
        )
    args.classes = f"numbered {own.how}, paired {theirs.how}"
    for folder, numbering in ((train, own), (val, theirs)):
        renumber(folder, numbering)
    return display_names(train.classes, own, num_classes)


def number_relabelled(args: argparse.Namespace, folder: ImageSet, num_classes: int) -> list[str]:
    """Give every image of --data the number of its class among the teachers', in place, as `number_classes` does.

    Returns:
        a name for each of C classes.
    """
    own = number_train_folders(folder.classes, num_classes, args.class_order)
    if own.numbers != list(range(len(own.numbers))):
        log.info("classes %d folders are numbered %s", len(folder.classes), own.how)
    renumber(folder, own)
    return display_names(folder.classes, own, num_classes)


def renumber(folder: ImageSet, numbering: Numbering) -> None:
    """Replace the classes of a folder's images by those of `numbering`; images without a class go."""
    numbers = [(path, numbering.numbers[place]) for path, place in folder.samples]
    folder.samples = [(path, number) for path, number in numbers if number is not None]


def check_images(samples: Samples) -> None:
    """Decode a few images spread over a list of (path, class)."""
    for path, _ in samples[:: max(1, len(samples) // SAMPLED_IMAGES)]:
        load_rgb(path)


def note_images(args: argparse.Namespace, train: Samples, val: Samples) -> None:
    """Note in `args` which images a run is about, as far as names tell: the content of training images is compared
    by `identify_images`, that of validation images when they are first evaluated.

    `train_images` is a digest of the classes of all training images, `val_images` of the names, sizes and classes of
    all validation images. `earlier` holds what checkpoints of earlier releases have in their place.
    """
    args.train_images = f"classes:{digest_of_names([str(target) for _, target in train])}"
    sizes = [os.stat(path) for path, _ in val]
    for (path, _), size in zip(val, sizes, strict=True):
        if not size.st_size:
            raise InputError(f"{path} is empty; replace the image, or remove it")
    names = relative_names(args.val_dir, val)
    lines = [f"{name} {size.st_size} {target}" for name, size, (_, target) in zip(names, sizes, val, strict=True)]
    args.val_images = f"sizes:{digest_of_names(lines)}"
    args.earlier |= {"train_images": digest_of_names(relative_names(args.train_dir, train))}
    args.earlier |= {"val_images": digest_of_names(names)}
    warn_of_overlap(args, train, val, sizes)


def warn_of_overlap(
    args: argparse.Namespace, train: Samples, val: Samples, val_stats: Sequence[os.stat_result]
) -> None:
    """Warn if images are in both folders: all links are compared, and the content of a few files of equal sizes."""
    stats = [os.stat(path) for path, _ in train]
    files = {(stat.st_dev, stat.st_ino) for stat in stats}
    shared = sum((stat.st_dev, stat.st_ino) in files for stat in val_stats)
    if not shared:
        sizes = {stat.st_size for stat in val_stats}
        alike = [(path, stat.st_size) for (path, _), stat in zip(train, stats, strict=True) if stat.st_size in sizes]
        probes = {(size, file_digest(Path(path).read_bytes())) for path, size in pick_evenly(alike, PROBES)}
        wanted = {size for size, _ in probes}
        rivals = [(path, s.st_size) for (path, _), s in zip(val, val_stats, strict=True) if s.st_size in wanted]
        shared = sum((size, file_digest(Path(path).read_bytes())) in probes for path, size in rivals[:MOST_RIVALS])
    if shared:
        log.warning(
            "WARNING: at least %d images of --val-dir %s are in --train-dir %s as well; their top-1 says nothing about "
            "new images",
            *(shared, args.val_dir, args.train_dir),
        )


def identify_images(
    args: argparse.Namespace, train: Samples, stored: ImageDigests | None, world: World
) -> KnownImages | None:
    """Find out which images are in --train-dir and compare them with those that the labels were made for.

    A run needs all of them, also for its summary and for --resume. A dry run compares a sample, and looks at the rest
    only if the sample differs, to say how.

    Args:
        args: settled flags.
        train: list of (path, class).
        stored: digests of the labels' images; None if the labels do not know them.
        world: every rank must call.

    Returns:
        the images of a run; None in a dry run.

    Raises:
        InputError: they are others, or have other numbers.
    """
    whole = not args.dry_run or args.resume is not None or getattr(args, "verify_labels", False)
    known = None
    compared = len(train)
    if not whole and stored is not None and len(stored) == len(train):
        places = pick_evenly(range(len(train)), PROBES)
        sample = identify([train[place] for place in places], args.workers, stored)
        whole = not stored.rows(places).same(sample).all()
        compared = len(places)
    elif stored is not None:
        whole = True
    if whole:
        known = know_images(args.train_dir, train, args.workers, stored, world)
    if stored is None:
        return known
    how = known.differences(stored) if known else None
    if how:
        fault = (
            f"--train-dir {args.train_dir} does not hold the images of the labels in {args.fkd_path}: {how}; give "
            "the images that were labelled, as they were, or label these with relabel_FKD.py"
        )
        if len(train) != len(stored):  # then labels have no image, or images no label
            raise InputError(fault)
        accept_or_refuse(args, fault)
        return known
    log.info("images  %d of %d compared: they are those that were labelled", compared, len(train))
    return known


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


def sample_views(args: argparse.Namespace, views: TrainingViews[LabelStore], num_folders: int) -> list[BatchLabels]:
    """Return some batches of labels, spread over the epochs to train, or over a pool."""
    store = views.store
    if views.is_pool:
        return sample_labels(store, range(store.epochs), num_folders)
    epochs = soft_epochs(args)
    if len(epochs) * store.num_images < VIEWS_PER_CLASS * num_folders and epochs.stop < store.epochs:
        epochs = range(epochs.start, store.epochs)  # too few views are trained on to tell; the others are as good
    return sample_labels(store, [views.place(epoch, 0)[0] for epoch in epochs], num_folders)


def report_folders(args: argparse.Namespace, train: Samples, val: Samples, names: Sequence[str]) -> None:
    """Log what is in the two image folders; warn if the validation set seems to be copied in part.

    Args:
        args: settled flags.
        train, val: lists of (path, class).
        names: name of each class.
    """
    num_classes = len({target for _, target in train})
    log.info("train   %d images, %d classes (%s)", len(train), num_classes, args.train_dir)
    log.info("val     %d images, %d classes (%s)", len(val), num_classes, args.val_dir)
    counts = Counter(target for _, target in val)
    usual, share = Counter(counts.values()).most_common(1)[0]
    fewer = [names[target] for target, count in sorted(counts.items()) if count < usual]
    if fewer and share >= EVEN * len(counts):
        log.warning(
            "WARNING: fewer validation images than the %d of the other classes are in %s; is --val-dir %s complete?",
            usual,
            listing(fewer, 3),
            args.val_dir,
        )


def report(
    args: argparse.Namespace,
    train: ImageSet,
    val: ImageSet,
    views: TrainingViews[LabelStore],
    samples: Sequence[BatchLabels],
    names: Sequence[str],
) -> None:
    """Log what was found, in a few lines; refuse labels that do not fit the folders.

    Args:
        args: settled flags.
        train, val: the image folders.
        views: of the labels, in the order of training.
        samples: some of them.
        names: name of each of C classes.

    Raises:
        InputError: the labels were made for other classes, or for another order of them or of the images.
    """
    report_folders(args, train.samples, val.samples, names)
    store = views.store
    batches = f"{count_batches(views)} batches of {store.batch_size}"
    mixing = "unmixed" if store.mix_type == "none" else store.mix_type
    log.info("labels  %s, %s, %d classes, %s (%s)", store.dialect, mixing, store.num_classes, batches, args.fkd_path)
    refuse_class_names(args, store, train.classes)
    targets = torch.tensor(train.targets)
    answered = views_of(samples, store.num_classes, args.input_size)

    def other_seed() -> int | None:
        if states_index(store) or store.image_list is not None:
            return None
        return fitting_seed(store, samples, targets, args.fkd_seed, args.input_size)

    report_agreement(args, judge(answered, targets, names, store.num_classes, other_seed), names)
    for line in unchecked(store):
        log.info(line)


def count_batches(views: TrainingViews[LabelStore]) -> str:
    """How many batches there are, in words that end before `batches`."""
    if views.is_pool:
        return f"{views.order}, {views.batches_per_epoch} an epoch, from {views.store.stored_batches()}"
    return f"{views.store.epochs} epochs of {views.batches_per_epoch}"


def refuse_class_names(args: argparse.Namespace, store: LabelStore, names: Sequence[str]) -> None:
    """Refuse packed labels that say that they were made for other class folders, or another order of them.

    Labels that know their images need no names: the images have proved to be the same.
    """
    stated = store.class_names
    if stated is None or stated == digest_of_names(names) or store.image_digests is not None or args.class_order:
        return
    accept_or_refuse(
        args,
        f"the labels in {args.fkd_path} were made for class folders with other names than those of --train-dir, or in "
        "another order; name the labels' classes in order with --class-order FILE",
    )


def accept_or_refuse(args: argparse.Namespace, fault: str) -> None:
    """Refuse labels because of a fault, or note and log it if --accept-labels says to go on.

    Raises:
        InputError: the fault, without --accept-labels.
    """
    if not args.accept_labels:
        raise InputError(f"{fault}, or go on knowingly with --accept-labels")
    log.warning("WARNING, accepted: %s", fault)
    args.labels_accepted = "; ".join(filter(None, [args.labels_accepted, fault]))


def report_live_agreement(
    args: argparse.Namespace,
    dataset: ViewDataset,
    epoch: int,
    normalise: Normalise,
    teacher: Callable[[torch.Tensor], torch.Tensor],
    names: Sequence[str],
    world: World,
) -> torch.Tensor:
    """Have a teacher answer some views before it answers all, and compare its answers with the folders.

    Args:
        args: settled flags.
        dataset, epoch, normalise, teacher: as for `ask_teacher`.
        names: name of each of C classes.
        world: every rank must call; the first one's views count, since time limits their number.

    Returns:
        its answers, float32 [R, C].

    Raises:
        InputError: its classes are not those of the folders.
    """
    targets = torch.tensor([target for _, target in dataset.samples])
    samples = ask_teacher(dataset, epoch, normalise, teacher, len(targets.unique()))
    views = views_of(samples, len(names), args.input_size)
    found = world.broadcast_object(judge(views, targets, names, len(names), live=True))
    report_agreement(args, found, names, "teacher")
    return torch.cat([values_of(labels.logits) for labels in samples])


def report_agreement(args: argparse.Namespace, found: Agreement, names: Sequence[str], who: str = "labels") -> None:
    """Log how often the teacher agrees with the folders; refuse what cannot be coincidence, warn of what may be.

    Raises:
        InputError: a fault is certain, and --accept-labels was not given.
    """
    log.info(
        "teacher agrees with the folders on %.1f%% of %d views of %d images (chance: %.1f%%)",
        *(100 * found.share, found.views, found.images, 100 * found.chance),
    )
    if found.worst and not found.fault:
        worst = [f"{names[number]} ({100 * share:.0f}%)" for number, share in found.worst]
        log.info("classes that it agrees with least: %s", listing(worst, 3))
    if found.fault and found.certain:
        accept_or_refuse(args, f"{who} and class folders do not belong together: {found.fault}")
    elif found.fault:
        log.warning("WARNING: %s and class folders may not belong together: %s", who, found.fault)


def check_run(run: Run, source: ViewSource, num_classes: int, input_size: int, hard: HardViews | None = None) -> None:
    """Check that a `Run` can train and save: one forward pass, free disk; log what it will do and write.

    `source` is the label store or `DrawnViews` that it trains on, `hard` the `HardViews` of its hard epochs.
    """
    args, precision = run.args, run.precision
    rows = smallest_micro_batch(TrainingViews.of(source).smallest_batch(), args)
    rows = min(rows, TrainingViews.of(hard).smallest_batch()) if hard else rows
    if not args.sync_bn:  # each process has its own batch statistics
        rows = max(rows // run.world.size, 1)
    for student in run.students:
        check_student(student.model, student.args, rows, num_classes, input_size, precision)
    if run.world.is_main:
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
        with torch.no_grad(), without_cudnn_benchmark(), precision.autocast():
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
            f"{folder}: {readable_size(free)} of disk are free, and {purpose} {readable_size(needed)}; free some space "
            "or choose another folder"
        )
