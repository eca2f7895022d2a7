"""One student of a run: its model, its progress, and the folder that it leaves behind."""

import argparse
import contextlib
import logging
import time
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import torch

from utils.run import arguments
from utils.run.checkpoint import Progress, load_checkpoint, restore, save_best, save_checkpoint
from utils.run.curves import title_of
from utils.run.folder import BEST, CHECKPOINT, RunFolder
from utils.run.objectives import Objectives
from utils.run.summary import COLUMNS, describe_epoch, summarise
from utils.run.tracker import NoTracker, WandbTracker, run_metadata, start_tracker
from utils.system.errors import InputError
from utils.system.log import log
from utils.system.ranks import ALONE, World
from utils.training.average import AveragedModel
from utils.training.batch_norm import synchronise
from utils.training.learner import Learner
from utils.training.metrics import Metrics
from utils.training.models import build_student
from utils.training.optimizer import build_optimizer, set_lr
from utils.training.precision import Precision
from utils.training.schedules import lr_factor
from utils.views.identity import KnownImages

CHECKPOINT_SECONDS = 10  # epochs shorter than this share a checkpoint


class Student:
    """A student with its optimizer, loss and progress; it knows nothing of where batches come from.

    Args:
        args: settled arguments with the student's own `model`, `seed` and `output_dir`.
        num_classes: outputs of the student.
        folder: `RunFolder`; claimed by `session`.
        device: torch.device.
        world: `World`; its first rank alone writes and logs.
        images: the training images, which a resumed run must find again.

    Attributes:
        learner: what takes the steps.
        progress: `Progress`.
        log: the log, under the student's name where there are several.

    Raises:
        InputError: the model cannot be built, or --resume does not fit.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        num_classes: int,
        folder: RunFolder,
        device: torch.device,
        world: World = ALONE,
        images: KnownImages | None = None,
    ) -> None:
        self.args, self.folder, self.world, self.images = args, folder, world, images
        self.started = time.time()
        self.name = f"{args.model}-seed{args.seed}"
        self.log = NamedLog(self.name, args.side_by_side > 1)
        precision = Precision(args.precision, device)  # its own, since fp16 adapts its loss scaling
        model = build_student(args.model, num_classes, args.seed, args.stem, args.input_size)
        model = precision.place(model)
        if args.sync_bn and world.size > 1:
            synchronise(model, world)
        self.base_lr = args.learning_rate if args.sgd else args.adamw_lr
        weight_decay = args.weight_decay if args.sgd else args.adamw_weight_decay
        optimizer = build_optimizer(model, args.sgd, self.base_lr, weight_decay, args.momentum)
        average = AveragedModel(model, args.ema_decay, args.ema_buffers) if args.ema_decay is not None else None
        self.objectives = Objectives(args, num_classes, model, precision, world)
        self.progress = Progress(epoch=args.start_epoch)
        # of several, one that has no checkpoint starts anew and catches up
        if args.resume is not None and (args.side_by_side == 1 or folder.file(CHECKPOINT).exists()):
            self.progress = self._resume(model, optimizer, precision.scaler, average and average.model)
        self.seconds_before = self.progress.seconds
        if not world.is_main:  # other dropout masks than rank 0's
            torch.manual_seed(hash((args.seed, world.rank, self.progress.epoch)) % 2**63)
        loss_fn, step = self.objectives.loss_fn, self.objectives.step
        self.learner = Learner(model, optimizer, loss_fn, precision, arguments.micro_batch(args), step, average)
        self.tracker: WandbTracker | NoTracker = NoTracker()

    def _resume(self, *parts: Any) -> Progress:
        path = self.args.resume or self.folder.file(CHECKPOINT)
        state = load_checkpoint(path, vars(self.args), self.images)
        progress = restore(state, *parts)
        self.log.info("resumed from %s at epoch %d, batch %d", path, progress.epoch, progress.batch)
        return progress

    @property
    def model(self) -> torch.nn.Module:
        """The model in training."""
        return self.learner.model

    @property
    def position(self) -> tuple[int, int]:
        """(epoch, batch) that it takes next."""
        return self.progress.epoch, self.progress.batch

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """Own the folder and log to W&B until the block ends."""
        args, public = self.args, arguments.public(self.args)
        first = self.world.is_main
        with self.folder.claimed(public, self.name) if first else contextlib.nullcontext():
            try:
                if first:
                    self.tracker = start_tracker(
                        project=args.wandb_project,
                        mode=args.wandb_mode,
                        api_key=args.wandb_api_key,
                        folder=args.output_dir,
                        config=public,
                        metadata=run_metadata(args),
                        run_id=self.progress.wandb_id,
                    )
                # a piece without W&B keeps the run of the pieces before, which a later piece may go on with
                self.progress.wandb_id = self.tracker.run_id or self.progress.wandb_id
                yield
            finally:
                self.tracker.finish()

    def start_epoch(self, epoch: int) -> None:
        """Set the rate; be ready for the batches of `epoch` that are left."""
        args, progress = self.args, self.progress
        self.lr = self.base_lr * lr_factor(args.schedule, epoch, args.epochs, args.smoothing)
        set_lr(self.learner.optimizer, self.lr)
        objective, learner = self.objectives.start_epoch(epoch, progress), self.learner
        learner.loss_fn, learner.step, learner.micro_batch, self.columns = objective
        before = (progress.sums, progress.samples) if self.world.is_main else ()  # to be counted once
        self.learner.start_epoch(progress.batch, *before)

    def note_training(self, seconds: float, label_file: Callable | None = None) -> None:
        """Note in the progress the batches that were taken in so many seconds.

        Raises:
            InputError: the training diverged; the checkpoint is as it was before that epoch.
        """
        sums, progress = self.learner.sums.sum_over(self.world), self.progress
        self.refuse_divergence(label_file)
        if sums.losses:
            self.objectives.note_training(progress)
        progress.batch += len(sums.losses)
        progress.sums, progress.samples = sums.sums.tolist(), sums.samples
        progress.epoch_seconds += seconds

    def finish_epoch(self, evaluation: Metrics | None, seconds: float) -> None:
        """Record an epoch and its evaluation of so many seconds: progress, log, best, checkpoint, metrics.csv, W&B."""
        row, progress, fresh = self.row(evaluation, seconds), self.progress, Progress()
        progress.batch, progress.sums, progress.samples = fresh.batch, fresh.sums, fresh.samples
        progress.epoch, progress.epoch_seconds = row["epoch"] + 1, fresh.epoch_seconds
        progress.student_temperature = progress.next_student_temperature
        progress.history.append(row)
        if not self.world.is_main:
            return
        self.log.info(describe_epoch(row, self.args.epochs))
        if row["val_top1"] is not None and (progress.best_top1 is None or row["val_top1"] > progress.best_top1):
            progress.best_top1, progress.best_epoch = row["val_top1"], row["epoch"]
            save_best(self.folder.file(BEST), progress, self.learner.evaluated)
        if progress.epoch == self.args.epochs or self.folder.checkpoint_age() > CHECKPOINT_SECONDS:
            self.save()
        self.folder.write_metrics(progress.history)
        self.tracker.log(row)

    def row(self, evaluation: Metrics | None, seconds: float) -> dict:
        """The row of metrics.csv of the epoch that was trained, and evaluated in so many seconds."""
        progress, training = self.progress, self.learner.sums.result()
        row = dict.fromkeys(COLUMNS) | self.columns
        row |= {
            "epoch": progress.epoch,
            "lr": self.lr,
            "train_loss": training.loss,
            "train_top1": training.top1,
            "train_top5": training.top5,
            "train_seconds": progress.epoch_seconds,
            "train_images_per_second": training.samples / progress.epoch_seconds,
        }
        if evaluation is not None:
            row |= {"val_loss": evaluation.loss, "val_top1": evaluation.top1, "val_top5": evaluation.top5}
            row["val_seconds"] = seconds
        return row

    def refuse_divergence(self, label_file: Callable | None) -> None:
        """Raise InputError where the loss of a batch, or a weight after the last one, is not finite."""
        sums, epoch = self.learner.sums, self.progress.epoch
        bad = sums.first_non_finite()
        finite = torch.stack([p.detach().isfinite().all() for p in self.model.parameters()]).all()
        if bad is None and finite:
            return
        what = "the student's weights are" if bad is None else "the loss is"
        batch = self.progress.batch + (len(sums.losses) - 1 if bad is None else bad)
        labels = f" (labels: {label_file(batch)})" if label_file else ""
        first_step = batch == 0 and epoch == self.args.start_epoch and bad is not None
        raise InputError(
            f"{what} not finite after batch {batch} of epoch {epoch}{labels}; {self.likely_cause(first_step)}"
        )

    def likely_cause(self, first_step: bool) -> str:
        """Why training diverged, most likely, and what to do about it."""
        if first_step:
            return "no step was taken yet, so look for extreme values in the labels, --mean or --std"
        rate = "-lr/--learning-rate" if self.args.sgd else "--adamw-lr"
        precision = "or give --precision bf16, " if self.learner.precision.name == "fp16" else ""
        where = self.folder.file(CHECKPOINT)
        kept = f"{where} is from before this epoch" if where.exists() else "no checkpoint was written yet"
        return f"most likely the learning rate is too high: lower {rate}, {precision}and start again ({kept})"

    def save(self) -> None:
        """Write the checkpoint from which --resume continues."""
        self.progress.seconds = self.seconds_before + time.time() - self.started
        learner, path = self.learner, self.folder.file(CHECKPOINT)
        with learner.random:
            save_checkpoint(
                path,
                self.progress,
                model=learner.model,
                optimizer=learner.optimizer,
                scaler=learner.precision.scaler,
                arguments=vars(self.args),
                average=None if learner.average is None else learner.average.model,
                images=self.images.digests if self.images else None,
            )

    def note_validation(self, digest: str) -> None:
        """Note the digest of the validation images, or compare it with that of the evaluations before.

        Raises:
            InputError: the run was evaluated on other images before it was resumed.
        """
        if self.progress.validation not in (None, digest):
            raise InputError(
                f"--val-dir {self.args.val_dir} holds other images, or other classes of them, than those that this run "
                "was evaluated on before; put them back and resume again, or start another run"
            )
        self.progress.validation = digest

    def report(self, labels: dict, images: dict, validation: dict) -> None:
        """Write summary.json and curves.png, print the headline; arguments as for `summarise`."""
        validation = validation | {"digest": self.progress.validation}
        summary = summarise(self.progress, arguments.public(self.args), labels, images, validation)
        self.folder.write_metrics(self.progress.history)
        self.folder.write_summary(summary)
        last, best = summary["last"], summary["best"]
        self.log.info("last epoch  top-1 %.2f%%  top-5 %.2f%%", last["top1"], last["top5"])
        self.log.info("best epoch  top-1 %.2f%%  (epoch %d, picked on the validation set)", best["top1"], best["epoch"])
        self.folder.draw_curves(self.progress.history, title_of(summary["args"], labels), self.args.loss_type)
        self.tracker.headline(summary, self.folder.file("curves.png"))
        self.log.info("results in %s", self.folder.path)


class NamedLog(logging.LoggerAdapter):
    """The log of one student: `owner` on every record, and its name before the text where there are several."""

    def __init__(self, owner: str, several: bool) -> None:
        super().__init__(log, {"owner": owner})
        self.prefix = f"{owner}  " if several else ""

    def process(self, msg: str, kwargs: MutableMapping) -> tuple[str, MutableMapping]:
        """As LoggerAdapter's."""
        return self.prefix + msg, {**kwargs, "extra": self.extra}
