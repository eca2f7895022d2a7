"""Check flags, folders, images, labels and students before training or relabelling starts.

Every error message names the flag or the file that is wrong, and the remedy.
"""

import copy
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from utils.config import Findings, FKDConfig, KDConfig, RelabelConfig, TrainConfig
from utils.data.identity import KnownImages, file_digest, identify, know_images, relative_names
from utils.data.image_sets import open_images
from utils.data.images import (
    ImageSet,
    Member,
    Samples,
    file_status,
    first_images,
    image_bytes,
    image_size,
    load_image,
    read_image,
)
from utils.data.preview import ask_teacher
from utils.data.replay import Normalise
from utils.data.workers import ViewDataset
from utils.labels.agreement import VIEWS_PER_CLASS, Agreement, fitting_seed, judge, pick_evenly, sample_labels, views_of
from utils.labels.digests import ImageDigests
from utils.labels.hard import Phases
from utils.labels.packed_manifest import digest_of_names
from utils.labels.store import LabelStore
from utils.labels.training_views import TrainingViews
from utils.labels.types import BatchLabels, values_of
from utils.labels.views import CellCrops, CentredCrops, ViewPolicy, WholeImages
from utils.run.checkpoint import restore_rng, rng_state
from utils.run.classes import (
    BY_NUMBER,
    Numbering,
    display_names,
    number_train_folders,
    number_val_folders,
    numbers_of_classes,
    select_pair,
    trailing_numbers,
)
from utils.run.folder import RUN_FILES
from utils.run.label_checks import soft_epochs
from utils.run.loading import TrainingData
from utils.run.student import Student
from utils.run.teacher_check import states_index, unchecked
from utils.system import distributed
from utils.system.distributed import World
from utils.system.errors import InputError, clause, listing
from utils.system.log import log, start_log
from utils.system.machine import at_most_cores, keep_freed_memory, readable_size
from utils.training.precision import Precision, pick_device, without_cudnn_benchmark
from utils.training.teachers import Ensemble

SAMPLED_IMAGES = 16
PROBES = 64  # if only a sample of the training images is compared by content: maximum size of the sample
MOST_RIVALS = 2000  # maximum number of validation images that are read to find copies of training images
# if at least this fraction of the validation classes have the same number of images, warn of classes with fewer
EVEN = 0.9


def begin(config: TrainConfig | RelabelConfig) -> tuple[World, Precision, Findings]:
    """Connect the processes of the run, start the log, and choose device and precision.

    On the CPU, this process also keeps freed memory for reuse, because that is faster than returning it to the system.

    Returns:
        (`World`, the ranks of the run; `Precision` on this process's device; `Findings`, the settings that are known
        before labels and folders are read).

    Raises:
        InputError: torchrun's environment variables are incomplete, the processes cannot connect, or the device or
            the precision is not available.
    """
    world = distributed.start(config.device)
    start_log(world.is_main)
    precision = Precision(config.precision, pick_device(config.device, world))
    if precision.device.type == "cpu":
        keep_freed_memory()
    found = Findings(
        device=precision.device.type,
        processes=world.size,
        arithmetic=str(precision),
        workers=at_most_cores(config.workers),
        side_by_side=len(config.students()) if isinstance(config, TrainConfig) else 1,
        keep_topk=config.keep_topk,
        mix_type=config.mix_type if isinstance(config, KDConfig) else None,
    )
    return world, precision, found


def view_policy(config: KDConfig | RelabelConfig, found: Findings) -> ViewPolicy:
    """Return the `ViewPolicy`: the distribution of crops, flips, cutmix and mixup that the flags set."""
    augment = config.augment if isinstance(config, KDConfig) else "rrc"
    whole: Callable[..., ViewPolicy] = WholeImages
    if isinstance(config, KDConfig) and config.factor_crop > 1:
        whole = partial(CellCrops, factor=config.factor_crop)
    policies = {"dsa": whole, "none": whole, "imagenet-hard": CentredCrops}
    crops = config.crop_settings(augment)
    return policies.get(augment, ViewPolicy)(
        seed=config.fkd_seed,
        input_size=found.input_size,
        min_scale=crops["min_scale_crops"],
        max_scale=crops["max_scale_crops"],
        mix_type=(config.mix_type or "none").lower(),
        mixup_alpha=config.mixup,
        cutmix_alpha=config.cutmix,
        hflip=crops["hflip"],
    )


