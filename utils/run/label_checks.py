"""What the labels say, compared with the flags and the training folder, before time is spent."""

import argparse
from itertools import islice
from pathlib import Path
from typing import Any

from utils.labels.hard import HardViews
from utils.labels.image_digests import IMAGES
from utils.labels.opening import open_labels
from utils.labels.packed import PackedStore
from utils.labels.packed_manifest import MANIFEST
from utils.labels.store import SAMPLED, SHUFFLED, STORED, LabelStore
from utils.labels.training_views import REUSED, TrainingViews
from utils.labels.types import TopK
from utils.run.arguments import settle_views
from utils.run.training_arguments import phases_of
from utils.system.errors import InputError
from utils.system.log import log
from utils.training.losses import NEEDS_LOGITS
from utils.views.folders import ImageSet, Samples

IMPOSSIBLE = 20  # below exp(-20) we rule out coincidence
# A box misses both far edges of the view with a probability of 0.46 (uniform centres, cutmix with alpha 1).
SAMPLED_BOXES, FEW_BOXES, MANY_BOXES = 32, 8, 18  # 0.46^8 = 0.2 %, 0.46^18 = 1e-6


def check_labels(args: argparse.Namespace, train: ImageSet) -> TrainingViews[LabelStore]:
    """Open --fkd-path and compare it with the arguments and the training folder.

    What the result depends on is noted in `args`: `mix_type`, `keep_topk`, `topk_mass`, `answers`,
    `label_order` (None for the stored one), and `labels`, the digest of all that the run needs of them, with
    `earlier`, the digest that checkpoints of earlier releases state. A dry run takes no digest.

    Returns:
        the views of the run; every batch file that the run needs exists.
    """
    if not args.fkd_path:
        raise InputError("--fkd-path is missing; give the folder of FKD labels, or make them with relabel_FKD.py")
    # labels that are not packed have no digests of their files, but they may know their images
    knows = Path(args.fkd_path, IMAGES).exists() and not Path(args.fkd_path, MANIFEST).exists()
    store = open_labels(args.fkd_path, args.fkd_seed, args.verify_labels and not knows)
    settle_views(args, stated_views(store) | size_from_boxes(args, store))
    accepted = store.settings.get("labels_accepted")
    if isinstance(accepted, str):  # the mark follows the labels
        log.warning("WARNING, accepted: %s", accepted)
        args.labels_accepted = accepted
    settle_classes(args, train, store)
    check_images_of_labels(args, train, store)
    check_label_flags(args, store)
    settle_topk_mass(args, store)
    if store.keep_topk < store.num_classes:
        args.keep_topk = min(args.keep_topk or store.num_classes, store.keep_topk)
    args.mix_type, args.answers = store.mix_type, store.answers
    views = in_order(args, store, len(train.samples))
    all_of_them = args.reuse_labels or args.label_order
    needed = range(store.epochs) if all_of_them else soft_epochs(args)
    store.check_complete(needed)
    dry = args.dry_run and args.resume is None
    args.labels = None if dry else store.digest(needed)
    args.earlier = {} if dry else {"labels": store.legacy_digest()}
    return views


def stated_views(store: LabelStore) -> dict[str, Any]:
    """Return what labels made here say of their views: `input_size`, `mean`, `std`, as far as they do."""
    settings = store.settings
    return {name: settings[name] for name in ("input_size", "mean", "std") if settings.get(name) is not None}


def stated_classes(store: LabelStore) -> dict[str, int] | None:
    """Return the class of each class folder that the labels were made for; None if they do not say it."""
    names = store.class_list
    return None if names is None else {name: number for number, name in enumerate(names)}


def cutmix_reach(store: LabelStore) -> tuple[int, int]:
    """Return (the farthest pixel that the first cutmix boxes of labels reach, how many boxes these are)."""
    if store.mix_type != "cutmix":
        return 0, 0
    places = ((epoch, batch) for epoch in range(store.epochs) for batch in range(store.batches(epoch)))
    boxes = [store.read(*place).mix.box for place in islice(places, SAMPLED_BOXES)]
    return max(max(box[2:]) for box in boxes if box is not None), len(boxes)


