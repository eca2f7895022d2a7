# PYTHON_ARGCOMPLETE_OK: the Tab key of a shell completes flags, see docs/flags.md
"""Train a student on distilled images with a live teacher instead of stored soft labels (naive KD).

    python train_KD_parallel.py --train-dir DISTILLED --val-dir VAL --teacher-model resnet18 \
        --teacher-checkpoint TEACHER.pth --mix-type cutmix --batch-size 50 --cos --epochs 300

The training loop, losses and output files are those of train_FKD_parallel.py. If this script and relabel_FKD.py
get the same images, --fkd-seed, --batch-size and flags for crops, flips and mixing, the student sees the augmented
images that relabel_FKD.py labels. If relabel_FKD.py does not compress its labels, training on these labels gives
the same student as this script.

    python train_KD_parallel.py … --teacher-model resnet18 mobilenet_v2 --teacher-checkpoint A.pth B.pth

The answers of several teachers are combined by --ensemble, as in relabel_FKD.py.

    python train_KD_parallel.py --train-dir DISTILLED --val-dir VAL --loss-type ce --batch-size 50 --cos

The last command loads no teacher, because it names no teacher's weights. It trains on the class of each image, or on
the soft labels that are stored with the images. If --mix-type mixes two images, it mixes their labels as well. The
recipes in scripts/recipes for DC, DSA, DM, MTT, DATM and IDC train without a teacher in the same way.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace

from utils.config import OWN_SOFT_LABELS, Findings, KDConfig, resolve_views
from utils.system.process import check_command_line, run_script

if __name__ == "__main__":  # --help and wrong flags are answered before the imports below, which take seconds
    check_command_line(KDConfig.parse)

from train_FKD_parallel import build_students, describe, draw_views, report, session, train
from utils.data.augment import augmentation_of
from utils.data.image_sets import open_images
from utils.data.images import first_images
from utils.data.rand_augment import rand_augment_of
from utils.data.workers import ViewDataset
from utils.data.zca import fitted_zca
from utils.labels.training_views import TrainingViews
from utils.labels.views import DrawnViews, ViewPolicy
from utils.run import preflight
from utils.run.folder import open_folders
from utils.run.image_labels import asks_teacher, label_views
from utils.run.loading import (
    TrainingData,
    build_batches,
    build_validation,
    inspect_pixels,
    normalise_for,
    plan_memory,
)
from utils.system.distributed import World
from utils.system.errors import InputError
from utils.system.log import log
from utils.training.teachers import Ensemble, open_committee


def main(argv: Sequence[str] | None = None) -> None:
    """Check settings, teachers and images; train the students; report their top-1."""
    config = KDConfig.parse(argv)
    world, precision, found = preflight.begin(config)
    # `auto` means `kept` here: a live teacher gives the logits of all classes, so nothing needs to be renormalised
    found = replace(found, topk_mass="kept" if config.topk_mass == "auto" else config.topk_mass)

    # run all checks before hours of training are spent
    folders = open_folders(config, world)
    train_set, val_set = preflight.check_folders(config)
    found = resolve_views(config, found, {}, side=train_set.side)
    has_teacher = asks_teacher(config, soft_labels=train_set.answers is not None)
    teacher = None
    if has_teacher:
        chosen = config.teachers()
        found = inspect_pixels(found, [train_set, val_set], [*config.models, *chosen.names], chosen.files)
        teacher = open_committee(chosen, precision, found.input_size, found.channels, "--teacher-model")
        refuse_shares_of_batches(teacher, world)
    else:
        found = inspect_pixels(found, [train_set, val_set], config.models, [])
    num_classes = len(train_set.classes)
    if teacher:
        teacher.refuse_fewer_classes(num_classes, f"--train-dir {config.train_dir}", found.input_size)
        found = preflight.slice_teacher(config, found, teacher, train_set)
        num_classes = teacher.num_classes(found.input_size)
        found = replace(found, teachers=teacher.described)
    names, found = preflight.number_classes(config, found, train_set, val_set, num_classes)
    samples = first_images(train_set.samples, config.ipc)
    preflight.check_strips(config, samples)
    whiten = None
    if config.zca:
        real = open_images(config.zca, "--zca", "train")
        # copied to the device only once, before the memory plan: up to 604 MB
        whiten = fitted_zca(real, found.input_size, found.channels).to(precision.device)
        found = replace(found, zca=whiten.digest)
    policy = preflight.view_policy(config, found)
    # the augmentation is on the CPU, because data loading processes get a copy of `source`, and must not use the GPU
    source = DrawnViews(
        policy,
        len(samples),
        config.batch_size,
        augmentation_of(config, found),
        num_strips=config.shuffle_patches,
        change=rand_augment_of(config, found),
    )
    # otherwise the student learns from the classes or soft labels that come with the images
    taught = teacher is not None and config.loss_type != "ce"
    views = source
    if not taught:
        views, found = label_views(config, found, source, samples, num_classes, train_set.answers, train_set.numbers)
    images, found = preflight.identify_images(config, found, samples, None, world)
    found = preflight.record_images(config, found, samples, val_set.samples)
    preflight.report_folders(config, samples, val_set.samples, names)
    plain = f"the images' {found.image_labels}" if found.image_labels in OWN_SOFT_LABELS else "hard labels"
    teaches = f"teacher {teacher} answers live" if taught else f"{plain}: no teacher answers"
    log.info("%s on %s", teaches, "unmixed views" if policy.mix_type == "none" else f"{policy.mix_type} views")
    # dataset for checking the teacher, and for the preview of --dry-run
    dataset = ViewDataset(samples, source, found.input_size, found.channels)
    augmentation = augmentation_of(config, found, precision.device)
    normalise = normalise_for(found, precision, augment=augmentation, whiten=whiten)
    if teacher:
        _, found = preflight.report_live_agreement(
            config, found, dataset, config.start_epoch, normalise, teacher, names, world
        )
    data = TrainingData(
        samples,
        val_set.samples,
        TrainingViews(views),
        num_classes,
        names,
        images,
        teacher=teacher if taught else None,
        augment=augmentation,
        whiten=whiten,
    )

    students = build_students(config, found, data, folders, precision, world)
    plan = plan_memory(config, found, data, students, world)
    if config.dry_run:
        epochs = range(config.start_epoch, config.epochs)
        labels = f"teacher {teacher}" if teacher else plain
        draw_views(config, names, world, dataset, epochs, normalise, labels, teacher)
        return

    described = describe(config, data, labels_of(config, found, policy)) if world.is_main else {}
    with session(students, world) as signals:
        batches = build_batches(config, found, data, plan, students, world)
        validation = build_validation(found, data, plan, students, world)
        train(config, students, batches, validation, world, signals)
        report(students, world, described)


def refuse_shares_of_batches(teacher: Ensemble, world: World) -> None:
    """Raise InputError if the rule that combines the teachers needs whole batches, and each rank holds only a share."""
    if teacher.rule != "mean" and world.size > 1:
        raise InputError(
            f"--ensemble {teacher.rule} takes norms of a whole batch, but each of {world.size} processes holds only a "
            "share of it; use one process, or --ensemble mean"
        )


def labels_of(config: KDConfig, found: Findings, policy: ViewPolicy) -> dict:
    """Return the description of the labels for summary.json: teachers, view policy, size of the teachers' files."""
    files = config.teachers().files
    size = None if None in files else sum(os.path.getsize(file) for file in files if file is not None)
    dialect = "soft labels of the images" if found.image_labels in OWN_SOFT_LABELS else "hard labels"
    return {
        "dialect": "live teacher" if found.teachers else dialect,
        "teachers": found.teachers,
        "policy": vars(policy),
        "bytes": size if found.teachers else 0,
    }


if __name__ == "__main__":
    sys.exit(run_script(main))
