"""Losses between a student's logits and what a teacher answered. All are means over samples.

Legend: outputs (o) and soft_labels (z) are logits [B, C], targets (y) int64 [B] folder classes,
T the temperature, k the classes that --keep-topk keeps.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from utils.config import LOSS_TYPES, TEMPERED_LOSSES
from utils.labels.batch import Answers, TopK
from utils.system.errors import InputError

NEEDS_LOGITS = ("mse_gt", "mae_gt")

Temperature = float | torch.Tensor  # a number, or a 0-dim tensor that is filled when it changes


def build_loss(
    loss_type: str,
    temperature: Temperature = 1.0,
    ce_weight: float = 0.0,
    keep_topk: int | None = None,
    answers: str = "logits",
    student_temperature: Temperature | None = None,
    renormalise: bool = False,
    note: "LastMicroBatch | None" = None,
) -> Callable[[torch.Tensor, Answers, torch.Tensor], torch.Tensor]:
    """Return `loss(outputs, soft_labels, targets) -> scalar`.

    Args:
        loss_type: one of LOSS_TYPES.
        temperature: T of kl and dist: the teacher's, and the student's unless that is given.
        ce_weight: weight of the hard-label term of mse_gt and mae_gt.
        keep_topk: number of teacher classes to keep, None for all.
        answers: `logits`, or `probabilities`, at a temperature of their own, of which soft_labels are the natural logs.
        student_temperature: divides the student's logits in kl and dist.
        renormalise: kl and dist take the kept classes for all there are: their probabilities add up to 1.
        note: is given what kl or dist compares in each micro-batch.
    """
    if loss_type == "ce":
        return lambda outputs, soft_labels, targets: F.cross_entropy(outputs, targets)
    if loss_type in TEMPERED_LOSSES:
        student = temperature if student_temperature is None else student_temperature
        teacher = 1.0 if answers == "probabilities" else temperature
        return SoftLoss({"kl": kl, "dist": dist}[loss_type], teacher, student, keep_topk, renormalise, note)
    if loss_type in ("mse_gt", "mae_gt"):
        distance = {"mse_gt": F.mse_loss, "mae_gt": F.l1_loss}[loss_type]
        return partial(_regression, distance, ce_weight, keep_topk)
    raise InputError(f"--loss-type {loss_type} is unknown; choose one of {', '.join(LOSS_TYPES)}")


@dataclass(frozen=True)
class SoftLoss:
    """kl or dist between a student's logits and a teacher's answers; fields as the arguments of `build_loss`."""

    divergence: Callable
    temperature: Temperature
    student_temperature: Temperature
    keep_topk: int | None = None
    renormalise: bool = False
    note: "LastMicroBatch | None" = None

    def __call__(self, outputs: torch.Tensor, soft_labels: Answers, targets: torch.Tensor) -> torch.Tensor:
        probabilities = self.probabilities(soft_labels, outputs.shape[1])
        if self.note is not None:
            self.note.keep(outputs, probabilities)
        return self.divergence(outputs, probabilities, self.student_temperature)

    def probabilities(self, soft_labels: Answers, num_classes: int) -> torch.Tensor:
        """What the student is to answer: float32 [B, C]; rows add up to 1."""
        keep_topk = self.keep_topk
        if isinstance(soft_labels, TopK) and soft_labels.values.shape[1] <= (keep_topk or num_classes):
            keep_topk = None  # the labels keep no more
        logits = as_logits(soft_labels, num_classes, self.temperature, self.renormalise)
        if self.renormalise and keep_topk is not None and keep_topk < num_classes:
            values, classes = logits.topk(keep_topk, dim=1)
            logits = torch.full_like(logits, float("-inf")).scatter(1, classes, values)
            keep_topk = None
        return keep_top_probabilities(F.softmax(logits / self.temperature, dim=1), keep_topk)


class LastMicroBatch:
    """What kl or dist compared last, in fixed tensors that a recorded step fills as well.

    Args:
        rows, num_classes: of the largest micro-batch.
        device: torch.device.
    """

    def __init__(self, rows: int, num_classes: int, device: torch.device) -> None:
        self.outputs = torch.zeros(rows, num_classes, device=device)
        self.probabilities = torch.zeros(rows, num_classes, device=device)
        self.rows = torch.zeros(1, dtype=torch.int64, device=device)

    @torch.no_grad()
    def keep(self, outputs: torch.Tensor, probabilities: torch.Tensor) -> None:
        """Copy a micro-batch: the student's logits and the teacher's probabilities, [b, C] each."""
        self.outputs[: len(outputs)] = outputs
        self.probabilities[: len(outputs)] = probabilities
        self.rows.fill_(len(outputs))

    def keep_none(self) -> None:
        """Of this micro-batch another process has all rows."""
        self.rows.zero_()

    @torch.no_grad()
    def divergences(self, temperatures: list[float]) -> torch.Tensor:
        """Return the sum over rows of KL(probabilities || softmax(o/t)) for each t: float64 [len(temperatures)]."""
        valid = torch.arange(len(self.outputs), device=self.rows.device) < self.rows
        sums = []
        for temperature in temperatures:
            student = F.log_softmax(self.outputs / temperature, dim=1)
            each_row = F.kl_div(student, self.probabilities, reduction="none").sum(dim=1)
            sums.append(torch.where(valid, each_row, 0.0).double().sum())
        return torch.stack(sums)


def as_logits(
    soft_labels: Answers, num_classes: int, temperature: float | torch.Tensor, renormalise: bool = False
) -> torch.Tensor:
    """What a teacher answered as logits float32 [B, C]; for `renormalise` see `TopK.dense`."""
    if isinstance(soft_labels, TopK):
        return soft_labels.dense(num_classes, temperature, renormalise)
    return soft_labels.float()


def _regression(
    distance: Callable,
    ce_weight: float,
    keep_topk: int | None,
    outputs: torch.Tensor,
    soft_labels: Answers,
    targets: torch.Tensor,
) -> torch.Tensor:
    loss = distance(*kept_logits(outputs, soft_labels, keep_topk))
    return loss + ce_weight * F.cross_entropy(outputs, targets) if ce_weight else loss


def kept_logits(outputs: torch.Tensor, soft_labels: Answers, k: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the student's and the teacher's logits float32 [B, k] of the k classes that the teacher rates highest."""
    if isinstance(soft_labels, TopK):
        values, classes = soft_labels.values.float(), soft_labels.classes
        if k is not None and k < values.shape[1]:
            values, places = values.topk(k, dim=1)
            classes = classes.gather(1, places)
    elif k is not None and k < soft_labels.shape[1]:
        values, classes = soft_labels.float().topk(k, dim=1)
    else:
        return outputs, soft_labels.float()
    return outputs.gather(1, classes), values