def likely_size(store: LabelStore) -> int | None:
    """Return the side of the views that the cutmix boxes of labels suggest; None if there are too few boxes."""
    reach, boxes = cutmix_reach(store)
    return reach if boxes >= FEW_BOXES else None


def size_from_boxes(args: argparse.Namespace, store: LabelStore) -> dict[str, int]:
    """Infer --input-size from cutmix boxes, which are in pixels of the view that the teacher saw.

    The box of about every second batch is cut off by the view's right or lower edge, so that the farthest pixel of
    many boxes is the size. Few boxes only suggest it.

    Returns:
        {"input_size": S}, or nothing if the labels state S, hold no boxes, or too few to contradict the flag.

    Raises:
        InputError: a box does not fit into --input-size.
    """
    reach, boxes = cutmix_reach(store)
    if args.input_size is not None and reach > args.input_size:
        raise InputError(
            f"--input-size {args.input_size} is smaller than the views of the labels in {args.fkd_path}, whose cutmix "
            f"boxes reach pixel {reach}; give the --input-size of relabelling"
        )
    if "input_size" in stated_views(store) or not boxes:
        return {}
    if args.input_size is None and boxes >= FEW_BOXES:
        log.info("labels  views of %d px, to which their cutmix boxes reach", reach)
        return {"input_size": reach}
    return {"input_size": reach} if boxes >= MANY_BOXES else {}


def soft_epochs(args: argparse.Namespace) -> range:
    """The epochs on stored labels that are to be trained, hard ones not counted."""
    phases = phases_of(args)
    return range(phases.soft_before(args.start_epoch), phases.soft)


def hard_views(args: argparse.Namespace, samples: Samples, num_classes: int) -> HardViews | None:
    """What the hard epochs show and answer; None where there are none.

    Args:
        samples: list of (path, class).
        num_classes: C, the student's.
    """
    if not args.hard_epochs:
        return None
    if len(samples) < 2:
        raise InputError(f"--hard-epochs mixes images in pairs, and --train-dir {args.train_dir} holds only one")
    targets = [target for _, target in samples]
    return HardViews(
        targets,
        num_classes,
        input_size=args.input_size,
        batch_size=args.hard_batch_size,
        smoothing=args.label_smoothing,
        seed=args.fkd_seed,
    )


def settle_classes(args: argparse.Namespace, train: ImageSet, store: LabelStore) -> None:
    """Settle C: what the labels state, else --num-classes, else as many as there are folders."""
    where = f"the labels in {args.fkd_path}"
    if store.num_classes_stated:
        if args.num_classes not in (None, store.num_classes):
            raise InputError(
                f"--num-classes {args.num_classes} disagrees with {where}, which have {store.num_classes}; leave it out"
            )
        return
    chosen = args.num_classes or len(train.classes)
    if chosen < store.num_classes:
        given = f"--num-classes is {chosen}" if args.num_classes else f"--train-dir has {chosen} class folders"
        raise InputError(
            f"{where} name class {store.num_classes - 1} and {given}; give --num-classes, the number of the teacher's "
            "classes (1000 for ImageNet-1K)"
        )
    store.state_classes(chosen)


def in_order(args: argparse.Namespace, store: LabelStore, num_images: int) -> TrainingViews[LabelStore]:
    """Return the views of a store in the order of training: --label-order, or what is usual for such labels."""
    order = args.label_order or store.label_order
    where = f"the labels in {args.fkd_path}"
    if order == STORED and not store.has_epochs:
        raise InputError(f"--label-order {STORED} needs epochs, and {where} are single batches; leave it out")
    args.label_order = None if order == STORED else order
    epochs = phases_of(args).soft
    if order != STORED or args.reuse_labels or epochs > store.epochs:
        store.refuse_gap()
        warn_of_unfinished_labels(store)
    asked = f"--epochs {args.epochs}" + (
        f" without the {args.hard_epochs} of --hard-epochs" if args.hard_epochs else ""
    )
    if order == STORED:
        if epochs > store.epochs and not args.reuse_labels:
            raise InputError(
                f"{asked} is more than the {store.epochs} epochs of {where}; lower it, relabel, or add "
                "--reuse-labels to visit stored epochs again"
            )
        return TrainingViews(store, REUSED if args.reuse_labels else STORED, args.fkd_seed)
    wanted = store.batches_per_epoch if store.has_epochs else num_images // store.batch_size
    stored = store.stored_batches()
    if order == SAMPLED and wanted > stored:
        raise InputError(
            f"--label-order {SAMPLED} draws {wanted} batches for an epoch of {num_images} images, but {where} are only "
            f"{stored}; give --label-order {SHUFFLED}"
        )
    if epochs * wanted > stored and not args.reuse_labels:
        raise InputError(
            f"{asked} of {wanted} batches are more than the {stored} of {where}; lower it, or add "
            "--reuse-labels to visit stored batches again"
        )
    return TrainingViews(store, order, args.fkd_seed, wanted)


