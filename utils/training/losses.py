"""Losses between the logits of a student and the logits of a teacher. All losses except `dist` are means over samples.

Notation: outputs are the student's logits and soft_labels the teacher's logits, [B, C] each. targets are the classes of
the image folders, int64 [B]. T is the temperature. If --keep-topk is k, a loss keeps, for each sample, the k classes
to which the teacher gives the largest logits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from utils.config import LOSS_TYPES, TEMPERED_LOSSES
from utils.labels.types import Answers, TopK, Weighted, unweighted
from utils.system.errors import InputError
from utils.system.machine import exact_dtype

NEEDS_LOGITS = ("mse_gt", "mae_gt", "gift", "cosine")
GIFT_SMOOTHING = 0.1  # share of a hard label that `gift` spreads over the other classes

# a number if the temperature is constant, or a 0-dim tensor that is overwritten in place whenever it changes
Temperature = float | torch.Tensor


def build_loss(
    loss_type: str,
    temperature: Temperature = 1.0,
    ce_weight: float = 0.0,
    keep_topk: int | None = None,
    answers: str = "logits",
    student_temperature: Temperature | None = None,
    renormalise: bool = False,
    last: "LastMicroBatch | None" = None,
    image_labels: str = "classes",
    scale_t2: bool = False,
) -> Callable[[torch.Tensor, Answers, torch.Tensor], torch.Tensor]:
    """Return the loss function `loss(outputs, soft_labels, targets) -> scalar`.

    Args:
        loss_type: one of LOSS_TYPES.
        temperature: divisor T of the teacher's logits in kl, dist and softce.
        ce_weight: weight of the cross-entropy with targets in mse_gt and mae_gt, and of the smoothed targets in gift.
        keep_topk: k. For each sample, the loss keeps the k classes with the teacher's largest logits. None: all C.
        answers: kind of the soft labels: `logits` or `probabilities`. Probabilities are passed as natural logs. The
            logs are not divided by T, because a temperature was applied when the probabilities were made.
        student_temperature: divisor of the student's logits in kl, dist and softce; None: the same as `temperature`.
        renormalise: whether kl, dist and softce renormalise the probabilities of the kept classes to a sum of 1.
        last: buffer into which kl, dist and softce copy the student's logits and the teacher's probabilities of each
            micro-batch; None: they are not copied.
        image_labels: see `Findings`. If `classes`, ce compares outputs with the targets; otherwise with the soft
            labels, which must then be probabilities.
        scale_t2: whether kl and softce are multiplied by T², where T is the student's temperature.

    Raises:
        InputError: loss_type is unknown.
    """
    if loss_type == "ce" and image_labels != "classes":
        return soft_cross_entropy
    if loss_type == "ce":
        return lambda outputs, soft_labels, targets: F.cross_entropy(outputs, targets)
    if loss_type in TEMPERED_LOSSES:
        student = temperature if student_temperature is None else student_temperature
        teacher = 1.0 if answers == "probabilities" else temperature
        divergence = {"kl": kl, "dist": dist, "softce": softce}[loss_type]
        return SoftLoss(divergence, teacher, student, keep_topk, renormalise, last, scale_t2)
    if loss_type in ("mse_gt", "mae_gt"):
        distance = {"mse_gt": F.mse_loss, "mae_gt": F.l1_loss}[loss_type]
        return partial(_regression, distance, ce_weight, keep_topk)
    if loss_type in ("gift", "cosine"):
        return partial(cosine_distance, ce_weight if loss_type == "gift" else 0.0, keep_topk)
    raise InputError(f"--loss-type {loss_type} is unknown; choose one of {', '.join(LOSS_TYPES)}")


def soft_cross_entropy(outputs: torch.Tensor, probabilities: Answers, _targets: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy with target probabilities.

    Epochs with hard labels use this loss. With --loss-type ce, it also serves mixed classes, and soft
    labels that are stored with the images.

    Args:
        outputs: the student's logits [B, C].
        probabilities: float [B, C], see `LabelledViews`.
        _targets: not used; all loss functions take this argument.
    """
    assert isinstance(probabilities, torch.Tensor), "top-k labels are logits"
    return F.cross_entropy(outputs, probabilities)