def keep_top_probabilities(probabilities: torch.Tensor, k: int | None) -> torch.Tensor:
    """Keep the k largest of each row of [B, C]; share the rest of the mass evenly over the others."""
    classes = probabilities.shape[1]
    if k is None or k >= classes:
        return probabilities
    values, kept = probabilities.topk(k, dim=1)
    rest = (1 - values.sum(dim=1, keepdim=True)) / (classes - k)
    return rest.expand_as(probabilities).scatter(1, kept, values)


def kl(outputs: torch.Tensor, probabilities: torch.Tensor, temperature: Temperature) -> torch.Tensor:
    """KL(probabilities || softmax(o/T)), batch mean, without the factor T² (as SRe2L's validation)."""
    return F.kl_div(F.log_softmax(outputs / temperature, dim=1), probabilities, reduction="batchmean")


def dist(
    outputs: torch.Tensor, probabilities: torch.Tensor, temperature: Temperature, beta: float = 2.0, gamma: float = 2.0
) -> torch.Tensor:
    """DIST (Huang et al., 2022, arXiv 2205.10536): T² (beta · inter-class + gamma · intra-class relation).

    T is the student's. Each relation is one minus the mean Pearson correlation, over rows and over columns.
    """
    student = F.softmax(outputs / temperature, dim=1)
    inter = 1 - pearson(student, probabilities).mean()
    intra = 1 - pearson(student.t(), probabilities.t()).mean()
    return temperature**2 * (beta * inter + gamma * intra)


def pearson(a: torch.Tensor, b: torch.Tensor, eps: float = 1e-8) -> torch.Tensor:
    """Pearson correlation of each row of a with the same row of b."""
    return F.cosine_similarity(a - a.mean(dim=1, keepdim=True), b - b.mean(dim=1, keepdim=True), dim=1, eps=eps)
