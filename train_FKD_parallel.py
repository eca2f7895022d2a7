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

from utils import arguments, preflight, tracking
from utils.augment import Normalise
from utils.checkpoint import Progress, load_checkpoint, restore, save_best, save_checkpoint
from utils.data import ValidationBatches, ViewDataset
from utils.engine import Precision, build_optimizer, evaluate, pick_device, set_lr, train_one_epoch
from utils.errors import run_script
from utils.losses import build_loss
from utils.models import build_student
from utils.resident import build_batches
from utils.schedules import lr_factor
from utils.tracking import log

CHECKPOINT_SECONDS = 10  # epochs shorter than this share a checkpoint


def parse(argv):
    """Parse the command line and settle flags that depend on each other."""
    parser = arguments.Parser("Train a student on distilled images with stored FKD soft labels.")
    arguments.add_data_arguments(parser)
    arguments.add_label_arguments(parser)
    arguments.add_model_arguments(parser)
    arguments.add_loss_arguments(parser)
    arguments.add_optimizer_arguments(parser)
    arguments.add_run_arguments(parser)
    arguments.add_device_arguments(parser)
    arguments.add_wandb_arguments(parser)
    args = arguments.settle(parser.parse_args(argv))
    args.output_dir = args.output_dir or f"./save/{args.model}-{time.strftime('%Y%m%d-%H%M%S')}"
    return args


def main(argv=None):
    """Run the phases: parse, preflight, build, loop, report."""
    started = time.time()
    args = parse(argv)
    tracking.start_log()

    # preflight
    device = pick_device(args.device)
    precision = Precision(args.precision, device)
    args.arithmetic = str(precision)
    folder = tracking.RunFolder(args.output_dir, args.overwrite, resume=args.resume is not None)
    train, val = preflight.check_folders(args.train_dir, args.val_dir)
    store = preflight.check_labels(args, train)
    args.mix_type = store.mix_type
    samples = preflight.sample_labels(store, range(args.start_epoch, args.epochs))
    preflight.check_views(samples, args.input_size, args.fkd_path)
    preflight.report(args, train, val, store, samples)

    # build
    model = build_student(args.model, store.num_classes, args.seed, args.stem)
    model = model.to(device, memory_format=precision.memory_format)
    optimizer = build_optimizer(
        model,
        args.sgd,
        lr=args.learning_rate if args.sgd else args.adamw_lr,
        weight_decay=args.weight_decay if args.sgd else args.adamw_weight_decay,
        momentum=args.momentum,
    )
    loss_fn = build_loss(args.loss_type, args.temperature, args.ce_weight, args.keep_topk)
    progress = Progress(epoch=args.start_epoch)
    if args.resume is not None:
        path = args.resume or folder.file(tracking.CHECKPOINT)
        progress = restore(load_checkpoint(path, vars(args)), model, optimizer, precision.scaler)
        log.info("resumed from %s after epoch %d", path, progress.epoch - 1)
    log.info("run     %s on %s in %s, output in %s", args.model, device, precision, args.output_dir)
    if args.dry_run:
        log.info("dry run: everything is in place, nothing was trained")
        return
    folder.claim(arguments.public(args))
    normalise = Normalise(args.mean, args.std, device, precision.memory_format)
    epochs = range(progress.epoch, args.epochs)
    views = ViewDataset(train.samples, store, args.input_size)
    batches = build_batches(args.loader, views, epochs, normalise, args.workers, device)
    validation = ValidationBatches(val.samples, args.input_size, normalise, args.workers, device)
    tracker = tracking.start_tracker(
        *(args.wandb_project, args.wandb_mode, args.wandb_api_key, args.output_dir, arguments.public(args)),
        progress.wandb_id,
    )
    progress.wandb_id = tracker.run_id

    # loop
    before = progress.seconds
    for epoch in epochs:
        lr = base_lr(args) * lr_factor(args.schedule, epoch, args.epochs, args.smoothing)
        set_lr(optimizer, lr)
        row = train_epoch(args, epoch, model, batches, loss_fn, optimizer, precision) | {"lr": lr}
        if (epoch % args.eval_every == 0) or epoch == args.epochs - 1:
            row |= evaluate_epoch(args, model, validation, precision)
        finish_epoch(
            row, progress, args, folder, tracker, model, optimizer, precision.scaler, before + time.time() - started
        )

    # report
    report(args, progress, folder, store, len(train.samples))
    tracker.finish()


def base_lr(args):
    """Initial learning rate of the chosen optimizer."""
    return args.learning_rate if args.sgd else args.adamw_lr


def train_epoch(args, epoch, model, batches, loss_fn, optimizer, precision):
    """Train one epoch; return its columns of metrics.csv."""
    started = time.time()
    bar = tracking.progress_bar(batches.epoch(epoch), f"epoch {epoch}", batches.batches_per_epoch, not args.no_progress)
    micro_batch = args.batch_size // args.gradient_accumulation_steps
    metrics = train_one_epoch(model, bar, loss_fn, optimizer, precision, micro_batch)
    seconds = time.time() - started
    return dict.fromkeys(tracking.COLUMNS) | {
        "epoch": epoch,
        "train_loss": metrics.loss,
        "train_top1": metrics.top1,
        "train_top5": metrics.top5,
        "train_seconds": seconds,
        "train_images_per_second": metrics.samples / seconds,
    }


def evaluate_epoch(args, model, validation, precision):
    """Evaluate on the validation set; return its columns of metrics.csv."""
    started = time.time()
    bar = tracking.progress_bar(validation, "validation", len(validation), not args.no_progress)
    metrics = evaluate(model, bar, precision)
    return {
        "val_loss": metrics.loss,
        "val_top1": metrics.top1,
        "val_top5": metrics.top5,
        "val_seconds": time.time() - started,
    }


def finish_epoch(row, progress, args, folder, tracker, model, optimizer, scaler, seconds):
    """Record an epoch: progress, log, checkpoint (and the best so far), metrics.csv, W&B."""
    progress.epoch = row["epoch"] + 1
    progress.history.append(row)
    progress.seconds = seconds
    improved = row["val_top1"] is not None and row["val_top1"] > (progress.best_top1 or 0)
    if improved:
        progress.best_top1, progress.best_epoch = row["val_top1"], row["epoch"]
    log.info(tracking.describe_epoch(row, args.epochs))
    if improved:
        save_best(folder.file(tracking.BEST), progress, model)
    if progress.epoch == args.epochs or folder.checkpoint_age() > CHECKPOINT_SECONDS:
        save_checkpoint(folder.file(tracking.CHECKPOINT), progress, model, optimizer, scaler, vars(args))
    folder.write_metrics(progress.history)
    tracker.log(row)


def report(args, progress, folder, store, num_train):
    """Write summary.json and curves.png, and print the headline."""
    summary = tracking.summarise(progress, arguments.public(args), store.provenance(), num_train)
    folder.write_metrics(progress.history)
    folder.write_summary(summary)
    folder.draw_curves(progress.history)
    last, best = summary["last"], summary["best"]
    log.info("last epoch  top-1 %.2f%%  top-5 %.2f%%", last["top1"], last["top5"])
    log.info("best epoch  top-1 %.2f%%  (epoch %d, picked on the validation set)", best["top1"], best["epoch"])
    log.info("results in %s", folder.path)


if __name__ == "__main__":
    sys.exit(run_script(main))