def check_folders(config: TrainConfig) -> tuple[ImageSet, ImageSet]:
    """Open the training set and the validation set, and decode a few images of each to find damaged files.

    With --classes, only the listed classes of both sets are kept, and numbered by their positions in the list. With
    --val-ipc N, only the first N validation images of each class are kept.

    Returns:
        (training ImageSet, validation ImageSet).

    Raises:
        InputError: a set cannot be used, or an image cannot be decoded.
    """
    train = open_images(config.train_dir, "--train-dir", "train", config.normalised)
    val = open_images(config.val_dir, "--val-dir", "val", config.normalised, config.val_labels)
    warn_of_folder_order(train.classes)
    if config.subset is not None:
        select_pair(config.subset, train, val, config.class_map)
    val.samples = first_images(val.samples, config.val_ipc)
    check_images(train.samples)
    check_images(val.samples)
    return train, val


def check_strips(config: KDConfig, samples: Samples) -> None:
    """Raise InputError if an image is too small to be cut as --shuffle-patches or --factor-crop says.

    Args:
        config: flags of the run.
        samples: (image, class) of every training image.
    """
    parts = max(config.shuffle_patches, config.factor_crop)
    flag, noun = ("factor-crop", "cells") if config.factor_crop == parts else ("shuffle-patches", "strips")
    for image, _ in samples if parts > 1 else []:
        width, height = image_size(image)
        if min(width, height) < parts:
            raise InputError(
                f"--{flag} {parts} cuts each image into {parts} {noun} along each side, but {image} has {width} x "
                f"{height} pixels; give a smaller number"
            )


