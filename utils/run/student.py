"""`Student`: the training state and the output folder of one student."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from utils.config import JOINT_LOSSES, TEMPERED_LOSSES, Findings, TrainConfig, run_settings
from utils.data.identity import KnownImages
from utils.labels.hard import Phases
from utils.run.checkpoint import Progress, load_checkpoint, restore, save_best, save_checkpoint
from utils.run.folder import BEST, CHECKPOINT, RunFolder
from utils.run.summary import COLUMNS, describe_epoch, how_picked, summarise
from utils.run.wandb_log import NoTracker, WandbTracker, run_metadata, start_tracker
from utils.system.distributed import ALONE, World
from utils.system.errors import InputError
from utils.system.log import log
from utils.training.cuda_graph import CapturedStep, captures
from utils.training.data_parallel import SyncBatchNorm, synchronise
from utils.training.losses import LastMicroBatch, build_loss, soft_cross_entropy, with_smoothed_logits
from utils.training.metrics import Metrics, MetricSums
from utils.training.models import build_student
from utils.training.optimizer import AveragedModel, build_optimizer, forget_momentum, set_lr
from utils.training.own_model import source_digest
from utils.training.precision import Precision
from utils.training.schedules import Temperatures, lr_factor, temperature_at
from utils.training.streams import RandomStream

CHECKPOINT_SECONDS = 10  # minimum time between two checkpoints; the last epoch always writes one


class Student:
    """One student: its training state, its metrics so far and its output folder.

    Args:
        config: flags of this student, see `TrainConfig.students`.
        found: settings that are derived from labels, folders and the machine.
        num_classes: C, number of outputs of the student.
        folder: output folder of this student; `session` creates and locks it.
        device: device of the student.
        world: ranks of the run; only rank 0 writes files and logs.
        images: names and digests of the training images. The digests are stored in each checkpoint, and compared with
            the digests in the checkpoint of --resume. None: no digests are stored or compared.

    Attributes:
        model, optimizer: the model and its optimizer, either fresh or restored from a checkpoint.
        precision: this student's own `Precision`, because fp16 training adapts the loss scale to each model.
        average: EMA of the weights, which is evaluated instead of the model; None without --ema-decay.
        random: this student's own random state, so that other students in the process do not change its dropout masks.
        progress: `Progress` of this student, stored in the checkpoint.
        sums: sums of loss and of top-1 and top-5 hits over the finished batches of the current epoch.
        loss_fn: loss function of the current epoch, `loss(outputs, soft_labels, targets) -> scalar`.
        graph: runs the optimizer steps of the current epoch as a CUDA graph; None if steps run without a graph.
        micro_batch_size: number of images per forward pass in the current epoch, over all ranks.
        joint_loss: whether every rank computes the loss of the current epoch over the rows of all ranks. The loss
            `dist` needs this, because it is not a mean over rows.
        joint_statistics: whether the model has synchronised batch norm, so that a rank without rows of a micro-batch
            must still take part in the all-reduces.
        last_micro_batch: student logits and teacher probabilities from which the student temperature is calibrated;
            None without calibration.
        failed: the error that ended the training of this student; None if there was no error.

    Raises:
        InputError: the model cannot be built, or the checkpoint of --resume does not fit this run.
    """

    def __init__(
        self,
        config: TrainConfig,
        found: Findings,
        num_classes: int,
        folder: RunFolder,
        device: torch.device,
        world: World = ALONE,
        images: KnownImages | None = None,
    ) -> None:
        self.config, self.folder, self.world, self.images = config, folder, world, images
        self.num_classes = num_classes
        self.started = time.time()
        self.name = config.student_name
        self.log = NamedLog(self.name, found.side_by_side > 1)
        self.failed: InputError | None = None
        self.tracker: WandbTracker | NoTracker = NoTracker()

        self.precision = Precision(config.precision, device)
        model = build_student(config.model, num_classes, config.seed, config.stem, found.input_size, found.channels)
        self.found = found = replace(found, model_file=source_digest(config.model))
        self.model = self.precision.place(model)
        if config.sync_bn and world.size > 1:
            synchronise(self.model, world)
        weight_decay = config.weight_decay if config.sgd else config.adamw_weight_decay
        self.optimizer = build_optimizer(
            self.model, config.sgd, config.base_lr, weight_decay, config.momentum, config.decay_all
        )
        self.average: AveragedModel | None = None
        if config.ema_decay is not None:
            self.average = AveragedModel(self.model, config.ema_decay, config.ema_buffers)

        self.progress = Progress(epoch=config.start_epoch)
        # if several students are resumed, a student without a checkpoint is trained from scratch
        if config.resume is not None and (found.side_by_side == 1 or folder.file(CHECKPOINT).exists()):
            self.resume(config.resume or folder.file(CHECKPOINT))
        self.seconds_before = self.progress.seconds
        # another seed on each rank, so that ranks draw different dropout masks
        if not world.is_main:
            torch.manual_seed(hash((config.seed, world.rank, self.progress.epoch)) % 2**63)
        self.random = RandomStream(device)

        self.last_micro_batch: LastMicroBatch | None = None
        if config.student_temperature == "calibrated":
            self.last_micro_batch = LastMicroBatch(config.micro_batch, num_classes, device)
        self.temperatures = Temperatures(
            self.temperature_in,
            config.student_temperature,
            config.temperature_schedule != "constant",
            self.last_micro_batch,
            device,
        )
        self.soft_loss = build_loss(
            config.loss_type,
            temperature=self.temperatures.teacher,
            ce_weight=config.ce_weight,
            keep_topk=found.keep_topk,
            answers=found.answers,
            student_temperature=self.temperatures.student,
            renormalise=found.topk_mass == "renormalised",
            last=self.last_micro_batch,
            image_labels=found.image_labels,
            scale_t2=config.loss_scale_t2,
        )
        if config.logit_smoothing:
            self.soft_loss = partial(with_smoothed_logits, self.soft_loss, config.logit_smoothing)
        self.joint_statistics = any(isinstance(part, SyncBatchNorm) for part in self.model.modules())
        self.phases = Phases.of(config)
        # a CUDA graph has a fixed loss and a fixed batch size: soft labels and hard labels need a graph each
        captured = captures(self.precision, world)
        self.soft_graph = CapturedStep() if captured else None
        self.hard_graph = CapturedStep() if captured and self.phases.hard else None
        self.start_epoch(self.progress.epoch)

    def resume(self, path: Any) -> None:
        """Restore the training state from the checkpoint at `path`.

        Raises:
            InputError: the checkpoint cannot be read, or does not fit this run.
        """
        settings = run_settings(self.config, self.found)
        state = load_checkpoint(path, settings, self.images, self.found.earlier)
        average = None if self.average is None else self.average.model
        self.progress = restore(state, self.model, self.optimizer, self.precision.scaler, average)
        self.log.info("resumed from %s, after %d epochs and %d batches", path, self.progress.epoch, self.progress.batch)

    @property
    def position(self) -> tuple[int, int]:
        """Return (epoch, batch) of the next batch that this student trains on."""
        return self.progress.epoch, self.progress.batch

    @property
    def evaluated(self) -> nn.Module:
        """Return the model to evaluate: the EMA model if there is one, else the model in training."""
        return self.model if self.average is None else self.average.model

    def temperature_in(self, epoch: int) -> float:
        """Return the teacher's temperature in `epoch`, from --temperature and its schedule."""
        config = self.config
        return temperature_at(
            config.temperature_schedule,
            epoch,
            config.epochs,
            start=config.temperature,
            step_size=config.temperature_step_size,
            gamma=config.temperature_gamma,
            low=config.temperature_min,
        )

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """Lock the output folder and keep a W&B run open until the `with` block ends.

        The folder is created if needed. Ranks other than 0 do nothing.
        """
        config, settings = self.config, run_settings(self.config, self.found)
        first = self.world.is_main
        with self.folder.claimed(settings, self.name) if first else contextlib.nullcontext():
            try:
                if first and self.found.model_file:
                    self.log.info("model   %s, digest %s", config.model, self.found.model_file)
                if first:
                    self.tracker = start_tracker(
                        project=config.wandb_project,
                        mode=config.wandb_mode,
                        api_key=config.wandb_api_key,
                        folder=config.output_dir,
                        config=settings,
                        metadata=run_metadata(settings),
                        run_id=self.progress.wandb_id,
                    )
                # without W&B, keep the run id from the checkpoint, so that a later resume can continue the W&B run
                self.progress.wandb_id = self.tracker.run_id or self.progress.wandb_id
                yield
            finally:
                self.tracker.finish()

    @contextlib.contextmanager
    def failing_alone(self) -> Iterator[None]:
        """Catch an InputError in the `with` block and store it in `failed`, so that other students train on."""
        try:
            yield
        except InputError as error:
            self.failed = error
            if self.found.side_by_side > 1:
                self.log.warning("FAILED: %s", error)

    def start_epoch(self, epoch: int) -> None:
        """Prepare training on the remaining batches of an epoch.

        This sets the learning rate, the loss, the micro-batch size, the temperatures and the metric sums.
        """
        config, progress = self.config, self.progress
        self.lr = config.base_lr * lr_factor(
            config.schedule or "linear",
            epoch,
            config.epochs,
            config.smoothing,
            [float(one) for one in config.milestones],
            config.gamma,
            config.warmup_epochs,
            config.warmup_factor,
        )
        set_lr(self.optimizer, self.lr)
        # `batch` is above 0 if a run is resumed within this epoch, at whose start the momentum was already reset
        if config.step_momentum == "fresh" and epoch in config.milestones and progress.batch == 0:
            forget_momentum(self.optimizer)
        self.columns: dict[str, Any] = {}
        if self.phases.is_hard(epoch):
            self.loss_fn: Callable = soft_cross_entropy
            self.joint_loss = False
            self.graph = self.hard_graph
            self.micro_batch_size = config.hard_batch_size or 0
        else:
            self.loss_fn = self.soft_loss
            self.joint_loss = config.loss_type in JOINT_LOSSES
            self.graph = self.soft_graph
            self.micro_batch_size = config.micro_batch
            teacher, student = self.temperatures.start_epoch(epoch, progress.student_temperature)
            if config.loss_type in TEMPERED_LOSSES:
                self.columns = {"teacher_temperature": teacher, "student_temperature": student}
        self.model.train()
        self.sums = MetricSums(self.precision.device)
        # the checkpoint's sums are totals over all ranks, so only rank 0 starts from them
        if self.world.is_main:
            self.sums = MetricSums(self.precision.device, progress.sums, progress.samples)

    def record_training(self, seconds: float, label_file: Callable | None = None) -> None:
        """Add the batches trained since `start_epoch` to the progress, and calibrate the student temperature.

        Args:
            seconds: training time of these batches.
            label_file: function (epoch, batch) -> path of the batch's label file, for error messages. `epoch` counts
                only epochs with soft labels, from 0.

        Raises:
            InputError: a loss or a weight is not finite.
        """
        sums, progress = self.sums.sum_over(self.world), self.progress
        hard = self.phases.is_hard(progress.epoch)
        if label_file is not None:
            label_file = None if hard else partial(label_file, self.phases.soft_before(progress.epoch))
        self.refuse_divergence(label_file)
        if sums.losses and self.last_micro_batch is not None and not hard:
            progress.next_student_temperature = self.temperatures.calibrate(self.world)
        progress.batch += len(sums.losses)
        progress.sums, progress.samples = sums.sums.tolist(), sums.samples
        progress.epoch_seconds += seconds

    def refuse_divergence(self, label_file: Callable | None) -> None:
        """Raise InputError if the loss of a batch, or a weight after the last batch, is not finite.

        Args:
            label_file: function (batch) -> path of the batch's label file. The error message shows this path. None: no
                path is shown.
        """
        epoch, bad = self.progress.epoch, self.sums.first_non_finite()
        finite = torch.stack([p.detach().isfinite().all() for p in self.model.parameters()]).all()
        if bad is None and finite:
            return
        what = "the student's weights are" if bad is None else "the loss is"
        batch = self.progress.batch + (len(self.sums.losses) - 1 if bad is None else bad)
        labels = f" (labels: {label_file(batch)})" if label_file else ""
        if batch == 0 and epoch == self.config.start_epoch and bad is not None:
            cause = "no step was taken yet, so look for extreme values in the labels, --mean or --std"
        else:
            rate = "-lr/--learning-rate" if self.config.sgd else "--adamw-lr"
            precision = "or give --precision bf16, " if self.precision.name == "fp16" else ""
            path = self.folder.file(CHECKPOINT)
            kept = f"{path} is from before this epoch" if path.exists() else "no checkpoint was written yet"
            cause = f"most likely the learning rate is too high: lower {rate}, {precision}and start again ({kept})"
        raise InputError(
            f"{what} not finite after batch {batch} of epoch {epoch}, both counted from 0{labels}; {cause}"
        )

    def finish_epoch(self, evaluation: Metrics | None, seconds: float, validation: str | None) -> None:
        """Record a finished epoch: in the progress, the log, metrics.csv, the checkpoint and W&B.

        If the evaluation is the best so far, the evaluated weights are written to model_best.pth.tar.

        Args:
            evaluation: metrics of the evaluation after this epoch; None if the epoch was not evaluated.
            seconds: wall-clock time of the evaluation.
            validation: digest of the validation images; None if the epoch was not evaluated.

        Raises:
            InputError: the run was evaluated on other validation images before it was resumed.
        """
        if validation is not None:
            self.record_validation(validation)
        progress, training = self.progress, self.sums.result()
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
        progress.finish_epoch(row)
        if not self.world.is_main:
            return
        self.log.info(describe_epoch(row, self.config.epochs))
        if evaluation is not None and (progress.best_top1 is None or evaluation.top1 > progress.best_top1):
            progress.best_top1, progress.best_epoch = evaluation.top1, row["epoch"]
            save_best(self.folder.file(BEST), progress, self.evaluated)
        if progress.epoch == self.config.epochs or self.folder.checkpoint_age() > CHECKPOINT_SECONDS:
            self.save()
        self.folder.write_metrics(progress.history)
        self.tracker.log(row)

    def record_validation(self, digest: str) -> None:
        """Compare the digest of the validation images with that of earlier evaluations, and store it.

        Raises:
            InputError: the digests differ: the run was evaluated on other validation images before it was resumed.
        """
        if self.progress.validation not in (None, digest):
            raise InputError(
                f"--val-dir {self.config.val_dir} holds other images, or other classes of them, than those that this "
                "run was evaluated on before; put them back and resume again, or start another run"
            )
        self.progress.validation = digest

    def save(self) -> None:
        """Write the checkpoint from which --resume continues."""
        self.progress.seconds = self.seconds_before + time.time() - self.started
        with self.random:
            save_checkpoint(
                self.folder.file(CHECKPOINT),
                self.progress,
                model=self.model,
                optimizer=self.optimizer,
                scaler=self.precision.scaler,
                arguments=run_settings(self.config, self.found),
                average=None if self.average is None else self.average.model,
                images=self.images.digests if self.images else None,
            )

    def report(self, labels: dict, images: dict, validation: dict) -> None:
        """Write metrics.csv, summary.json and the curves, and log top-1 of the last and of the best evaluation.

        The arguments are those of `summarise`.
        """
        validation = validation | {"digest": self.progress.validation}
        summary = summarise(self.progress, run_settings(self.config, self.found), labels, images, validation)
        self.folder.write_metrics(self.progress.history)
        self.folder.write_summary(summary)
        last, best = summary["last"], summary["best"]
        self.log.info("last epoch  top-1 %.2f%%  top-5 %.2f%%", last["top1"], last["top5"])
        # the log counts epochs from 1; summary.json and --eval-from count them from 0
        note = how_picked(self.config.eval_from and self.config.eval_from + 1)
        self.log.info("best epoch  top-1 %.2f%%  (epoch %d, %s)", best["top1"], best["epoch"] + 1, note)
        self.folder.draw_curves(self.progress.history, summary, self.num_classes)
        self.tracker.headline(summary, self.folder.file("curves.png"))
        self.log.info("results in %s", self.folder.path)


class NamedLog(logging.LoggerAdapter):
    """The log of one student.

    Args:
        owner: name of the student, stored in the attribute `owner` of every log record.
        several: whether several students train; if so, each line begins with the name of the student.
    """

    def __init__(self, owner: str, several: bool) -> None:
        super().__init__(log, {"owner": owner})
        self.prefix = f"{owner}  " if several else ""

    def process(self, msg: str, kwargs: MutableMapping) -> tuple[str, MutableMapping]:
        """Return `prefix` + `msg`, and the logging arguments with the name of the student."""
        return self.prefix + msg, {**kwargs, "extra": self.extra}
