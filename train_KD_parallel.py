"""Naive KD: train a student on distilled images with a teacher that answers live, without stored labels.

    python train_KD_parallel.py --train-dir DISTILLED --val-dir VAL --teacher-model resnet18 \
        --teacher-checkpoint TEACHER.pth --mix-type cutmix --batch-size 50 --cos --epochs 300

The same loop, losses and outputs as train_FKD_parallel.py. With the same --fkd-seed and view flags it
draws the views that relabel_FKD.py would have stored, so both ways give the same student.

    python train_KD_parallel.py --train-dir DISTILLED --val-dir VAL --loss-type ce --batch-size 50 --cos

Hard labels alone, the folder classes: without --teacher-checkpoint, no teacher is needed and none is loaded.
"""

import os
import sys
from argparse import Namespace
from pathlib import Path

from utils.labels.views import DrawnViews, ViewPolicy
from utils.run import arguments, preflight
from utils.run.folder import VIEWS, open_folders
from utils.run.run import Run
from utils.run.side_by_side import default_output
from utils.run.start import begin
from utils.system.log import log
from utils.system.parser import Parser
from utils.system.script import run_script
from utils.training.precision import Precision
from utils.training.teachers import Ensemble
from utils.views.folders import first_images
from utils.views.live import LiveTeacher
from utils.views.preview import Preview
from utils.views.replay import Normalise
from utils.views.workers import ViewDataset


def parse(argv):
    """Parse the command line and settle flags that depend on each other."""
    parser = Parser("Train a student on distilled images with a live teacher.")
    arguments.add_data_arguments(parser)
    arguments.add_teacher_arguments(parser)
    arguments.add_training_arguments(parser)
    args = arguments.settle(parser.parse_args(argv))
    arguments.settle_views(args, {})
    if args.topk_mass == "auto":
        args.topk_mass = "kept"  # a live teacher answers for all classes
    args.teacher_weights = arguments.choose_teacher_weights(args)
    args.output_dir = args.output_dir or default_output(args, "kd-")
    return args


def main(argv=None):
    """Run the phases: parse, preflight, build, train, report."""
    args = parse(argv)
    world, precision = begin(args)

    # preflight
    folders = open_folders(args, world)
    train, val = preflight.check_folders(args.train_dir, args.val_dir)
    teacher = open_teacher(args, precision)
    if teacher:
        teacher.refuse_fewer_classes(len(train.classes), f"--train-dir {args.train_dir}", args.input_size)
    args.teachers = teacher and teacher.described
    num_classes = teacher.num_classes(args.input_size) if teacher else len(train.classes)
    names = preflight.number_classes(args, train, val, num_classes)
    samples = first_images(train.samples, args.ipc)
    policy = arguments.view_policy(args)
    source = DrawnViews(policy, len(samples), args.batch_size)
    images = preflight.identify_images(args, samples, None, world)

    # build
    preflight.note_images(args, samples, val.samples)
    preflight.report_folders(args, samples, val.samples, names)
    teaches = f"teacher {teacher} answers live" if teacher else "hard labels: no teacher answers"
    log.info("%s on %s", teaches, "unmixed views" if policy.mix_type == "none" else f"{policy.mix_type} views")
    normalise = Normalise(args.mean, args.std, precision.device, precision.memory_format)
    dataset = ViewDataset(samples, source, args.input_size)
    if teacher:
        preflight.report_live_agreement(args, dataset, args.start_epoch, normalise, teacher, names, world)
    run = Run(args, num_classes, folders, precision, world, images)
    preflight.check_run(run, source, num_classes, args.input_size)
    if args.dry_run:
        views = Path(args.output_dir, VIEWS)
        run.announce_loader(samples, source, val.samples)
        Preview(dataset, args.start_epoch, normalise, teacher).draw(views, names)
        log.info("dry run: everything is in place, nothing was trained; look at %s", views)
        return

    # train, report
    with run.session():
        batches = run.batches(samples, source, val.samples)
        run.fit(LiveTeacher(batches, teacher) if teacher else batches, run.validation(val.samples))
        run.report(provenance(args, policy), samples, val.samples)


def open_teacher(args: Namespace, precision: Precision) -> Ensemble | None:
    """Return the live teacher; None where the loss asks for none and no weights were given."""
    if args.loss_type == "ce" and not args.teacher_checkpoint:
        return None
    names, files, weights = [args.teacher_model], [args.teacher_checkpoint], [args.teacher_weights]
    how = {"flag": "--teacher-model", "weights": weights, "input_size": args.input_size}
    return Ensemble(names, files, "mean", precision, args.teacher_stem, **how)


def provenance(args: Namespace, policy: ViewPolicy) -> dict:
    """Return what summary.json says about the labels: who answered, on which views; bytes are the teacher's."""
    described = {"dialect": "live teacher" if args.teachers else "hard labels", "teachers": args.teachers}
    size = os.path.getsize(args.teacher_checkpoint) if args.teacher_checkpoint else None
    return described | {"policy": vars(policy), "bytes": size if args.teachers else 0}


if __name__ == "__main__":
    sys.exit(run_script(main))
