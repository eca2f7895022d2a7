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
import time

from utils import arguments, distributed, preflight, tracking
from utils.augment import Normalise
from utils.data import ValidationBatches, ViewDataset
from utils.engine import Precision, pick_device
from utils.errors import run_script
from utils.preview import Preview
from utils.resident import build_batches, pick_loader
from utils.run import Run
from utils.tracking import log


def parse(argv):
    """Parse the command line and settle flags that depend on each other."""
    parser = arguments.Parser("Train a student on distilled images with stored FKD soft labels.")
    arguments.add_data_arguments(parser)
    arguments.add_label_arguments(parser)
    arguments.add_training_arguments(parser)
    args = arguments.settle(parser.parse_args(argv))
    args.output_dir = args.output_dir or f"./save/{args.model}-{time.strftime('%Y%m%d-%H%M%S')}"
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
    store = preflight.check_labels(args, train)
    args.mix_type = store.mix_type
    args.labels = store.digest()
    args.train_images = preflight.names_digest(args.train_dir, train.samples)
    args.val_images = preflight.names_digest(args.val_dir, val.samples)
    samples = preflight.sample_labels(store, range(args.start_epoch, args.epochs))
    preflight.check_views(samples, args.input_size, args.fkd_path)
    preflight.report(args, train, val, store, samples)

    # build
    run = Run(args, store.num_classes, folder, precision, world)
    preflight.check_run(run, len(train.samples), store.num_classes, args.input_size)
    if args.dry_run:
        pick_loader(args.loader, train.samples, args.workers, precision.device)
        dataset = ViewDataset(train.samples, store, args.input_size)
        if world.is_first:
            Preview(dataset, args.start_epoch).draw(folder.file(tracking.VIEWS), train.classes)
        log.info("dry run: everything is in place, nothing was trained; look at %s", folder.file(tracking.VIEWS))
        return
    with run.session():
        normalise = Normalise(args.mean, args.std, precision.device, precision.memory_format)
        dataset = ViewDataset(train.samples, run.shared(store), args.input_size)
        batches = build_batches(args.loader, dataset, run.epochs, normalise, args.workers, precision.device)
        part = val.samples[world.rank :: world.size]
        validation = ValidationBatches(part, args.input_size, normalise, args.workers, precision.device)

        run.fit(batches, validation, store.file)
        run.report(store.provenance(), len(train.samples))


if __name__ == "__main__":
    sys.exit(run_script(main))
