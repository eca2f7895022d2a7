"""What a student minimises in each epoch of its run."""

from argparse import Namespace
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from utils.run.arguments import micro_batch
from utils.run.checkpoint import Progress
from utils.run.training_arguments import phases_of
from utils.system.ranks import World
from utils.training.graphs import pick_step
from utils.training.losses import TEMPERED, LastMicroBatch, build_loss
from utils.training.precision import Precision
from utils.training.schedules import temperature_at
from utils.training.temperatures import Temperatures


class Objective(NamedTuple):
    """What a student minimises in one epoch.

    Attributes:
        loss: `loss(outputs, soft_labels, targets) -> scalar`.
        step: what takes an optimizer step.
        micro_batch: images that go through the model at once, over all ranks.
        columns: its columns of metrics.csv.
    """

    loss: Callable
    step: Callable
    micro_batch: int
    columns: dict[str, Any]


class Objectives:
    """The loss of each epoch with the step that takes it, and the temperatures.

    Args:
        args: settled arguments.
        num_classes: C.
        model: the student.
        precision, world: as for `pick_step`.
    """

    def __init__(self, args: Namespace, num_classes: int, model: nn.Module, precision: Precision, world: World) -> None:
        self.args, self.world = args, world
        calibrated = args.student_temperature == "calibrated"
        last = LastMicroBatch(micro_batch(args), num_classes, precision.device) if calibrated else None
        varies = args.temperature_schedule != "constant"
        schedule = partial(temperature_of, args)
        self.temperatures = Temperatures(schedule, args.student_temperature, varies, last, precision.device)
        teacher, student = self.temperatures.teacher, self.temperatures.student
        renormalise = args.topk_mass == "renormalised"
        self.loss_fn = build_loss(
            args.loss_type,
            temperature=teacher,
            ce_weight=args.ce_weight,
            keep_topk=args.keep_topk,
            answers=args.answers,
            student_temperature=student,
            renormalise=renormalise,
            last=last,
        )
        self.step = pick_step(model, precision, world, whole_loss=args.loss_type == "dist")
        self.phases = phases_of(args)
        # a step of its own, since a recorded one knows one loss and one size of batches
        self.hard_step = pick_step(model, precision, world) if self.phases.hard else self.step

    def start_epoch(self, epoch: int, progress: Progress) -> Objective:
        """Return the `Objective` of `epoch`."""
        if self.phases.is_hard(epoch):
            return Objective(soft_cross_entropy, self.hard_step, self.args.hard_batch_size, {})
        teacher, student = self.temperatures.start_epoch(epoch, progress.student_temperature)
        used = self.args.loss_type in TEMPERED
        columns = {"teacher_temperature": teacher, "student_temperature": student} if used else {}
        return Objective(self.loss_fn, self.step, micro_batch(self.args), columns)

    def note_training(self, progress: Progress) -> None:
        """Note the student's temperature after the batches that were taken, which is that of the next soft epoch."""
        if self.args.student_temperature == "calibrated" and not self.phases.is_hard(progress.epoch):
            progress.next_student_temperature = self.temperatures.calibrate(self.world)


def soft_cross_entropy(outputs: torch.Tensor, answers: torch.Tensor, _targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of logits [B, C] with probabilities [B, C], those of `HardViews`: batch mean."""
    return F.cross_entropy(outputs, answers)


def temperature_of(args: Namespace, epoch: int) -> float:
    """The teacher's temperature in `epoch`."""
    return temperature_at(
        args.temperature_schedule,
        epoch,
        args.epochs,
        start=args.temperature,
        step_size=args.temperature_step_size,
        gamma=args.temperature_gamma,
        low=args.temperature_min,
    )