@dataclass(frozen=True)
class SoftLoss:
    """Loss function for soft labels: `divergence` is `kl`, `dist` or `softce`.

    The other fields are described as arguments of `build_loss`.
    """

    divergence: Callable
    temperature: Temperature
    student_temperature: Temperature
    keep_topk: int | None = None
    renormalise: bool = False
    last: "LastMicroBatch | None" = None
    scale_t2: bool = False

    def __call__(self, outputs: torch.Tensor, soft_labels: Answers, targets: torch.Tensor) -> torch.Tensor:
        probabilities = self.probabilities(unweighted(soft_labels), outputs.shape[1])
        if self.last is not None:
            self.last.record(outputs, probabilities)
        divergence = self.divergence
        if isinstance(soft_labels, Weighted):  # the loss is kl: labels with weights are refused with other losses
            divergence = partial(weighted_kl, soft_labels.weights)
        loss = divergence(outputs, probabilities, self.student_temperature)
        return loss * self.student_temperature**2 if self.scale_t2 else loss

    def probabilities(self, soft_labels: Answers, num_classes: int) -> torch.Tensor:
        """Return the soft labels as probabilities at the teacher's temperature: float32 [B, C]. Each row sums to 1."""
        keep_topk = self.keep_topk
        if isinstance(soft_labels, TopK) and soft_labels.values.shape[1] <= (keep_topk or num_classes):
            keep_topk = None  # the labels store at most keep_topk classes, so there are none to drop
        logits = as_logits(soft_labels, num_classes, self.temperature, self.renormalise)
        if self.renormalise and keep_topk is not None and keep_topk < num_classes:
            values, classes = logits.topk(keep_topk, dim=1)
            logits = torch.full_like(logits, float("-inf")).scatter(1, classes, values)
            keep_topk = None
        return keep_top_probabilities(F.softmax(logits / self.temperature, dim=1), keep_topk)


class LastMicroBatch:
    """Student logits and teacher probabilities of the last micro-batch, in static tensors that a CUDA graph can fill.

    Args:
        rows: number of rows to allocate, enough for the largest micro-batch.
        num_classes: C.
        device: torch.device.

    Attributes:
        outputs: the student's logits, float32 [allocated rows, C].
        probabilities: the teacher's probabilities, float32 [allocated rows, C].
        rows: number n of valid rows, int64 [1]. The first n rows hold the last micro-batch; the others are not valid.
    """

    def __init__(self, rows: int, num_classes: int, device: torch.device) -> None:
        self.outputs = torch.zeros(rows, num_classes, device=device)
        self.probabilities = torch.zeros(rows, num_classes, device=device)
        self.rows = torch.zeros(1, dtype=torch.int64, device=device)

    @torch.no_grad()
    def record(self, outputs: torch.Tensor, probabilities: torch.Tensor) -> None:
        """Copy a micro-batch into the buffers: the student's logits [b, C] and the teacher's probabilities [b, C]."""
        self.outputs[: len(outputs)] = outputs
        self.probabilities[: len(outputs)] = probabilities
        self.rows.fill_(len(outputs))

    def clear(self) -> None:
        """Set the number of valid rows to 0, because this rank has no rows of the current micro-batch."""
        self.rows.zero_()

    @torch.no_grad()
    def divergences(self, temperatures: list[float]) -> torch.Tensor:
        """Return the KL divergence between teacher and student for each temperature t of the student.

        Returns:
            for each t, the sum of KL(probabilities || softmax(outputs/t)) over the rows of the last micro-batch:
            float64 [len(temperatures)].
        """
        valid = torch.arange(len(self.outputs), device=self.rows.device) < self.rows
        sums = []
        for temperature in temperatures:
            student = F.log_softmax(self.outputs / temperature, dim=1)
            each_row = F.kl_div(student, self.probabilities, reduction="none").sum(dim=1)
            sums.append(torch.where(valid, each_row, 0.0).to(exact_dtype(self.rows.device)).sum())
        return torch.stack(sums)


def with_smoothed_logits(
    loss: Callable, share: float, outputs: torch.Tensor, soft_labels: Answers, targets: torch.Tensor
) -> torch.Tensor:
    """Return `loss(outputs, soft_labels, targets)` with smoothed soft labels, see `smooth_logits`."""
    return loss(outputs, smooth_logits(soft_labels, share, outputs.shape[1]), targets)


def smooth_logits(soft_labels: Answers, share: float, num_classes: int) -> Answers:
    """Replace each logit z by (1 - s) z + s / C, as LPLD and LPQLD do for ImageNet-21K. Here s is `share`.

    In kl, dist and softce, only the factor 1 - s has an effect: it divides the teacher's temperature.
    """
    if isinstance(soft_labels, Weighted):
        return Weighted(unweighted(smooth_logits(soft_labels.answers, share, num_classes)), soft_labels.weights)
    if not isinstance(soft_labels, TopK):
        return (1 - share) * soft_labels.float() + share / num_classes
    rest = soft_labels.rest
    if rest is not None:
        mean, variance = rest.unbind(dim=1)
        rest = torch.stack([(1 - share) * mean + share / num_classes, (1 - share) ** 2 * variance], dim=1)
    return TopK((1 - share) * soft_labels.values.float() + share / num_classes, soft_labels.classes, rest)


def as_logits(
    soft_labels: Answers, num_classes: int, temperature: float | torch.Tensor, renormalise: bool = False
) -> torch.Tensor:
    """Return soft labels as logits of all classes, float32 [B, C].

    `TopK` labels store only some classes. The logits of the other classes depend on `temperature` and `renormalise`,
    see `TopK.dense`.
    """
    soft_labels = unweighted(soft_labels)
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