def warn_of_unfinished_labels(store: LabelStore) -> None:
    """Warn where fewer epochs are stored than the labels state, and the run takes those for all."""
    if isinstance(store, PackedStore) and store.epochs < store.manifest["epochs"]:
        log.warning(
            "the labels in %s are unfinished: %d of %d epochs are stored, and no others are trained on; run "
            "relabel_FKD.py again to finish them",
            *(store.path, store.epochs, store.manifest["epochs"]),
        )


def check_images_of_labels(args: argparse.Namespace, train: ImageSet, store: LabelStore) -> None:
    """Labels and training folder must be about as many images, of no more classes than the labels know."""
    where = f"the labels in {args.fkd_path}"
    images = len(train.samples)
    knows = store.image_digests is not None and store.has_epochs  # then `identify_images` says which are missing
    if (
        images != store.num_images
        and not knows
        and (store.has_epochs or images < store.num_images or unlikely_gap(images, store))
    ):
        about = "cover" if store.has_epochs else "name the first"
        raise InputError(
            f"--train-dir {args.train_dir} holds {images} images, but {where} {about} {store.num_images}; they belong "
            "to another image set"
        )
    if images < store.batch_size and not store.has_epochs:
        raise InputError(
            f"--train-dir {args.train_dir} holds {images} images, fewer than a batch of {where}; they belong to "
            "another image set"
        )
    if len(train.classes) > store.num_classes:
        raise InputError(
            f"--train-dir {args.train_dir} has {len(train.classes)} classes, but {where} have {store.num_classes}; "
            "they belong to another image set"
        )


def unlikely_gap(images: int, store: LabelStore) -> bool:
    """Whether it cannot be chance that a pool of batches names none of the folder's last images.

    n rows drawn from N images miss a given m of them with a probability of about exp(-m n / N).
    """
    rows = store.stored_batches() * store.batch_size
    return (images - store.num_images) * rows / images > IMPOSSIBLE


def check_label_flags(args: argparse.Namespace, store: LabelStore) -> None:
    """Flags must agree with what the labels state."""
    where = f"the labels in {args.fkd_path}"
    if args.batch_size != store.batch_size:
        raise InputError(
            f"--batch-size {args.batch_size} is not that of {where}, which is {store.batch_size}; use it, and "
            "--gradient-accumulation-steps to need less memory"
        )
    stated = args.mix_type and args.mix_type.lower()
    if stated and stated != store.mix_type:
        raise InputError(f"--mix-type {args.mix_type} disagrees with {where}, which are {store.mix_type}; leave it out")
    if args.keep_topk and args.keep_topk > store.num_classes:
        raise InputError(f"--keep-topk {args.keep_topk} is more than the {store.num_classes} classes of {where}")
    if args.loss_type in NEEDS_LOGITS and store.answers == "probabilities":
        raise InputError(
            f"--loss-type {args.loss_type} compares logits, but {where} are probabilities; use --loss-type kl"
        )


def settle_topk_mass(args: argparse.Namespace, store: LabelStore) -> None:
    """Settle --topk-mass by what the labels store: where they lack the mass of the other classes, it cannot be kept."""
    answers = store.read(0, 0).logits
    lacking = isinstance(answers, TopK) and answers.rest is None
    if args.topk_mass == "kept" and lacking:
        raise InputError(
            f"--topk-mass kept needs the mass of the classes that the labels in {args.fkd_path} do not store; use "
            "renormalised, or leave it out"
        )
    if args.topk_mass == "auto":
        args.topk_mass = "renormalised" if lacking else "kept"
