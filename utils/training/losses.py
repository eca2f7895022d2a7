"""Losses between a student's logits and a teacher's. All but dist are means over samples.

Notation: outputs (o) and soft_labels (z) are the student's and the teacher's logits, [B, C] each. targets (y) are the
classes of the image folders, int64 [B]. T is the temperature, k the number of classes that --keep-topk keeps.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from utils.config import LOSS_TYPES, TEMPERED_LOSSES
from utils.labels.types import Answers, TopK
from utils.system.errors import InputError

NEEDS_LOGITS = ("mse_gt", "mae_gt")

Temperature = float | torch.Tensor  # a number, or a 0-dim tensor that is filled in place when it changes


def build_loss(
    loss_type: str,
    temperature: Temperature = 1.0,
    ce_weight: float = 0.0,
    keep_topk: int | None = None,
    answers: str = "logits",
    student_temperature: Temperature | None = None,
    renormalise: bool = False,
    last: "LastMicroBatch | None" = None,
) -> Callable[[torch.Tensor, Answers, torch.Tensor], torch.Tensor]:
    """Return `loss(outputs, soft_labels, targets) -> scalar`.

    Args:
        loss_type: one of LOSS_TYPES.
        temperature: T of kl and dist: the teacher's, and the student's unless student_temperature is given.
        ce_weight: weight of the cross-entropy with targets in mse_gt and mae_gt.
        keep_topk: number of teacher classes to keep, None for all.
        answers: kind of soft_labels: `logits`, or `probabilities` for natural logs of probabilities, which already
            include a temperature and are not divided by T.
        student_temperature: divisor of the student's logits in kl and dist; None: temperature.
        renormalise: whether kl and dist renormalise the probabilities of the kept classes to a sum of 1.
        last: buffer into which kl and dist copy student logits and teacher probabilities of each micro-batch.

    Raises:
        InputError: loss_type is unknown.
    """
    if loss_type == "ce":
        return lambda outputs, soft_labels, targets: F.cross_entropy(outputs, targets)
    if loss_type in TEMPERED_LOSSES:
        student = temperature if student_temperature is None else student_temperature
        teacher = 1.0 if answers == "probabilities" else temperature
        return SoftLoss({"kl": kl, "dist": dist}[loss_type], teacher, student, keep_topk, renormalise, last)
    if loss_type in ("mse_gt", "mae_gt"):
        distance = {"mse_gt": F.mse_loss, "mae_gt": F.l1_loss}[loss_type]
        return partial(_regression, distance, ce_weight, keep_topk)
    raise InputError(f"--loss-type {loss_type} is unknown; choose one of {', '.join(LOSS_TYPES)}")


@dataclass(frozen=True)
class SoftLoss:
    """kl or dist between a student's logits and a teacher's; for the fields see `build_loss`."""

    divergence: Callable
    temperature: Temperature
    student_temperature: Temperature
    keep_topk: int | None = None
    renormalise: bool = False
    last: "LastMicroBatch | None" = None

    def __call__(self, outputs: torch.Tensor, soft_labels: Answers, targets: torch.Tensor) -> torch.Tensor:
        probabilities = self.probabilities(soft_labels, outputs.shape[1])
        if self.last is not None:
            self.last.record(outputs, probabilities)
        return self.divergence(outputs, probabilities, self.student_temperature)

    def probabilities(self, soft_labels: Answers, num_classes: int) -> torch.Tensor:
        """Return the teacher's probabilities at its temperature: float32 [B, C], each row sums to 1."""
        keep_topk = self.keep_topk
        if isinstance(soft_labels, TopK) and soft_labels.values.shape[1] <= (keep_topk or num_classes):
            keep_topk = None  # the labels hold no other classes
        logits = as_logits(soft_labels, num_classes, self.temperature, self.renormalise)
        if self.renormalise and keep_topk is not None and keep_topk < num_classes:
            values, classes = logits.topk(keep_topk, dim=1)
            logits = torch.full_like(logits, float("-inf")).scatter(1, classes, values)
            keep_topk = None
        return keep_top_probabilities(F.softmax(logits / self.temperature, dim=1), keep_topk)


class LastMicroBatch:
    """Student logits and teacher probabilities of the last micro-batch, in static tensors that a CUDA graph can fill.

    Args:
        rows: number of rows of the largest micro-batch.
        num_classes: C.
        device: torch.device.

    Attributes:
        outputs: the student's logits, float32 [rows, C].
        probabilities: the teacher's probabilities, float32 [rows, C].
        rows: number of valid rows, int64 [1].
    """

    def __init__(self, rows: int, num_classes: int, device: torch.device) -> None:
        self.outputs = torch.zeros(rows, num_classes, device=device)
        self.probabilities = torch.zeros(rows, num_classes, device=device)
        self.rows = torch.zeros(1, dtype=torch.int64, device=device)

    @torch.no_grad()
    def record(self, outputs: torch.Tensor, probabilities: torch.Tensor) -> None:
        """Copy the student's logits and the teacher's probabilities of a micro-batch, [b, C] each."""
        self.outputs[: len(outputs)] = outputs
        self.probabilities[: len(outputs)] = probabilities
        self.rows.fill_(len(outputs))

    def clear(self) -> None:
        """Forget the recorded rows: this rank has none of the current micro-batch."""
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
    """Return soft labels as dense logits float32 [B, C]; for `renormalise` see `TopK.dense`."""
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
    """Return the student's and the teacher's logits for the teacher's k highest classes: float32 [B, k] each."""
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
    """Keep the k largest probabilities of each row of [B, C]; the other classes share the remaining mass evenly."""
    classes = probabilities.shape[1]
    if k is None or k >= classes:
        return probabilities
    values, kept = probabilities.topk(k, dim=1)
    rest = (1 - values.sum(dim=1, keepdim=True)) / (classes - k)
    return rest.expand_as(probabilities).scatter(1, kept, values)


def kl(outputs: torch.Tensor, probabilities: torch.Tensor, temperature: Temperature) -> torch.Tensor:
    """Return the batch mean of KL(probabilities || softmax(o/T)), without the factor T² (as in SRe2L's validation)."""
    return F.kl_div(F.log_softmax(outputs / temperature, dim=1), probabilities, reduction="batchmean")


def dist(
    outputs: torch.Tensor, probabilities: torch.Tensor, temperature: Temperature, beta: float = 2.0, gamma: float = 2.0
) -> torch.Tensor:
    """Return T² (beta · inter-class + gamma · intra-class relation): DIST (Huang et al., 2022, arXiv 2205.10536).

    T is the student's temperature. Each relation is one minus the mean Pearson correlation, of rows
    (inter-class) or of columns (intra-class).
    """
    student = F.softmax(outputs / temperature, dim=1)
    inter = 1 - pearson(student, probabilities).mean()
    intra = 1 - pearson(student.t(), probabilities.t()).mean()
    return temperature**2 * (beta * inter + gamma * intra)


def pearson(a: torch.Tensor, b: torch.Tensor, eps: float = 1e-8) -> torch.Tensor:
    """Return the Pearson correlation of each row of a [n, m] with the same row of b [n, m]: [n]."""
    return F.cosine_similarity(a - a.mean(dim=1, keepdim=True), b - b.mean(dim=1, keepdim=True), dim=1, eps=eps)
