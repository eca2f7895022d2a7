"""`python -m utils.labels`: describe, pack, unpack or verify a folder of soft labels."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from utils.config import InfoConfig, PackConfig, UnpackConfig, VerifyConfig, parse_label_command
from utils.labels.formats import open_labels
from utils.labels.hald import HaldWriter
from utils.labels.lpqld import FlatWriter, highest_class
from utils.labels.packed import PackedStore, PackedWriter
from utils.labels.packed_codec import Codec
from utils.labels.packed_manifest import make_manifest
from utils.labels.sre2l import WITHOUT_INDEX, TarStore, TarWriter
from utils.labels.store import HELD, SAMPLED, LabelStore
from utils.labels.training_views import TrainingViews
from utils.labels.types import BatchLabels
from utils.labels.views import ReferenceOrder, index_of
from utils.system.errors import InputError, listing, printable
from utils.system.log import progress_bar
from utils.system.machine import readable_size
from utils.system.process import run_script


def info(config: InfoConfig) -> None:
    """Print facts about a label folder: its format, size, digests, number of epochs, and missing epochs."""
    store = open_labels(config.path, config.fkd_seed)
    size = sum(entry.stat().st_size for entry in walk(config.path))
    known = store.image_digests
    images = f"known by their digests, {known.digest()}" if known else "not known: compare them with verify --images"
    try:
        digest = store.digest()
    except InputError as error:
        digest = f"none: {error}"
    facts = store.provenance()
    facts |= facts.pop("settings", {})  # of packed labels: teachers, classes and others
    facts |= {"images": images, "digest": digest, "bytes": size} | ({"missing": store.gap} if store.gap else {})
    for key, value in facts.items():
        if value is not None:
            name = "format" if key == "dialect" else key.replace("_", " ")
            print(printable(f"{name:>12}  {in_words(value)}"))


def in_words(value: object) -> str:
    """Return a value of a manifest as text without brackets; settings that are None are left out."""
    if isinstance(value, dict):
        parts = {key.replace("_", " "): part for key, part in value.items() if part is not None}
        return ", ".join(f"{key} {in_words(part)}" for key, part in parts.items())
    if isinstance(value, list | tuple):
        return listing(map(in_words, value), separator="; " if any(isinstance(part, dict) for part in value) else ", ")
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def walk(path: str) -> Iterator[os.DirEntry[str]]:
    """Yield every file in a folder and in its subfolders."""
    for entry in os.scandir(path):
        if entry.is_dir(follow_symlinks=False):
            yield from walk(entry.path)
        else:
            yield entry


def read_epochs(store: LabelStore, epochs: Sequence[int], description: str) -> Iterator[tuple[int, list[BatchLabels]]]:
    """Read each epoch in `epochs` and show a progress bar; yield (epoch, list of the epoch's batches)."""
    for epoch in progress_bar(epochs, description, len(epochs)):
        yield epoch, [store.read(epoch, batch) for batch in range(store.batches(epoch))]


def pack(config: PackConfig) -> None:
    """Convert a folder of .tar labels to the packed format, which takes less space."""
    store = open_labels(config.source, config.fkd_seed)
    if store.dialect == "packed":
        raise InputError(f"{config.source} is packed already; unpack it first to pack it in another way")
    store.refuse_gap()
    store.check_complete(range(store.epochs))
    writer = PackedWriter(config.target, manifest_for(store, config), image_digests=store.image_digests)
    for epoch, batches in read_epochs(store, writer.missing(store.epochs), "pack"):
        writer.write(epoch, batches)
    print(f"packed {amount(store)} into {config.target}: {ratio(config)}")


def manifest_for(store: LabelStore, config: PackConfig) -> dict[str, Any]:
    """Return the manifest of the packed folder into which `store` will be converted.

    Raises:
        InputError: the labels cannot be packed with the options in `config`.
    """
    state_classes(store, config)
    if not store.has_epochs and TrainingViews(store, SAMPLED).smallest_batch() < store.batch_size:
        raise InputError(f"{config.source} holds batches of different sizes and cannot be packed; train on it as it is")
    some = store.keep_topk < store.num_classes
    if config.keep_topk and config.keep_topk > store.keep_topk:
        raise InputError(
            f"--keep-topk {config.keep_topk} is more than the {store.keep_topk} answers of {config.source}"
        )
    kept = config.keep_topk or (store.keep_topk if some else None)
    codec = Codec(config.bits or (16 if store.logits_dtype == torch.float16 else 32), kept)
    kind: dict[str, Any] = {
        "answers": store.answers,
        "label_order": store.label_order,
        "num_classes_stated": not some or config.num_classes is not None,
        "batches": None if store.has_epochs else store.stored_batches(),
        **{name: True for name in HELD if getattr(store, name)},
    }
    settings = {"packed_from": store.dialect, **store.settings}
    # True if --fkd-seed alone determines the order of images; image numbers are then not stored
    drawn = isinstance(store, TarStore) and store.dialect in WITHOUT_INDEX and store.image_list is None
    return make_manifest(
        codec,
        num_images=store.num_images,
        num_classes=store.num_classes,
        batch_size=store.batch_size,
        epochs=store.epochs,
        mix_type=store.mix_type,
        has_index=not drawn,
        settings=settings,
        has_rest=not some,
        **kind,
    )


def state_classes(store: LabelStore, config: PackConfig) -> None:
    """Set the number of classes of top-k labels, unless the labels themselves state the number.

    The number is --num-classes. Without this flag, the number is max(h, k) + 1, where h is the highest class id in the
    labels and k is the number of logits kept per image.

    Raises:
        InputError: --num-classes is too low for the class ids in the labels.
    """
    if store.num_classes_stated:
        return
    highest = max(highest_class(store.read(e, b).logits) for e in range(store.epochs) for b in range(store.batches(e)))
    if config.num_classes and config.num_classes <= highest:
        raise InputError(f"--num-classes {config.num_classes}, but {config.source} names class {highest}; give more")
    store.state_classes(config.num_classes or max(highest, store.keep_topk) + 1)


def amount(store: LabelStore) -> str:
    """Return the size of `store` as text: `300 epochs of 500 images`, or `40 batches` if it has no epochs."""
    count = store.stored_batches()
    return f"{store.epochs} epochs of {store.num_images} images" if store.has_epochs else f"{count} batches"


def ratio(config: PackConfig | UnpackConfig) -> str:
    """Return the sizes of the source folder and of the target folder, and their ratio, as text for a message."""
    before, after = (sum(entry.stat().st_size for entry in walk(path)) for path in (config.source, config.target))
    return f"{readable_size(before)} to {readable_size(after)} ({after / before:.2f} of it)"


def unpack(config: UnpackConfig) -> None:
    """Convert a packed folder back to .tar files.

    Labels that were packed from LPLD, LPQLD or HALD get back their original format. All others get format `sre2l`
    (without image numbers), `prism` (with image numbers) or `wmdd` (with weights).
    """
    store = open_labels(config.source, config.fkd_seed)
    if not isinstance(store, PackedStore):
        raise InputError(f"{config.source} is not packed; there is nothing to unpack")
    store.refuse_gap()
    if not store.has_epochs or store.answers == "probabilities":
        unpack_as_packed(store, config)
        return
    if store.keep_topk < store.num_classes:
        raise InputError(
            f"{config.source} keeps the {store.keep_topk} largest logits of an image, and .tar files of epochs hold "
            "those of all classes; train on it as it is"
        )
    items = config.items or (7 if store.manifest["has_index"] or store.has_weights else 6)
    dtype = torch.float16 if store.codec.bits == 16 and not config.fp32 else torch.float32
    settings = {name: value for name, value in store.settings.items() if name != "packed_from"}
    writer = TarWriter(
        config.target, dtype, with_index=items == 7, image_digests=store.image_digests, settings=settings
    )
    order = ReferenceOrder(store.num_images, config.fkd_seed)
    for epoch, batches in read_epochs(store, range(store.epochs), "unpack"):
        if items == 6 and not torch.equal(torch.cat([index_of(labels) for labels in batches]), order(epoch)):
            raise InputError(
                f"--items 6 cannot hold the image order of {config.source}: it is not that of --fkd-seed "
                f"{config.fkd_seed}; give the seed of relabelling, or use --items 7"
            )
        writer.write(epoch, batches)
    print(f"unpacked {store.epochs} epochs of {store.num_images} images into {config.target}: {ratio(config)}")


def unpack_as_packed(store: PackedStore, config: UnpackConfig) -> None:
    """Convert packed labels of LPLD, LPQLD or HALD back to the format of the project that made them."""
    if config.items or config.fp32:
        raise InputError(f"--items and --fp32 are for labels of SRe2L and PRISM; {config.source} is of another project")
    if store.codec.keep_topk and store.answers == "probabilities":
        raise InputError(
            f"{config.source} keeps the {store.keep_topk} largest probabilities, which no other format holds"
        )
    writer = (HaldWriter if store.has_epochs else FlatWriter)(config.target, store.image_digests)
    for epoch, batches in read_epochs(store, range(store.epochs), "unpack"):
        writer.write(epoch, batches)
    writer.finish()
    print(f"unpacked {amount(store)} into {config.target}: {ratio(config)}")


def verify(config: VerifyConfig) -> None:
    """Check digests, shapes, counts and values of all batches in a label folder; raise InputError if a check fails."""
    verify_digests = os.path.exists(os.path.join(config.path, "manifest.json"))
    store = open_labels(config.path, config.fkd_seed, verify=verify_digests)
    store.refuse_gap()
    store.check_complete(range(store.epochs))
    if isinstance(store, PackedStore) and store.epochs < store.manifest["epochs"]:
        raise InputError(
            f"{config.path} holds {store.epochs} of {store.manifest['epochs']} epochs; run relabel_FKD.py again to "
            "finish"
        )
    problems = []
    for epoch in progress_bar(range(store.epochs), "verify", store.epochs):
        try:
            store.check(epoch)
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError(f"{len(problems)} of {store.epochs} epochs are not sound: {listing(problems, 3)}")
    views = sum(store.rows(epoch, batch) for epoch in range(store.epochs) for batch in range(store.batches(epoch)))
    print(f"ok: {amount(store)}, {store.stored_batches()} batches, {views} views, all sound")


def main(argv: list[str] | None = None, ask_teacher: Callable[[VerifyConfig], bool] | None = None) -> int:
    """Run one command of `python -m utils.labels` and return its exit code.

    Args:
        argv: command-line arguments (default: the arguments of this process).
        ask_teacher: function that verifies labels with a teacher. If the flags name no teacher, the function returns
            False, and `verify` checks the labels. None: never use a teacher.
    """

    def run(words: list[str] | None) -> None:
        config = parse_label_command(words)
        if isinstance(config, VerifyConfig):
            if ask_teacher is None or not ask_teacher(config):
                verify(config)
        elif isinstance(config, InfoConfig):
            info(config)
        elif isinstance(config, PackConfig):
            pack(config)
        else:
            unpack(config)

    return run_script(run, argv)
