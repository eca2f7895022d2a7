"""Check before training that the labels fit the flags and the training folder."""

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from utils.config import Findings, FKDConfig, TrainConfig, resolve_views
from utils.data.images import ImageSet, Samples
from utils.labels.digests import IMAGES
from utils.labels.formats import open_labels
from utils.labels.hard import HardViews, Phases
from utils.labels.packed import PackedStore
from utils.labels.packed_manifest import MANIFEST
from utils.labels.store import SAMPLED, SHUFFLED, STORED, LabelStore
from utils.labels.training_views import REUSED, TrainingViews
from utils.labels.types import TopK
from utils.system.errors import InputError
from utils.system.log import log
from utils.training.losses import NEEDS_LOGITS

# `unlikely_gap` rules out chance if the probability of the gap is below exp(-IMPOSSIBLE)
IMPOSSIBLE = 20
# The size of the views is inferred from up to SAMPLED_BOXES cutmix boxes. FEW_BOXES boxes suggest a size, MANY_BOXES
# boxes prove it. A cutmix box (alpha 1) reaches the right or the lower edge of the view with probability 0.54. The
# probability that no box reaches either edge is 0.46^8 = 0.2 % for 8 boxes, and 1e-6 for 18 boxes.
SAMPLED_BOXES, FEW_BOXES, MANY_BOXES = 32, 8, 18
# kind of floating-point pixels (see `Values`) -> value of --normalised that declares this kind
NORMALISED_FLAGS = {"unit": "no", "normalised": "yes"}


def check_labels(config: FKDConfig, found: Findings, train: ImageSet) -> tuple[TrainingViews[LabelStore], Findings]:
    """Open the labels in --fkd-path, and check that they fit the flags and the training folder.

    A dry run without --resume does not compute the digest of the labels.

    Returns:
        (batches, settings). All label files of the batches exist. The settings are a copy of `found`, completed with
        values that the labels determine, for example the size and normalisation of views and `mix_type`.

    Raises:
        InputError: the labels are incomplete or damaged, or they do not fit.
    """
    # labels with IMAGES but without MANIFEST hold digests of the images, but none of the label files: for them,
    # --verify-labels compares only the images
    knows = Path(config.fkd_path, IMAGES).exists() and not Path(config.fkd_path, MANIFEST).exists()
    store = open_labels(config.fkd_path, config.fkd_seed, config.verify_labels and not knows)
    stated = stated_views(store) | size_from_boxes(config, store)
    found = resolve_views(config, found, stated, config.fkd_path, train.side)
    accepted = store.settings.get("labels_accepted")
    # if labels were made with --accept-labels, every run on them records the fault that was accepted
    if isinstance(accepted, str):
        log.warning("WARNING, accepted: %s", accepted)
        found = replace(found, labels_accepted=accepted)
    state_classes(config, train, store)
    check_images_of_labels(config, train, store)
    check_label_flags(config, store)
    topk_mass = resolve_topk_mass(config, store)
    keep_topk = config.keep_topk
    if store.keep_topk < store.num_classes:
        keep_topk = min(config.keep_topk or store.num_classes, store.keep_topk)
    order = resolve_order(config, store)
    views = in_order(config, store, order, len(train.samples))
    all_of_them = config.reuse_labels or order != STORED
    needed = range(store.epochs) if all_of_them else soft_epochs(config)
    store.check_complete(needed)
    digested = not config.dry_run or config.resume is not None
    found = replace(
        found,
        mix_type=store.mix_type,
        keep_topk=keep_topk,
        topk_mass=topk_mass,
        answers=store.answers,
        label_order=None if order == STORED else order,
        labels=store.digest(needed) if digested else None,
        earlier={**found.earlier, "labels": store.legacy_digest()} if digested else found.earlier,
    )
    return views, found


def stated_views(store: LabelStore) -> dict[str, Any]:
    """Return the view settings that the labels state: a dict with some or all of `input_size`, `mean` and `std`."""
    settings = store.settings
    return {name: settings[name] for name in ("input_size", "mean", "std") if settings.get(name) is not None}


def stated_normalised(store: LabelStore) -> str | None:
    """Return the value of --normalised, `yes` or `no`, that the labels imply; None if the labels imply none."""
    return NORMALISED_FLAGS.get(str(store.settings.get("pixel_values")))


