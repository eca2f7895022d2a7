"""Train a fresh student on distilled images and stored FKD soft labels; report its top-1.

Smoke test on the demo's data (`make demo` writes it):

    python train_FKD_parallel.py --train-dir demo/work/distilled --val-dir demo/work/val \
        --fkd-path demo/work/labels --input-size 32 --batch-size 50 --epochs 5 --output-dir save/smoke

The recipe of the launchers, ImageNet-1K at 10 images per class:

    python train_FKD_parallel.py --train-dir DISTILLED --val-dir IMAGENET/val --fkd-path LABELS \
        --batch-size 50 --gradient-accumulation-steps 2 --cos --loss-type mse_gt --ce-weight 0.1 -T 20

Every view is replayed as the teacher saw it, so no teacher runs here. The last epoch's top-1 is
the headline. What a run leaves in --output-dir, and how each figure is computed, is in README.md.
"""

import sys
from pathlib import Path

from utils.run import arguments, preflight
from utils.run.folder import VIEWS, open_folders
from utils.run.label_checks import check_labels, hard_views, soft_epochs, stated_classes
from utils.run.run import Run
from utils.run.side_by_side import default_output
from utils.run.start import begin
from utils.run.training_arguments import add_hard_arguments
from utils.system.files import folder_bytes
from utils.system.log import log
from utils.system.parser import Parser
from utils.system.script import run_script
from utils.views.preview import Preview
from utils.views.workers import ViewDataset


def parse(argv):
    """Parse the command line and settle flags that depend on each other."""
    parser = Parser("Train a student on distilled images with stored FKD soft labels.")
    arguments.add_data_arguments(parser)
    arguments.add_label_arguments(parser)
    arguments.add_training_arguments(parser)
    add_hard_arguments(parser)
    args = arguments.settle(parser.parse_args(argv))
    args.output_dir = args.output_dir or default_output(args)
    return args


def main(argv=None):
    """Run the phases: parse, preflight, build, train, report."""
    args = parse(argv)
    world, precision = begin(args)

    # preflight
    folders = open_folders(args, world)
    train, val = preflight.check_folders(args.train_dir, args.val_dir)
    views = check_labels(args, train)
    store = views.store
    names = preflight.number_classes(args, train, val, store.num_classes, stated_classes(store))
    images = preflight.identify_images(args, train.samples, store.image_digests, world)
    preflight.note_images(args, train.samples, val.samples)
    hard = hard_views(args, train.samples, store.num_classes)
    samples = preflight.sample_views(args, views, len(train.classes))
    preflight.report(args, train, val, views, samples, names)

    # build
    run = Run(args, store.num_classes, folders, precision, world, images)
    preflight.check_run(run, views, store.num_classes, args.input_size, hard)
    if args.dry_run:
        picture = Path(args.output_dir, VIEWS)
        run.announce_loader(train.samples, views, val.samples, hard)
        if world.is_main:
            dataset = ViewDataset(train.samples, views, args.input_size)
            Preview(dataset, soft_epochs(args).start).draw(picture, names)
        log.info("dry run: everything is in place, nothing was trained; look at %s", picture)
        return

    # train, report
    with run.session():
        batches = run.batches(train.samples, views, val.samples, hard)
        run.fit(batches, run.validation(val.samples), views.file)
        labels = store.provenance() | {"digest": args.labels, "bytes": folder_bytes(args.fkd_path)}
        run.report(labels, train.samples, val.samples)


if __name__ == "__main__":
    sys.exit(run_script(main))