def number_classes(
    config: TrainConfig,
    found: Findings,
    train: ImageSet,
    val: ImageSet,
    num_classes: int,
    stated: Mapping[str, int] | None = None,
) -> tuple[list[str], Findings]:
    """Replace the folder index of every image by the class number that the labels use for its folder.

    If the sorted training folders do not have the numbers 0, 1, 2, …, log how they are numbered. If validation folders
    are not paired with training folders by name, log how they are paired.

    Args:
        config: flags of the run.
        found: settings that are derived from labels, folders and the machine.
        train, val: the image folders; `samples` is replaced. Validation images of untrained classes are removed.
        num_classes: C, number of classes of the labels or of the live teacher.
        stated: folder name -> class number, from the labels' manifest; None if the manifest names no classes.

    Returns:
        (display name of each of C classes; `found` with a description of numbering and pairing in `classes`).

    Raises:
        InputError: the class number of a folder cannot be determined, or is not below C.
    """
    if config.subset is not None:  # `check_folders` has already numbered the classes
        return train.classes, replace(found, classes=f"numbered and paired by --classes {config.subset}")
    own = number_own(train, num_classes, config.class_order, stated)
    where = f"--val-dir {config.val_dir} and --train-dir {config.train_dir}"
    theirs = number_val_folders(val, train, own, config.class_map, where)
    if theirs.how == BY_NUMBER and len(train.classes) != len(val.classes):
        log.warning(
            "WARNING: %s have %d and %d classes, which are paired by number; give sets with the same classes, or "
            "--class-map FILE",
            where,
            len(val.classes),
            len(train.classes),
        )
    if max(number for number in own.numbers if number is not None) >= num_classes:
        raise InputError(
            f"--train-dir {config.train_dir} has {len(train.classes)} class folders, but the labels or the teacher "
            f"have only {num_classes} classes; give labels or a teacher of all classes"
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
    train.renumber(own.numbers)
    val.renumber(theirs.numbers)
    found = replace(found, classes=f"numbered {own.how}, paired {theirs.how}")
    return display_names(train.classes, own, num_classes), found


def number_own(
    images: ImageSet, num_classes: int, class_order: str | None, stated: Mapping[str, int] | None = None
) -> Numbering:
    """Return the `Numbering` of the classes of an image set, from `number_train_folders`.

    If the classes have no names and --class-order was not given, each class keeps its number in the set.
    """
    if images.named or class_order is not None:
        return number_train_folders(images.classes, num_classes, class_order, stated)
    return Numbering([*map(int, images.classes)], "as in the set, whose classes have no names")


def number_relabelled(config: RelabelConfig, folder: ImageSet, num_classes: int) -> list[str]:
    """Replace the folder index of every image by the class number that the teachers use for its folder.

    Args:
        config: flags of relabel_FKD.py.
        folder: the images of --data; `folder.samples` is replaced.
        num_classes: C, number of classes of the teachers.

    Returns:
        display name of each of C classes.
    """
    if config.subset is not None:  # `select_classes` has already numbered the classes
        return folder.classes
    own = number_own(folder, num_classes, config.class_order)
    if own.numbers != list(range(len(own.numbers))):
        log.info("classes %d folders are numbered %s", len(folder.classes), own.how)
    folder.renumber(own.numbers)
    return display_names(folder.classes, own, num_classes)


def slice_teacher(config: KDConfig | RelabelConfig, found: Findings, teacher: Ensemble, images: ImageSet) -> Findings:
    """Make a teacher return only the logits of the classes of --classes; without this flag, do nothing.

    Args:
        config: flags of the run.
        found: settings that are derived from labels, folders and the machine.
        teacher: the teacher, which may have more classes; see `Ensemble.keep_classes`.
        images: the images to label, with the classes of --classes.

    Returns:
        `found` with a description of the kept classes in `kept_classes`.

    Raises:
        InputError: the teacher's numbers of these classes are unknown, or --keep-topk exceeds the number of classes.
    """
    whose = f"{teacher.flag} {' + '.join(one['arch'] for one in teacher.described)} answers for"
    numbers, found = match_classes(config, found, images, teacher.num_classes(found.input_size), whose)
    if numbers is not None:
        teacher.keep_classes(numbers)
    return found


def slice_labels(
    config: FKDConfig,
    found: Findings,
    views: TrainingViews[LabelStore],
    train: ImageSet,
    stated: Mapping[str, int] | None,
) -> tuple[TrainingViews[LabelStore], Findings]:
    """Make the views return only the stored logits of the classes of --classes; without this flag, do nothing.

    Args:
        config: flags of the run.
        found: settings that are derived from labels, folders and the machine.
        views: views of the stored labels, which may have more classes.
        train: the training images, with the classes of --classes.
        stated: folder name -> class number, from the labels' manifest; None if the manifest names no classes.

    Returns:
        (views that return the logits of the listed classes; `found` with a description of these classes in
        `kept_classes`).

    Raises:
        InputError: the labels' numbers of these classes are unknown; --keep-topk exceeds the number of classes; or the
            labels hold only the largest logits of each view, so that the logit of a listed class may be missing.
    """
    store = views.store
    whose = f"the labels in {config.fkd_path} have"
    numbers, found = match_classes(config, found, train, store.num_classes, whose, stated)
    if numbers is None:
        return views, found
    if store.keep_topk < store.num_classes:
        raise InputError(
            f"{whose} only the {store.keep_topk} largest answers of each view, which cannot be reduced to --classes "
            f"{config.subset}; give labels that store all {store.num_classes} classes"
        )
    return replace(views, kept_classes=tuple(numbers)), found


def match_classes(
    config: TrainConfig | RelabelConfig,
    found: Findings,
    images: ImageSet,
    num_classes: int,
    whose: str,
    stated: Mapping[str, int] | None = None,
) -> tuple[list[int] | None, Findings]:
    """Find the numbers that labels or a teacher use for the classes of --classes; see `numbers_of_classes`.

    Returns:
        (numbers, `found` with a description of the numbers in `kept_classes`). If --classes was not given, or lists
        all classes in the same order: (None, `found` unchanged).

    Raises:
        InputError: the numbers are unknown, or --keep-topk exceeds the number of listed classes.
    """
    if config.subset is None:
        return None, found
    numbers = numbers_of_classes(config.subset, images.classes, num_classes, whose, config.class_order, stated)
    if config.keep_topk is not None and config.keep_topk > len(numbers):
        raise InputError(
            f"--keep-topk {config.keep_topk} is more than the {len(numbers)} classes of --classes {config.subset}; "
            "lower it, or leave it out"
        )
    if numbers == list(range(num_classes)):
        return None, found
    log.info(
        "classes %s %d classes, of which %d are kept: --classes %s", whose, num_classes, len(numbers), config.subset
    )
    kept = f"{len(numbers)} of {num_classes}: {digest_of_names([*map(str, numbers)])}"
    return numbers, replace(found, kept_classes=kept)


def check_images(samples: Samples) -> None:
    """Decode a few images, evenly spread over the list of (path, class); raise InputError if one is damaged."""
    for image, _ in samples[:: max(1, len(samples) // SAMPLED_IMAGES)]:
        load_image(image)


def record_images(config: TrainConfig, found: Findings, train: Samples, val: Samples) -> Findings:
    """Add digests of both image lists to `found`, for comparison on --resume; warn if the lists share images.

    The digests cover the classes of the training images, and the names, sizes and classes of the validation images.
    Contents are checked elsewhere: `identify_images` for training, `Student.record_validation` for validation.

    Args:
        config: flags of the run.
        found: settings that are derived from labels, folders and the machine.
        train, val: (path, class) of every training image and of every validation image.

    Returns:
        `found` with the digests in `train_images` and `val_images`. Two more digests are added to `found.earlier`, for
        checkpoints of earlier releases.

    Raises:
        InputError: a validation image is an empty file, or an image cannot be read.
    """
    # ask the file system only once per file, because it may be on a slow network
    stats = {image: file_status(image) for image in image_files(val)}
    sizes = [stats[image].st_size if image in stats else image_bytes(image) for image, _ in val]
    for (image, _), size in zip(val, sizes, strict=True):
        if not size:
            raise InputError(f"{image} is empty; replace the image, or remove it")
    names = relative_names(config.val_dir, val)
    lines = [f"{name} {size} {target}" for name, size, (_, target) in zip(names, sizes, val, strict=True)]
    warn_of_overlap(config, train, val, sizes, [*stats.values()])
    earlier = {
        "train_images": digest_of_names(relative_names(config.train_dir, train)),
        "val_images": digest_of_names(names),
    }
    return replace(
        found,
        train_images=f"classes:{digest_of_names([str(target) for _, target in train])}",
        val_images=f"sizes:{digest_of_names(lines)}",
        earlier={**found.earlier, **earlier},
    )


def warn_of_overlap(
    config: TrainConfig, train: Samples, val: Samples, val_sizes: Sequence[int], val_stats: Sequence[os.stat_result]
) -> None:
    """Warn if validation images are also among the training images.

    Hard and symbolic links between training and validation images are always found. If there are none, the contents
    of some training images are compared with those of validation images of the same file size.

    Args:
        config: flags of the run.
        train, val: (image, class) of every training image and of every validation image.
        val_sizes: number of bytes of every validation image.
        val_stats: result of `os.stat` for every validation image that is a file of its own.
    """
    files = {(stat.st_dev, stat.st_ino) for stat in map(file_status, image_files(train))}
    shared = sum((stat.st_dev, stat.st_ino) in files for stat in val_stats)
    if not shared:
        sizes = set(val_sizes)
        alike = [(image, image_bytes(image)) for image, _ in train]
        alike = pick_evenly([(image, size) for image, size in alike if size in sizes], PROBES)
        probes = {(size, file_digest(read_image(image))) for image, size in alike}
        wanted = {size for size, _ in probes}
        rivals = [(image, size) for (image, _), size in zip(val, val_sizes, strict=True) if size in wanted]
        shared = sum((size, file_digest(read_image(image))) in probes for image, size in rivals[:MOST_RIVALS])
    if shared:
        log.warning(
            "WARNING: at least %d images of --val-dir %s are in --train-dir %s as well; their top-1 says nothing about "
            "new images",
            shared,
            config.val_dir,
            config.train_dir,
        )


def image_files(samples: Samples) -> list[str]:
    """Return the paths of the images that are files, and not members of an archive, a table or a tensor."""
    return [image for image, _ in samples if not isinstance(image, Member)]


def identify_images(
    config: TrainConfig,
    found: Findings,
    train: Samples,
    stored: ImageDigests | None,
    world: World,
    verify: bool = False,
) -> tuple[KnownImages | None, Findings]:
    """Check that the training images are the images that the soft labels were made for.

    Images are compared by content. To save time, a dry run first compares a sample. If the sample is the same, the
    other images are not compared.

    Args:
        config: flags of the run.
        found: settings that are derived from labels, folders and the machine.
        train: (path, class) of every training image.
        stored: digests of the images that the labels were made for; None if the labels store no digests.
        world: ranks of the run. Every rank must call this function.
        verify: if True, a dry run also compares all images. --resume has the same effect.

    Returns:
        (the training images with their digests; `found`). The first item is None if not all images were read. If
        --accept-labels tolerates a difference, `found.labels_accepted` describes it.

    Raises:
        InputError: the number of images differs; or their content or order differs and --accept-labels was not given.
    """
    whole = not config.dry_run or config.resume is not None or verify
    known = None
    compared = len(train)
    if not whole and stored is not None and len(stored) == len(train):
        places = pick_evenly(range(len(train)), PROBES)
        sample = identify([train[place] for place in places], stored)
        whole = not stored.rows(places).same(sample).all()
        compared = len(places)
    elif stored is not None:
        whole = True
    if whole:
        known = know_images(config.train_dir, train, stored, world)
    if stored is None:
        return known, found
    how = known.differences(stored) if known else None
    if how:
        labels = getattr(config, "fkd_path", None)
        fault = (
            f"--train-dir {config.train_dir} does not hold the images of the labels in {labels}: {how}; give "
            "the images that were labelled, as they were, or label these with relabel_FKD.py"
        )
        # --accept-labels cannot help here, because some images have no labels or some labels have no image
        if len(train) != len(stored):
            raise InputError(fault)
        return known, accept_or_refuse(config, found, fault)
    log.info("images  %d of %d compared: they are those that were labelled", compared, len(train))
    return known, found


def warn_of_folder_order(names: Sequence[str]) -> None:
    """Warn if folder names end in numbers but are not in the order of these numbers (`new1000` before `new101`)."""
    numbers = trailing_numbers(names) or []
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
    """Warn if the last batch of an epoch is a single image, on which students with batch norm cannot train."""
    if (images - 1) % batch_size == 0:
        log.warning(
            "WARNING: the last batch of %d images in batches of %d is a single image, on which students with batch "
            "normalisation cannot train; give another -b/--batch-size",
            images,
            batch_size,
        )


def sample_views(config: TrainConfig, views: TrainingViews[LabelStore], num_folders: int) -> list[BatchLabels]:
    """Read a sample of stored label batches, to compare the labels with the class folders.

    The sample comes from the epochs that the run will train on. If the run draws its batches at random from all stored
    batches, the sample comes from all stored epochs.

    Args:
        config: flags of the run.
        views: views of the stored labels, in the order of training.
        num_folders: number of class folders; about 30 views are read for each.
    """
    store = views.store
    if views.is_pool:
        return [*map(views.kept, sample_labels(store, range(store.epochs), num_folders))]
    epochs = soft_epochs(config)
    if len(epochs) * store.num_images < VIEWS_PER_CLASS * num_folders and epochs.stop < store.epochs:
        # the run trains on too few views for a reliable comparison: sample later epochs too
        epochs = range(epochs.start, store.epochs)
    return [*map(views.kept, sample_labels(store, [views.place(epoch, 0)[0] for epoch in epochs], num_folders))]


def report_folders(config: TrainConfig, train: Samples, val: Samples, names: Sequence[str]) -> None:
    """Log the numbers of images and classes in both folders; warn if the validation set seems incomplete.

    Args:
        config: flags of the run.
        train, val: (path, class) of every training image and of every validation image.
        names: name of each class.
    """
    num_classes = len({target for _, target in train})
    log.info("train   %d images, %d classes (%s)", len(train), num_classes, config.train_dir)
    log.info("val     %d images, %d classes (%s)", len(val), num_classes, config.val_dir)
    counts = Counter(target for _, target in val)
    usual, share = Counter(counts.values()).most_common(1)[0]
    fewer = [names[target] for target, count in sorted(counts.items()) if count < usual]
    if fewer and share >= EVEN * len(counts):
        log.warning(
            "WARNING: fewer validation images than the %d of the other classes are in %s; is --val-dir %s complete?",
            usual,
            listing(fewer, 3),
            config.val_dir,
        )


def report_labels(
    config: FKDConfig,
    found: Findings,
    train: ImageSet,
    val: ImageSet,
    views: TrainingViews[LabelStore],
    names: Sequence[str],
) -> Findings:
    """Log a summary of image folders and labels, and check that the labels fit the class folders.

    Args:
        config: flags of the run.
        found: settings that are derived from labels, folders and the machine.
        train, val: the image folders.
        views: views of the stored labels, in the order of training.
        names: name of each of C classes.

    Returns:
        `found`. If --accept-labels tolerates mismatches, the mismatches are added to `found.labels_accepted`.

    Raises:
        InputError: the labels were made for other classes, or for another order of the classes or of the images, and
            --accept-labels was not given.
    """
    samples = sample_views(config, views, len(train.classes))
    report_folders(config, train.samples, val.samples, names)
    store = views.store
    batches = f"{count_batches(views)} batches of {store.batch_size}"
    mixing = "unmixed" if store.mix_type == "none" else store.mix_type
    mixing += " with coloured cutouts" if store.has_cutouts else ""
    mixing += ", weighted" if store.has_weights else ""
    log.info("labels  %s, %s, %d classes, %s (%s)", store.dialect, mixing, store.num_classes, batches, config.fkd_path)
    found = refuse_class_names(config, found, store, train.classes)
    targets = torch.tensor(train.targets)
    answered = views_of(samples, views.num_classes, found.input_size)

    def other_seed() -> int | None:
        if states_index(store) or store.image_list is not None:
            return None
        return fitting_seed(store, samples, targets, config.fkd_seed, found.input_size)

    agreement = judge(answered, targets, names, views.num_classes, other_seed)
    found = report_agreement(config, found, agreement, names)
    for line in unchecked(store):
        log.info(line)
    return found


def count_batches(views: TrainingViews[LabelStore]) -> str:
    """Return the words that stand before `batches` in a log line: for example, `300 epochs of 100`."""
    if views.is_pool:
        return f"{views.order}, {views.batches_per_epoch} an epoch, from {views.store.stored_batches()}"
    return f"{views.store.epochs} epochs of {views.batches_per_epoch}"


def refuse_class_names(config: FKDConfig, found: Findings, store: LabelStore, names: Sequence[str]) -> Findings:
    """Refuse packed labels that were made for class folders with other names or in another order.

    Names are not compared in two cases: if the labels store image digests, because `identify_images` then compares the
    images; and if --class-order or --classes was given, because the flag states the order of the classes.

    Args:
        config: flags of the run.
        found: settings that are derived from labels, folders and the machine.
        store: the labels.
        names: names of the class folders, sorted.

    Returns:
        `found`. If --accept-labels tolerates a mismatch, the mismatch is added to `found.labels_accepted`.

    Raises:
        InputError: the labels were made for other names or for another order, and --accept-labels was not given.
    """
    stated = store.class_names
    by_flag = config.class_order or config.subset
    if stated is None or stated == digest_of_names(names) or store.image_digests is not None or by_flag:
        return found
    return accept_or_refuse(
        config,
        found,
        f"the labels in {config.fkd_path} were made for class folders with other names than those of --train-dir, or "
        "in another order; name the labels' classes in order with --class-order FILE",
    )


def accept_or_refuse(config: TrainConfig | RelabelConfig, found: Findings, fault: str) -> Findings:
    """Stop the run because of a fault of its labels or its teacher, unless --accept-labels was given.

    Args:
        config: flags of the run.
        found: settings that are derived from labels, folders and the machine.
        fault: description of the fault, for the error or the warning.

    Returns:
        `found` with the fault added to `labels_accepted`. The fault is also logged as a warning.

    Raises:
        InputError: --accept-labels was not given.
    """
    if not config.accept_labels:
        raise InputError(f"{fault}, or go on knowingly with --accept-labels")
    log.warning("WARNING, accepted: %s", fault)
    return replace(found, labels_accepted="; ".join(filter(None, [found.labels_accepted, fault])))


def report_live_agreement(
    config: TrainConfig | RelabelConfig,
    found: Findings,
    dataset: ViewDataset,
    epoch: int,
    normalise: Normalise,
    teacher: Callable[[torch.Tensor], torch.Tensor],
    names: Sequence[str],
    world: World,
) -> tuple[torch.Tensor, Findings]:
    """Label a few views with a live teacher, and check that its predictions fit the class folders.

    Args:
        config: flags of the run.
        found: settings that are derived from labels, folders and the machine.
        dataset: views without soft labels.
        epoch: the first epoch whose views are labelled.
        normalise: turns the views into the teacher's inputs.
        teacher: images [B, 3, S, S] -> logits [B, C].
        names: name of each of C classes.
        world: ranks of the run. Every rank must call this function. Because of a time limit, the number of
            labelled views can differ between ranks. Only the comparison on rank 0 counts.

    Returns:
        (the teacher's logits, float32 [R, C], of the R views that this rank labelled; `found`). If
        --accept-labels tolerates a mismatch, the mismatch is added to `found.labels_accepted`.

    Raises:
        InputError: the teacher's classes are certainly not those of the folders, and --accept-labels was not given.
    """
    targets = torch.tensor([target for _, target in dataset.samples])
    samples = ask_teacher(dataset, epoch, normalise, teacher, len(targets.unique()))
    views = views_of(samples, len(names), found.input_size)
    agreement = world.broadcast_object(judge(views, targets, names, len(names), live=True))
    found = report_agreement(config, found, agreement, names, "teacher")
    return torch.cat([values_of(labels.logits) for labels in samples]), found


def report_agreement(
    config: TrainConfig | RelabelConfig,
    found: Findings,
    agreement: Agreement,
    names: Sequence[str],
    who: str = "labels",
) -> Findings:
    """Log how often the teacher's predictions match the class folders; stop the run at a definite mismatch.

    Args:
        config: flags of the run.
        found: settings that are derived from labels, folders and the machine.
        agreement: result of the comparison of the teacher's predictions with the folders.
        names: name of each of C classes.
        who: `labels` or `teacher`, for the messages.

    Returns:
        `found`. If --accept-labels tolerates a definite mismatch, the mismatch is added to `found.labels_accepted`. A
        suspected mismatch only causes a warning.

    Raises:
        InputError: the mismatch is definite, and --accept-labels was not given.
    """
    log.info(
        "teacher agrees with the folders on %.1f%% of %d views of %d images (chance: %.1f%%; small crops, flips and "
        "mixes of two images lower the share)",
        100 * agreement.share,
        agreement.views,
        agreement.images,
        100 * agreement.chance,
    )
    if agreement.worst and not agreement.fault:
        worst = [f"{names[number]} ({100 * share:.0f}%)" for number, share in agreement.worst]
        log.info("classes that it agrees with least: %s", listing(worst, 3))
    if agreement.fault and agreement.certain:
        return accept_or_refuse(config, found, f"{who} and class folders do not belong together: {agreement.fault}")
    if agreement.fault:
        log.warning("WARNING: %s and class folders may not belong together: %s", who, agreement.fault)
    return found


def check_students(
    config: TrainConfig, found: Findings, data: TrainingData, students: Sequence[Student], world: World
) -> None:
    """Check that each student can train (one forward pass), and that the disk has room for the checkpoints.

    Log the numbers of epochs and batches of the run, and the files that it writes.

    Raises:
        InputError: a student cannot train on the smallest micro-batch, or the disk is too full.
    """
    smallest = TrainingViews.of(data.source).smallest_batch()
    # number of rows of the smallest micro-batch: the last micro-batch of a batch may have fewer rows than the others
    rows = smallest % config.micro_batch or config.micro_batch
    if data.hard:
        rows = min(rows, TrainingViews.of(data.hard).smallest_batch())
    # without --sync-bn each rank computes batch norm statistics over its own rows only
    if world.size > 1 and not config.sync_bn:
        rows = max(rows // world.size, 1)
        at_once = min(config.micro_batch, config.hard_batch_size or config.micro_batch, data.source.num_images)
        few = at_once // world.size
        if few < 8:
            log.warning(
                "warning: %d processes have %d images each of a micro-batch, few for batch statistics; consider "
                "--sync-bn or fewer --gradient-accumulation-steps",
                world.size,
                few,
            )
    for student in students:
        check_forward(student, rows, data.num_classes)
    if world.is_main:
        check_room(config, students)
    log.info(
        "run     %s on %s in %s, %d epochs of %d batches of %d in %d micro-batches",
        listing([student.name if len(students) > 1 else student.config.model for student in students]),
        students[0].precision.device,
        students[0].precision,
        config.epochs - min(student.progress.epoch for student in students),
        data.source.batches_per_epoch,
        config.batch_size,
        config.gradient_accumulation_steps,
    )
    if data.hard:
        phases = Phases.of(config)
        log.info(
            "phases  %d epochs on stored labels, %d on hard labels (%d batches of %d), %d on stored labels",
            phases.soft // 2,
            phases.hard,
            data.hard.batches_per_epoch,
            data.hard.batch_size,
            phases.soft - phases.soft // 2,
        )
    log.info("writes  %s to %s", ", ".join(RUN_FILES), config.output_dir)


def check_room(config: TrainConfig, students: Sequence[Student]) -> None:
    """Raise InputError if the checkpoints of all students do not fit on the disk of --output-dir."""
    needed = 0
    for student in students:
        size = sum(t.numel() * t.element_size() for t in student.model.state_dict().values())
        # Stored for each weight: the last value, the value in model_best, the optimizer state (SGD: one number, AdamW:
        # two numbers) and the EMA. The factor 2: while a new file is written, the old file still exists.
        needed += 2 * size * ((3 if config.sgd else 4) + (config.ema_decay is not None))
        needed -= sum(student.folder.file(name).stat().st_size for name in student.folder.previous)
    check_disk(config.output_dir, needed, "checkpoints need")


def check_forward(student: Student, rows: int, num_classes: int) -> None:
    """Check that the student can train on `rows` images: copy its model and run a forward pass in train mode.

    The student and the random generators are left unchanged.

    Args:
        student: the student.
        rows: number of images in the smallest micro-batch.
        num_classes: C, number of classes that the logits must have.

    Raises:
        InputError: the forward pass fails, or the outputs are not logits [rows, C].
    """
    config, found, precision = student.config, student.found, student.precision
    size = found.input_size
    images = torch.zeros(rows, found.channels, size, size, device=precision.device)
    images = images.to(memory_format=precision.memory_format)
    random_state = rng_state()
    try:
        with torch.no_grad(), without_cudnn_benchmark(), precision.autocast():
            outputs = copy.deepcopy(student.model).train()(images)
    # `run_script` turns this error into a message for the user
    except torch.cuda.OutOfMemoryError:
        raise
    # models raise many kinds of errors if a batch has too few images or the images are too small
    except Exception as error:
        hard = "--hard-batch-size, " if config.hard_epochs else ""
        sync = ", or add --sync-bn" if found.processes > 1 and not config.sync_bn else ""
        raise InputError(
            f"--model {config.model} cannot train on a micro-batch of {rows} at --input-size {size} ({clause(error)}); "
            f"change --gradient-accumulation-steps, the batch size of the labels, {hard}or the size{sync}"
        ) from None
    finally:
        restore_rng(random_state)
    shape = list(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
    if shape != [rows, num_classes]:
        raise InputError(
            f"--model {config.model} answers with {shape}, not with logits [{rows}, {num_classes}]; choose a classifier"
        )


def check_disk(folder: str | Path, needed: float, purpose: str) -> None:
    """Raise InputError if the disk of `folder` has fewer than `needed` bytes free.

    Args:
        folder: a folder that need not exist yet.
        needed: number of bytes.
        purpose: subject and verb for the message, such as `checkpoints need`.
    """
    place = os.path.abspath(folder)
    while not os.path.exists(place):
        place = os.path.dirname(place)
    free = shutil.disk_usage(place).free
    if free < needed:
        raise InputError(
            f"{folder}: {readable_size(free)} of disk are free, and {purpose} {readable_size(needed)}; free some space "
            "or choose another folder"
        )