def refuse_other_pixels(config: FKDConfig, found: Findings, store: LabelStore) -> None:
    """Raise InputError if this run and the teacher disagree on whether the floating-point images are normalised."""
    wanted = stated_normalised(store)
    if wanted is not None and NORMALISED_FLAGS.get(found.train_values, wanted) != wanted:
        raise InputError(
            f"--normalised {config.normalised} contradicts the labels in {config.fkd_path}, whose teacher saw the "
            f"images of --train-dir with --normalised {wanted}; give --normalised {wanted}"
        )


def stated_classes(store: LabelStore) -> dict[str, int] | None:
    """Return the class numbers that the labels state, {folder name: class number}, or None if they state none."""
    names = store.class_list
    return None if names is None else {name: number for number, name in enumerate(names)}


def cutmix_reach(store: LabelStore) -> tuple[int, int]:
    """Return how far the cutmix boxes of the first SAMPLED_BOXES batches reach, and the number of these boxes.

    Returns:
        (largest pixel coordinate of all lower and right edges; number of boxes); (0, 0) without cutmix.
    """
    if store.mix_type != "cutmix":
        return 0, 0
    places = ((epoch, batch) for epoch in range(store.epochs) for batch in range(store.batches(epoch)))
    boxes = [store.read(*place).mix.box for place in islice(places, SAMPLED_BOXES)]
    return max(max(box[2:]) for box in boxes if box is not None), len(boxes)


def likely_size(store: LabelStore) -> int | None:
    """Estimate the side of the views in pixels from cutmix boxes. Return None if there are fewer than FEW_BOXES."""
    reach, boxes = cutmix_reach(store)
    return reach if boxes >= FEW_BOXES else None


def size_from_boxes(config: FKDConfig, store: LabelStore) -> dict[str, int]:
    """Infer the side of the views from the cutmix boxes, whose coordinates are in pixels of the view.

    About every second box is cut off by the right or lower edge of the view. If there are many boxes, the farthest
    pixel that they reach is therefore the side of the view.

    Returns:
        {"input_size": S}, or {} if the labels state S themselves or hold too few boxes. FEW_BOXES boxes are enough if
        --input-size is not given, otherwise MANY_BOXES boxes are needed.

    Raises:
        InputError: a box reaches beyond --input-size.
    """
    reach, boxes = cutmix_reach(store)
    if config.input_size is not None and reach > config.input_size:
        raise InputError(
            f"--input-size {config.input_size} is smaller than the views of the labels in {config.fkd_path}, whose "
            f"cutmix boxes reach pixel {reach}; give the --input-size of relabelling"
        )
    if "input_size" in stated_views(store) or not boxes:
        return {}
    if config.input_size is None and boxes >= FEW_BOXES:
        log.info("labels  views of %d px, to which their cutmix boxes reach", reach)
        return {"input_size": reach}
    return {"input_size": reach} if boxes >= MANY_BOXES else {}


def soft_epochs(config: TrainConfig) -> range:
    """Return the indices of the soft-label epochs from --start-epoch to the end of the run.

    An index counts only soft-label epochs, from 0: after 10 hard-label epochs, epoch 12 of the run has index 2.
    """
    phases = Phases.of(config)
    return range(phases.soft_before(config.start_epoch), phases.soft)


def hard_views(config: FKDConfig, found: Findings, samples: Samples, num_classes: int) -> HardViews | None:
    """Return the views and the hard labels for epochs that train on hard labels; None without --hard-epochs.

    Args:
        config: flags of the run.
        found: settings that were derived from the labels, the folders and the machine.
        samples: (path, class) of each training image.
        num_classes: C, number of the student's outputs.

    Raises:
        InputError: there is only one training image, so it cannot be mixed with another.
    """
    if not config.hard_epochs:
        return None
    if len(samples) < 2:
        raise InputError(f"--hard-epochs mixes images in pairs, and --train-dir {config.train_dir} holds only one")
    return HardViews(
        [target for _, target in samples],
        num_classes,
        input_size=found.input_size,
        batch_size=config.hard_batch_size or 16,
        smoothing=config.label_smoothing or 0.0,
        seed=config.fkd_seed,
    )


