"""Every check that can fail before time is spent. Each failure names the flag or file and the remedy."""

import torch

from utils.data import open_folder
from utils.errors import InputError
from utils.labels import ReusedLabels, open_labels
from utils.tracking import log

SAMPLED_BATCHES = 8


def check_folders(train_dir, val_dir):
    """Open both image folders; they must have the same number of classes.

    Returns:
        (training ImageFolder, validation ImageFolder).
    """
    train, val = open_folder(train_dir, "--train-dir"), open_folder(val_dir, "--val-dir")
    if len(train.classes) != len(val.classes):
        raise InputError(
            f"--val-dir {val_dir} has {len(val.classes)} class folders and --train-dir {train_dir} has "
            f"{len(train.classes)}; both must hold the same classes"
        )
    warn_of_folder_order(train.classes)
    return train, val


def warn_of_folder_order(names):
    """Warn where sorted folder names do not follow the numbers at their ends (`new1000` before `new101`)."""
    numbers = [trailing_number(name) for name in names]
    if len({prefix for prefix, _ in numbers}) != 1 or None in (n for _, n in numbers):
        return
    for (_, first), (_, second), name, following in zip(numbers, numbers[1:], names, names[1:], strict=False):
        if first > second:
            log.warning(
                "warning: class folders sort as text, so %s comes before %s; pad the numbers with zeros unless the "
                "labels were made in this order",
                name,
                following,
            )
            return


def trailing_number(name):
    """Split a folder name into (prefix, number at its end or None)."""
    prefix = name.rstrip("0123456789")
    return prefix, int(name[len(prefix) :]) if len(prefix) < len(name) else None


def check_labels(args, train):
    """Open --fkd-path and compare it with the arguments and the training folder.

    Returns:
        the label store; every batch file that the run needs exists.
    """
    if not args.fkd_path:
        raise InputError("--fkd-path is missing; give the folder of FKD labels, or make them with relabel_FKD.py")
    store = open_labels(args.fkd_path, args.fkd_seed, args.temperature, args.verify_labels)
    where = f"the labels in {args.fkd_path}"
    if args.epochs > store.epochs and not args.reuse_labels:
        raise InputError(
            f"--epochs {args.epochs} is more than the {store.epochs} epochs of {where}; lower it, relabel, or add "
            "--reuse-labels to visit stored epochs again"
        )
    if args.batch_size != store.batch_size:
        raise InputError(
            f"--batch-size {args.batch_size} is not that of {where}, which is {store.batch_size}; use it, and "
            "--gradient-accumulation-steps to need less memory"
        )
    if len(train.samples) != store.num_images:
        raise InputError(
            f"--train-dir {args.train_dir} holds {len(train.samples)} images, but {where} cover {store.num_images}; "
            "they belong to another image set"
        )
    if len(train.classes) > store.num_classes:
        raise InputError(
            f"--train-dir {args.train_dir} has {len(train.classes)} classes, but {where} have {store.num_classes}; "
            "they belong to another image set"
        )
    stated = args.mix_type and args.mix_type.lower()
    if stated and stated != store.mix_type:
        raise InputError(f"--mix-type {args.mix_type} disagrees with {where}, which are {store.mix_type}; leave it out")
    if args.keep_topk and args.keep_topk > store.num_classes:
        raise InputError(f"--keep-topk {args.keep_topk} is more than the {store.num_classes} classes of {where}")
    if store.keep_topk < store.num_classes:
        args.keep_topk = min(args.keep_topk or store.num_classes, store.keep_topk)
    if args.reuse_labels:
        store = ReusedLabels(store, args.fkd_seed)
        store.check_complete(range(store.epochs))
    else:
        store.check_complete(range(args.start_epoch, args.epochs))
    return store


def sample_labels(store, epochs):
    """Read a few batches spread over `epochs` (a range): list of `BatchLabels`."""
    total = len(epochs) * store.batches_per_epoch
    picks = sorted({i * (total - 1) // max(SAMPLED_BATCHES - 1, 1) for i in range(SAMPLED_BATCHES)})
    return [store.read(epochs[p // store.batches_per_epoch], p % store.batches_per_epoch) for p in picks]


def check_views(samples, input_size, path):
    """Cutmix boxes are in pixels of the view that the teacher saw: they must fit --input-size."""
    reach = max((max(labels.mix_bbox[2:]) for labels in samples if labels.mix_bbox is not None), default=0)
    if reach > input_size:
        raise InputError(
            f"--input-size {input_size} is smaller than the views of the labels in {path}, whose cutmix boxes reach "
            f"pixel {reach}; give the --input-size of relabelling"
        )


def teacher_agreement(samples, targets, num_folders):
    """Share of rows whose stored argmax is the class of the row's folder, or of its mix partner's.

    Args:
        samples: list of `BatchLabels`.
        targets: int64 [N], folder class of every image.
        num_folders: number of class folders.

    Returns:
        (agreement, chance level) in [0, 1].
    """
    hits = rows = two = 0
    for labels in samples:
        own = targets[labels.index]
        partner = own if labels.mix_index is None else own[labels.mix_index]
        answer = labels.logits.float().argmax(dim=1)
        hits += ((answer == own) | (answer == partner)).sum().item()
        two += (own != partner).sum().item()
        rows += len(own)
    chance = (1 + two / rows) / max(num_folders, labels.logits.shape[1])
    return hits / rows, min(chance, 1.0)


def report(args, train, val, store, samples):
    """Log what was found, in a few lines, and warn loudly where labels and folders seem not to match."""
    log.info("train   %d images, %d classes (%s)", len(train.samples), len(train.classes), args.train_dir)
    log.info("val     %d images, %d classes (%s)", len(val.samples), len(val.classes), args.val_dir)
    log.info(
        "labels  %s, %s, %d classes, %d epochs of %d batches of %d (%s)",
        *(store.dialect, store.mix_type, store.num_classes, store.epochs, store.batches_per_epoch, store.batch_size),
        args.fkd_path,
    )
    targets = torch.tensor(train.targets)
    agreement, chance = teacher_agreement(samples, targets, len(train.classes))
    log.info(
        "teacher agrees with the folders on %.1f%% of sampled views (chance: %.1f%%)", 100 * agreement, 100 * chance
    )
    if agreement < 2 * chance:
        log.warning(
            "WARNING: the teacher's answers hardly match the class folders. The labels were most likely made for "
            "another class order, image order or --fkd_seed, and the result would be meaningless"
        )
