"""Labels of a simulated teacher: right ones of every kind, and wrong ones of every kind.

The logits of a view are `skill` for the class of its image, plus noise that all views of the image share, plus noise of
the view, plus a constant bias per class, plus a share for similar classes.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from utils.labels.types import BatchLabels, Mix, TopK
from utils.labels.views import ReferenceOrder

SIDE, SEED = 32, 42


@dataclass(frozen=True)
class Teacher:
    """How good a simulated teacher is.

    Attributes:
        skill: logit of the right class over unit noise: 0 is chance, 8 makes no mistake.
        bias: standard deviation of a constant logit of each class.
        similar: logit of the class after the right one: confusion in one direction.
        twins: logit of the paired class: confusion in both directions.
    """

    skill: float = 5.0
    bias: float = 0.0
    similar: float = 0.0
    twins: float = 0.0


@dataclass(frozen=True)
class Labels:
    """Batches of labels that preflight samples, with the classes of the images.

    Attributes:
        batches: list of `BatchLabels`.
        targets: int64 [N], class of every image of the folder.
        num_classes: C of the labels.
        implied: the order of images follows from a seed and is not stored.
    """

    batches: list[BatchLabels]
    targets: torch.Tensor
    num_classes: int
    implied: bool = False


def right_labels(rng, classes, per_class, teacher, mix="none", epochs=None, batch_size=50, num_classes=None, keep=None):
    """Return labels that fit their images.

    Args:
        rng: numpy generator.
        classes, per_class: size of the image folder.
        teacher: `Teacher`.
        mix: none, mixup or cutmix.
        epochs: number of sampled epochs; by default the number that preflight reads.
        num_classes: C, which may exceed the number of folders.
        keep: store only the k largest logits.
    """
    images, width = classes * per_class, num_classes or classes
    targets = np.repeat(np.arange(classes), per_class)
    epochs = epochs or max(3, -(-max(30 * classes, 3000) // images))
    epochs = min(epochs, 60)
    bias = teacher.bias * rng.standard_normal(width)
    twin = np.arange(width) ^ 1
    twin[twin >= width] = width - 1

    def answers(of):  # logits of views that show images `of`
        logits = own_noise[of] + 0.7 * rng.standard_normal((len(of), width))
        rows, right = np.arange(len(of)), targets[of]
        logits[rows, right] += teacher.skill
        logits[rows, (right + 1) % width] += teacher.similar
        logits[rows, twin[right]] += teacher.twins
        return logits

    own_noise = 0.7 * rng.standard_normal((images, width))
    order, batches = ReferenceOrder(images, SEED), []
    for epoch in range(epochs):
        for index in order(epoch).split(batch_size):
            rows = len(index)
            partner = rng.permutation(rows)
            lam, box, share = None, None, 1.0
            if mix == "mixup":
                lam = share = float(rng.beta(0.8, 0.8))
            if mix == "cutmix":
                lam = float(rng.beta(1, 1))
                half = int(SIDE * np.sqrt(1 - lam)) // 2
                y, x = rng.integers(SIDE, size=2)
                box = max(y - half, 0), max(x - half, 0), min(y + half, SIDE), min(x + half, SIDE)
                box = tuple(map(int, box))
                share = 1 - (box[2] - box[0]) * (box[3] - box[1]) / SIDE**2
            logits = share * answers(index.numpy()) + (1 - share) * answers(index.numpy()[partner]) + bias
            logits = torch.from_numpy(logits).float()
            if keep:
                values, kept = logits.topk(min(keep, width), dim=1)
                logits = TopK(values, kept, None)
            mix_index = None if mix == "none" else torch.from_numpy(partner)
            crop = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(rows, 4)
            batches.append(
                BatchLabels(crop, torch.zeros(rows, dtype=torch.bool), Mix(mix_index, lam, box), logits, index)
            )
    return Labels(batches, torch.from_numpy(targets), width)


def coarse(labels, bits=4):
    """Return the same labels, quantised per class like packed labels of few bits."""
    values = torch.cat([one.logits for one in labels.batches])
    low, high = values.amin(dim=0), values.amax(dim=0)
    step = (high - low) / (2**bits - 1)

    def quantised(logits):
        return low + ((logits - low) / step).round() * step

    return replace(labels, batches=[replace(one, logits=quantised(one.logits)) for one in labels.batches])


def as_probabilities(labels, temperature=20.0):
    """Return the same labels in HALD's form: logs of softmax(z / T) in half precision."""

    def logs(logits):
        return (logits / temperature).softmax(dim=1).half().float().log()

    return replace(labels, batches=[replace(one, logits=logs(one.logits)) for one in labels.batches])


def permuted(labels, order):
    """Return the labels of a teacher with another class order: its class c is the folders' class order[c]."""
    column = torch.as_tensor(order)

    def moved(logits):
        if isinstance(logits, TopK):
            return logits._replace(classes=column[logits.classes])
        return torch.empty_like(logits).index_copy_(1, column, logits)

    return replace(labels, batches=[replace(one, logits=moved(one.logits)) for one in labels.batches])


def renumbered(labels, index_of):
    """Return the labels with image i renamed to image index_of(i) of the folder."""
    return replace(labels, batches=[replace(one, index=index_of(one.index)) for one in labels.batches])


def other_targets(labels, targets):
    """Return the labels for a folder whose images belong to other classes."""
    return replace(labels, targets=torch.as_tensor(targets))