def state_classes(config: FKDConfig, train: ImageSet, store: LabelStore) -> None:
    """Set the number of classes, C, of labels that do not state C themselves.

    C is --num-classes, or the number of class folders if this flag is not given.

    Raises:
        InputError: --num-classes contradicts the labels, or the labels contain a class number of C or more.
    """
    where = f"the labels in {config.fkd_path}"
    if store.num_classes_stated:
        if config.num_classes not in (None, store.num_classes):
            raise InputError(
                f"--num-classes {config.num_classes} disagrees with {where}, which have {store.num_classes}; leave it "
                "out"
            )
        return
    chosen = config.num_classes or len(train.classes)
    if chosen < store.num_classes:
        given = f"--num-classes is {chosen}" if config.num_classes else f"--train-dir has {chosen} class folders"
        raise InputError(
            f"{where} name class {store.num_classes - 1} and {given}; give --num-classes, the number of the teacher's "
            "classes (1000 for ImageNet-1K)"
        )
    store.state_classes(chosen)


def resolve_order(config: FKDConfig, store: LabelStore) -> str:
    """Return the order in which training visits the stored batches: --label-order, or the default order of the labels.

    Raises:
        InputError: the order is `stored`, but the labels are not grouped into epochs.
    """
    order = config.label_order or store.label_order
    if order == STORED and not store.has_epochs:
        raise InputError(
            f"--label-order {STORED} needs epochs, and the labels in {config.fkd_path} are single batches; leave it out"
        )
    return order


def in_order(config: FKDConfig, store: LabelStore, order: str, num_images: int) -> TrainingViews[LabelStore]:
    """Return the batches of a run, which visits the stored batches in the given order.

    Args:
        config: flags of the run.
        store: the labels.
        order: one of `config.LABEL_ORDERS`.
        num_images: number of training images. It determines the length of an epoch if the labels are not grouped into
            epochs.

    Raises:
        InputError: the run needs more labels than are stored, or an epoch is missing between stored epochs.
    """
    where = f"the labels in {config.fkd_path}"
    epochs = Phases.of(config).soft
    if order != STORED or config.reuse_labels or epochs > store.epochs:
        store.refuse_gap()
        warn_of_unfinished_labels(store)
    hard = f" without the {config.hard_epochs} of --hard-epochs" if config.hard_epochs else ""
    asked = f"--epochs {config.epochs}{hard}"
    if order == STORED:
        if epochs > store.epochs and not config.reuse_labels:
            raise InputError(
                f"{asked} is more than the {store.epochs} epochs of {where}; lower it, relabel, or add "
                "--reuse-labels to visit stored epochs again"
            )
        return TrainingViews(store, REUSED if config.reuse_labels else STORED, config.fkd_seed)
    wanted = store.batches_per_epoch if store.has_epochs else num_images // store.batch_size
    stored = store.stored_batches()
    if order == SAMPLED and wanted > stored:
        raise InputError(
            f"--label-order {SAMPLED} draws {wanted} batches for an epoch of {num_images} images, but {where} are only "
            f"{stored}; give --label-order {SHUFFLED}"
        )
    if epochs * wanted > stored and not config.reuse_labels:
        raise InputError(
            f"{asked} of {wanted} batches are more than the {stored} of {where}; lower it, or add "
            "--reuse-labels to visit stored batches again"
        )
    return TrainingViews(store, order, config.fkd_seed, wanted)


def warn_of_unfinished_labels(store: LabelStore) -> None:
    """Log a warning if packed labels are unfinished: fewer epochs are stored than their manifest states.

    The run then trains on the stored epochs only.
    """
    if isinstance(store, PackedStore) and store.epochs < store.manifest["epochs"]:
        log.warning(
            "the labels in %s are unfinished: %d of %d epochs are stored, and no others are trained on; run "
            "relabel_FKD.py again to finish them",
            *(store.path, store.epochs, store.manifest["epochs"]),
        )


