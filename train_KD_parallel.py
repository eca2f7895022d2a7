"""Naive KD: train a student on distilled images with a teacher that answers live, without stored labels.

    python train_KD_parallel.py --train-dir DISTILLED --val-dir VAL --teacher-model resnet18 \
        --teacher-checkpoint TEACHER.pth --mix-type cutmix --batch-size 50 --cos --epochs 300

The same loop, losses and outputs as train_FKD_parallel.py. With the same --fkd-seed and view flags it
draws the views that relabel_FKD.py would have stored, so both ways give the same student.
"""

import sys
import time

from utils import arguments, distributed, preflight, tracking
from utils.augment import Normalise
from utils.data import LiveTeacher, ValidationBatches, ViewDataset, first_images
from utils.engine import Precision, pick_device
from utils.errors import run_script
from utils.labels import DrawnViews
from utils.preview import Preview
from utils.resident import build_batches, pick_loader
from utils.run import Run
from utils.teachers import Ensemble
from utils.tracking import log


def parse(argv):
    """Parse the command line and settle flags that depend on each other."""
    parser = arguments.Parser("Train a student on distilled images with a live teacher.")
    arguments.add_data_arguments(parser)
    arguments.add_teacher_arguments(parser)
    arguments.add_model_arguments(parser)
    arguments.add_loss_arguments(parser)
    arguments.add_optimizer_arguments(parser)
    arguments.add_run_arguments(parser)
    arguments.add_device_arguments(parser)
    arguments.add_wandb_arguments(parser)
    args = arguments.settle(parser.parse_args(argv))
    args.output_dir = args.output_dir or f"./save/kd-{args.model}-{time.strftime('%Y%m%d-%H%M%S')}"
    return args


def main(argv=None):
    """Run the phases: parse, preflight, build, loop, report."""
    args = parse(argv)
    world = distributed.start(args.device)
    args.processes = world.size
    args.no_progress |= not world.is_first
    tracking.start_log(world.is_first)

    # preflight
    precision = Precision(args.precision, pick_device(args.device, world))
    args.arithmetic = str(precision)
    folder = tracking.RunFolder(args.output_dir, args.overwrite, resume=args.resume is not None, writes=world.is_first)
    train, val = preflight.check_folders(args.train_dir, args.val_dir)
    samples = first_images(train.samples, args.ipc)
    policy = arguments.view_policy(args)
    views = DrawnViews(policy, len(samples), args.batch_size)

    # build
    names, files = [args.teacher_model], [args.teacher_checkpoint]
    teacher = Ensemble(names, files, "mean", precision, args.teacher_stem, flag="--teacher-model")
    normalise = Normalise(args.mean, args.std, precision.device, precision.memory_format)
    args.teachers = teacher.described
    args.train_images = preflight.names_digest(args.train_dir, samples)
    args.val_images = preflight.names_digest(args.val_dir, val.samples)
    num_classes = teacher.num_classes(args.input_size)
    log.info("train   %d images, %d classes (%s)", len(samples), len(train.classes), args.train_dir)
    log.info("val     %d images, %d classes (%s)", len(val.samples), len(val.classes), args.val_dir)
    log.info("teacher %s answers live on %s views", args.teacher_model, policy.mix_type)
    preview = Preview(ViewDataset(samples, views, args.input_size), args.start_epoch, normalise, teacher)
    preflight.report_agreement(*preview.agreement(len(train.classes)))
    run = Run(args, num_classes, folder, precision, world)
    preflight.check_run(run, len(samples), num_classes, args.input_size)
    if args.dry_run:
        pick_loader(args.loader, samples, args.workers, precision.device)
        preview.draw(folder.file(tracking.VIEWS), train.classes)
        log.info("dry run: everything is in place, nothing was trained; look at %s", folder.file(tracking.VIEWS))
        return
    with run.session():
        dataset = ViewDataset(samples, run.shared(views), args.input_size)
        batches = build_batches(args.loader, dataset, run.epochs, normalise, args.workers, precision.device)
        part = val.samples[world.rank :: world.size]
        validation = ValidationBatches(part, args.input_size, normalise, args.workers, precision.device)

        run.fit(LiveTeacher(batches, teacher), validation)
        run.report({"dialect": "live teacher", "teachers": teacher.described, "policy": vars(policy)}, len(samples))


if __name__ == "__main__":
    sys.exit(run_script(main))