def cosine_distance(
    hard_weight: float, keep_topk: int | None, outputs: torch.Tensor, soft_labels: Answers, targets: torch.Tensor
) -> torch.Tensor:
    """Return 1 minus the mean cosine similarity of the rows of the outputs to those of a reference.

    If hard_weight is 0, the reference is the teacher's logits t, as in the loss `cosine`. Otherwise it is t/‖t‖ +
    hard_weight · h/‖h‖, as in the code of GIFT (Shang et al., ICLR 2025). In h, the class of the image's folder has 1 -
    GIFT_SMOOTHING, and the other classes have equal shares of GIFT_SMOOTHING. A mixed view has the class of its own
    image, not that of its partner. With k kept classes, the norm of h is that over all classes.

    Args:
        hard_weight: weight of the smoothed hard labels.
        keep_topk: see `kept_logits`.
        outputs, soft_labels, targets: see `build_loss`.
    """
    student, reference = kept_logits(outputs, soft_labels, keep_topk)
    if hard_weight:
        others = GIFT_SMOOTHING / max(outputs.shape[1] - 1, 1)
        hard = torch.full_like(outputs, others).scatter(1, targets.unsqueeze(1), 1 - GIFT_SMOOTHING)
        hard, _ = kept_logits(F.normalize(hard, dim=1), soft_labels, keep_topk)
        reference = F.normalize(reference, dim=1) + hard_weight * hard
    return 1 - F.cosine_similarity(student, reference, dim=1).mean()


def kept_logits(outputs: torch.Tensor, soft_labels: Answers, k: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the student's and the teacher's logits for k classes per row: float32 [B, k] each.

    In each row, the k classes have the teacher's largest logits. If k is None, all stored classes are kept.
    """
    soft_labels = unweighted(soft_labels)
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
    """Return probabilities [B, C] in which each row keeps its k largest values.

    The remaining probability of a row is spread evenly over the other classes. If k is None, nothing changes.
    """
    classes = probabilities.shape[1]
    if k is None or k >= classes:
        return probabilities
    values, kept = probabilities.topk(k, dim=1)
    rest = (1 - values.sum(dim=1, keepdim=True)) / (classes - k)
    return rest.expand_as(probabilities).scatter(1, kept, values)


def kl(outputs: torch.Tensor, probabilities: torch.Tensor, temperature: Temperature) -> torch.Tensor:
    """Return the batch mean of KL(probabilities || softmax(outputs/T)), where T is the student's temperature.

    The loss is not multiplied by T². SRe2L's validation code omits this factor, too. --loss-scale-t2 adds it.
    """
    return F.kl_div(F.log_softmax(outputs / temperature, dim=1), probabilities, reduction="batchmean")


def weighted_kl(
    weights: torch.Tensor, outputs: torch.Tensor, probabilities: torch.Tensor, temperature: Temperature
) -> torch.Tensor:
    """Return the mean of w KL(probabilities || softmax(outputs/T)) over the rows (WMDD); see `kl`.

    Args:
        weights: float32 [B], the weight w of each row. Over the whole batch, their mean is 1.
        outputs, probabilities: [B, C].
        temperature: T, the student's temperature.
    """
    student = F.log_softmax(outputs / temperature, dim=1)
    return (weights * F.kl_div(student, probabilities, reduction="none").sum(dim=1)).mean()


def softce(outputs: torch.Tensor, probabilities: torch.Tensor, temperature: Temperature) -> torch.Tensor:
    """Return the batch mean of the cross-entropy of softmax(outputs/T) with probabilities, T as in `kl`.

    This is `kl` plus the entropy of the probabilities, so it has the gradients of `kl`. GIFT's `softce` has T = 1.
    """
    return F.cross_entropy(outputs / temperature, probabilities)


def dist(
    outputs: torch.Tensor, probabilities: torch.Tensor, temperature: Temperature, beta: float = 2.0, gamma: float = 2.0
) -> torch.Tensor:
    """Return the DIST loss T² (beta · inter + gamma · intra) of Huang et al. (2022, arXiv 2205.10536).

    T is the student's temperature. Both terms are 1 minus the mean Pearson correlation between the probabilities of
    student and teacher. The inter-class term correlates the rows of [B, C], the intra-class term the columns.
    """
    student = F.softmax(outputs / temperature, dim=1)
    inter = 1 - pearson(student, probabilities).mean()
    intra = 1 - pearson(student.t(), probabilities.t()).mean()
    return temperature**2 * (beta * inter + gamma * intra)


def pearson(a: torch.Tensor, b: torch.Tensor, eps: float = 1e-8) -> torch.Tensor:
    """Return the Pearson correlation of each row of `a` with the same row of `b`, [n, m] each: float [n]."""
    return F.cosine_similarity(a - a.mean(dim=1, keepdim=True), b - b.mean(dim=1, keepdim=True), dim=1, eps=eps)
