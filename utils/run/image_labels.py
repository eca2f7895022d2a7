"""Choose the labels of train_KD_parallel.py for losses without a teacher: the images' classes or soft labels."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from utils.config import TEMPERED_LOSSES, Findings, KDConfig
from utils.data.images import Samples, soft_labels_of
from utils.labels.hard import LabelledViews
from utils.labels.views import DrawnViews
from utils.system.errors import InputError


def asks_teacher(config: KDConfig, soft_labels: bool) -> bool:
    """Return whether a run loads a teacher.

    --teacher-checkpoint or --teacher-weights always loads one. Without these flags, a run loads a teacher if the loss
    is not ce and no soft labels are stored with the images.

    Args:
        config: flags of the run.
        soft_labels: whether soft labels are stored with the images.

    Raises:
        InputError: a flag says how to combine the answers of teachers, of which none is loaded.
    """
    named = bool(config.teacher_checkpoint or config.teacher_weights)
    asked = named or (config.loss_type != "ce" and not soft_labels)
    for name in ("ensemble", "ensemble_weights"):
        if getattr(config, name) and not asked:
            raise InputError(
                f"--{name.replace('_', '-')} has no effect, because --train-dir {config.train_dir} holds soft labels, "
                "so that no teacher is asked; leave it out, or give --teacher-checkpoint"
            )
    return asked


def label_views(
    config: KDConfig,
    found: Findings,
    source: DrawnViews,
    samples: Samples,
    num_classes: int,
    kind: str | None = None,
    numbers: Sequence[int | None] | None = None,
) -> tuple[DrawnViews, Findings]:
    """Add the labels that the loss needs to the views of a run whose loss uses no teacher.

    * ce without soft labels: unmixed views are returned unchanged, because their batches hold the class of each image.
      The label of a mixed view is r for the class of its own image and 1 - r for the class of its partner, where r is
      the exact share of the area (cutmix) or the weight (mixup). The loss is then r times the cross-entropy with the
      first class plus 1 - r times that with the second, as in CutMix (Yun et al., 2019), IDC and Minimax Diffusion.
    * ce with soft labels: probabilities, mixed in the same way. Logits are first converted to probabilities at
      temperature 1, as in DATM and PAD.
    * kl, dist and softce: probabilities, to which no temperature applies; or logits, which are divided by the value of
      -T like a teacher's logits, and cannot be mixed.
    * mse_gt, mae_gt, gift and cosine: logits, which cannot be mixed.

    Args:
        config: flags of the run.
        found: settings that were derived before.
        source: views of the images, without labels.
        samples: (image, class) of each of the N images.
        num_classes: C, number of the student's outputs.
        kind: kind of the soft labels that are stored with the images: `probabilities` or `logits`; None if
            there are none.
        numbers: class number of each column of the stored soft labels, see `ImageSet`; None if column k is class k.

    Returns:
        (the views; `found` with `image_labels`, and with `answers` if there are soft labels).

    Raises:
        InputError: the soft labels have another number of classes, --classes leaves out some of their classes, or they
            do not fit --loss-type or --mix-type.
    """
    loss, policy, size = config.loss_type, source.policy, config.batch_size
    targets = torch.tensor([target for _, target in samples])
    draw: dict[str, Any] = {
        "augmentation": source.augmentation,
        "num_strips": source.num_strips,
        "change": source.change,
    }
    soft_labels = soft_labels_of(samples)
    if soft_labels is None or kind is None:
        if loss != "ce" or policy.mix_type == "none":
            return source, found
        views = LabelledViews(policy, targets, num_classes, size, **draw)
        return views, replace(found, image_labels="mixed classes")
    where = f"the soft labels of --train-dir {config.train_dir}"
    if numbers is not None and None in numbers:
        raise InputError(
            f"--classes {config.subset} leaves out classes, but {where} are for all of its classes; leave out --classes"
        )
    if tuple(soft_labels.shape) != (len(targets), num_classes):
        raise InputError(
            f"{where} have the shape {' x '.join(map(str, soft_labels.shape))}, but {len(targets)} images and "
            f"{num_classes} classes need {len(targets)} x {num_classes}; give the labels of these images"
        )
    if kind == "probabilities" and loss not in ("ce", *TEMPERED_LOSSES):
        raise InputError(f"--loss-type {loss} compares logits, but {where} are probabilities; use ce or kl")
    if kind == "probabilities" and config.logit_smoothing:
        raise InputError(
            f"--logit-smoothing {config.logit_smoothing} changes logits, but {where} are probabilities; leave it out"
        )
    if kind == "logits" and loss != "ce" and policy.mix_type != "none":
        raise InputError(
            f"--mix-type {policy.mix_type} mixes probabilities, but {where} are logits; use --loss-type ce, or leave "
            "out --mix-type"
        )
    labels = soft_labels.float()
    if numbers is not None:  # --class-order or --classes changed the class numbers: reorder the columns
        labels = labels[:, [numbers.index(number) for number in range(num_classes)]]
    if loss == "ce" and kind == "logits":
        labels = labels.softmax(dim=1)
    logs = kind == "probabilities" and loss in TEMPERED_LOSSES
    views = LabelledViews(policy, labels, num_classes, size, logs=logs, **draw)
    return views, replace(found, image_labels=kind, answers=kind)
