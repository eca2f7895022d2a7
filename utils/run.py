"""One student's training run: what the validation scripts share once their batches are ready."""

import time

from utils import arguments, tracking
from utils.checkpoint import Progress, load_checkpoint, restore, save_best, save_checkpoint
from utils.engine import build_optimizer, evaluate, set_lr, train_one_epoch
from utils.graphs import pick_step
from utils.losses import build_loss
from utils.models import build_student
from utils.schedules import lr_factor
from utils.tracking import log

CHECKPOINT_SECONDS = 10  # epochs shorter than this share a checkpoint


class Run:
    """A student with its optimizer, loss and progress, and the folder that it leaves behind.

    Args:
        args: settled arguments.
        num_classes: outputs of the student.
        folder: `RunFolder`; claimed by `start`.
        precision: `Precision` on the run's device.

    Raises:
        InputError: the model cannot be built, or --resume does not fit.
    """

    def __init__(self, args, num_classes, folder, precision):
        self.args, self.folder, self.precision = args, folder, precision
        self.started = time.time()
        model = build_student(args.model, num_classes, args.seed, args.stem)
        self.model = model.to(precision.device, memory_format=precision.memory_format)
        self.base_lr = args.learning_rate if args.sgd else args.adamw_lr
        weight_decay = args.weight_decay if args.sgd else args.adamw_weight_decay
        self.optimizer = build_optimizer(self.model, args.sgd, self.base_lr, weight_decay, args.momentum)
        self.loss_fn = build_loss(args.loss_type, args.temperature, args.ce_weight, args.keep_topk)
        self.step = pick_step(self.model, precision)
        self.progress = self._resume() if args.resume is not None else Progress(epoch=args.start_epoch)
        self.seconds_before = self.progress.seconds
        self.tracker = tracking.NoTracker()

    def _resume(self):
        path = self.args.resume or self.folder.file(tracking.CHECKPOINT)
        state = load_checkpoint(path, vars(self.args))
        progress = restore(state, self.model, self.optimizer, self.precision.scaler)
        log.info("resumed from %s after epoch %d", path, progress.epoch - 1)
        return progress

    @property
    def epochs(self):
        """The epochs that are left, as a range."""
        return range(self.progress.epoch, self.args.epochs)

    def start(self):
        """Claim the folder and start W&B."""
        args, public = self.args, arguments.public(self.args)
        self.folder.claim(public)
        where = (args.wandb_project, args.wandb_mode, args.wandb_api_key, args.output_dir)
        self.tracker = tracking.start_tracker(*where, public, self.progress.wandb_id)
        self.progress.wandb_id = self.tracker.run_id

    def fit(self, batches, validation):
        """Train the epochs that are left; evaluate every --eval-every epochs and after the last.

        Args:
            batches: `epoch(e)` yields the `Batch`es of epoch e, `batches_per_epoch` of them.
            validation: iterable of (images, targets).
        """
        for epoch in self.epochs:
            row = self.train_epoch(epoch, batches)
            if epoch % self.args.eval_every == 0 or epoch == self.args.epochs - 1:
                row |= self.evaluate(validation)
            self.finish_epoch(row)

    def train_epoch(self, epoch, batches):
        """Train one epoch; return its row of metrics.csv."""
        args, started = self.args, time.time()
        lr = self.base_lr * lr_factor(args.schedule, epoch, args.epochs, args.smoothing)
        set_lr(self.optimizer, lr)
        bar = tracking.progress_bar(
            batches.epoch(epoch), f"epoch {epoch}", batches.batches_per_epoch, not args.no_progress
        )
        micro_batch = args.batch_size // args.gradient_accumulation_steps
        metrics = train_one_epoch(self.model, bar, self.loss_fn, self.optimizer, self.precision, micro_batch, self.step)
        seconds = time.time() - started
        return dict.fromkeys(tracking.COLUMNS) | {
            "epoch": epoch,
            "lr": lr,
            "train_loss": metrics.loss,
            "train_top1": metrics.top1,
            "train_top5": metrics.top5,
            "train_seconds": seconds,
            "train_images_per_second": metrics.samples / seconds,
        }

    def evaluate(self, validation):
        """Evaluate on the validation set; return its columns of metrics.csv."""
        started = time.time()
        bar = tracking.progress_bar(validation, "validation", len(validation), not self.args.no_progress)
        metrics = evaluate(self.model, bar, self.precision)
        return {
            "val_loss": metrics.loss,
            "val_top1": metrics.top1,
            "val_top5": metrics.top5,
            "val_seconds": time.time() - started,
        }

    def finish_epoch(self, row):
        """Record an epoch: progress, log, best so far, checkpoint, metrics.csv, W&B."""
        progress = self.progress
        progress.epoch = row["epoch"] + 1
        progress.history.append(row)
        progress.seconds = self.seconds_before + time.time() - self.started
        log.info(tracking.describe_epoch(row, self.args.epochs))
        if row["val_top1"] is not None and (progress.best_top1 is None or row["val_top1"] > progress.best_top1):
            progress.best_top1, progress.best_epoch = row["val_top1"], row["epoch"]
            save_best(self.folder.file(tracking.BEST), progress, self.model)
        if progress.epoch == self.args.epochs or self.folder.checkpoint_age() > CHECKPOINT_SECONDS:
            self.save()
        self.folder.write_metrics(progress.history)
        self.tracker.log(row)

    def save(self):
        """Write the checkpoint from which --resume continues."""
        path = self.folder.file(tracking.CHECKPOINT)
        save_checkpoint(path, self.progress, self.model, self.optimizer, self.precision.scaler, vars(self.args))

    def report(self, labels, num_train):
        """Write summary.json and curves.png, print the headline, close W&B.

        Args:
            labels: where the soft labels came from, for summary.json.
            num_train: training images per epoch.
        """
        summary = tracking.summarise(self.progress, arguments.public(self.args), labels, num_train)
        self.folder.write_metrics(self.progress.history)
        self.folder.write_summary(summary)
        self.folder.draw_curves(self.progress.history)
        last, best = summary["last"], summary["best"]
        log.info("last epoch  top-1 %.2f%%  top-5 %.2f%%", last["top1"], last["top5"])
        log.info("best epoch  top-1 %.2f%%  (epoch %d, picked on the validation set)", best["top1"], best["epoch"])
        log.info("results in %s", self.folder.path)
        self.tracker.finish()