def check_images_of_labels(config: FKDConfig, train: ImageSet, store: LabelStore) -> None:
    """Raise InputError if the labels cannot have been made for the images in the training folder.

    The numbers of images and classes are compared. `identify_images` later compares the images themselves, if the
    labels store image digests.
    """
    where = f"the labels in {config.fkd_path}"
    images = len(train.samples)
    if config.subset is not None and images < store.num_images:
        raise InputError(
            f"--classes {config.subset} leaves {images} images of --train-dir {config.train_dir}, but {where} are "
            f"about {store.num_images}, which share batches; label these classes alone with relabel_FKD.py --classes"
        )
    # if labels store image digests, `identify_images` reports a wrong number of images, and names the missing images
    knows = store.image_digests is not None and store.has_epochs
    if (
        images != store.num_images
        and not knows
        and (store.has_epochs or images < store.num_images or unlikely_gap(images, store))
    ):
        about = "cover" if store.has_epochs else "name the first"
        raise InputError(
            f"--train-dir {config.train_dir} holds {images} images, but {where} {about} {store.num_images}; they "
            "belong to another image set"
        )
    if images < store.batch_size and not store.has_epochs:
        raise InputError(
            f"--train-dir {config.train_dir} holds {images} images, fewer than a batch of {where}; they belong to "
            "another image set"
        )
    if len(train.classes) > store.num_classes:
        raise InputError(
            f"--train-dir {config.train_dir} has {len(train.classes)} classes, but {where} have {store.num_classes}; "
            "they belong to another image set"
        )


def unlikely_gap(images: int, store: LabelStore) -> bool:
    """Return whether it is nearly impossible that the last m training images lack labels by chance.

    The labels are not grouped into epochs. Their images were drawn at random, so some may never have been drawn. The
    probability that n draws from N images miss m given images is about exp(-m n / N).

    Args:
        images: N, number of training images.
        store: the labels. `store.num_images` is N - m, because the last m images have no labels.
    """
    rows = store.stored_batches() * store.batch_size
    return (images - store.num_images) * rows / images > IMPOSSIBLE


def check_label_flags(config: FKDConfig, store: LabelStore) -> None:
    """Raise InputError if --batch-size, --mix-type, --keep-topk or a flag of the loss contradicts the labels."""
    where = f"the labels in {config.fkd_path}"
    if config.batch_size != store.batch_size:
        raise InputError(
            f"--batch-size {config.batch_size} is not that of {where}, which is {store.batch_size}; use it, and "
            "--gradient-accumulation-steps to need less memory"
        )
    stated = config.mix_type and config.mix_type.lower()
    if stated and stated != store.mix_type:
        raise InputError(
            f"--mix-type {config.mix_type} disagrees with {where}, which are {store.mix_type}; leave it out"
        )
    if config.keep_topk and config.keep_topk > store.num_classes:
        raise InputError(f"--keep-topk {config.keep_topk} is more than the {store.num_classes} classes of {where}")
    if config.loss_type in NEEDS_LOGITS and store.answers == "probabilities":
        raise InputError(
            f"--loss-type {config.loss_type} compares logits, but {where} are probabilities; use --loss-type kl"
        )
    if config.logit_smoothing and store.answers == "probabilities":
        raise InputError(
            f"--logit-smoothing {config.logit_smoothing} changes logits, but {where} are probabilities; leave it out"
        )
    if store.has_weights and config.loss_type != "kl":
        raise InputError(
            f"{where} hold a weight of each image, by which only --loss-type kl multiplies (WMDD), and --loss-type is "
            f"{config.loss_type}; use kl, or pack and unpack the labels with --items 6, which leaves the weights out"
        )


def resolve_topk_mass(config: FKDConfig, store: LabelStore) -> str:
    """Return the value of --topk-mass that the run uses: `kept` or `renormalised`.

    `auto` means `renormalised` for top-k labels that do not store the probability mass of the dropped classes, and
    `kept` for all other labels.

    Raises:
        InputError: --topk-mass is `kept`, but the labels do not store the probability mass of the dropped classes.
    """
    answers = store.read(0, 0).logits
    lacking = isinstance(answers, TopK) and answers.rest is None
    if config.topk_mass == "kept" and lacking:
        raise InputError(
            f"--topk-mass kept needs the mass of the classes that the labels in {config.fkd_path} do not store; use "
            "renormalised, or leave it out"
        )
    if config.topk_mass == "auto":
        return "renormalised" if lacking else "kept"
    return config.topk_mass
