"""`python -m utils.labels`: look into a label folder, pack it, unpack it, verify it."""

import argparse
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from utils.labels.hald import HaldWriter
from utils.labels.lpqld import FlatWriter, highest_class
from utils.labels.opening import open_labels
from utils.labels.packed import PackedStore, PackedWriter
from utils.labels.packed_codec import Codec
from utils.labels.packed_manifest import make_manifest
from utils.labels.sre2l import TarStore, TarWriter
from utils.labels.store import SAMPLED, LabelStore
from utils.labels.training_views import TrainingViews
from utils.labels.types import BatchLabels
from utils.labels.views import ReferenceOrder, index_of
from utils.system.errors import InputError, listing
from utils.system.log import progress_bar
from utils.system.memory import readable_size
from utils.system.parser import COUNT, NATURAL, Parser
from utils.system.script import run_script


class TeacherCheck(NamedTuple):
    """The part of `verify` that asks a teacher; utils/run provides it."""

    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], bool]  # returns False if the flags name no teacher


def parse(argv: list[str] | None, teacher_check: TeacherCheck | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser("Look into FKD labels, pack, unpack and verify them.")
    commands = parser.add_subparsers(
        parser_class=Parser, dest="command", required=True, metavar="{info,pack,unpack,verify}"
    )
    info = commands.add_parser("info", help="what is in a label folder")
    info.add_argument("path")
    pack = commands.add_parser("pack", help=".tar files to packed")
    pack.add_argument("source")
    pack.add_argument("target")
    add_codec_arguments(pack)
    pack.add_argument("--num-classes", type=COUNT, help="classes of the teacher, if top-k labels do not state them")
    unpack = commands.add_parser("unpack", help="packed to .tar files")
    unpack.add_argument("source")
    unpack.add_argument("target")
    unpack.add_argument("--items", type=int, choices=[6, 7], help="dialect: 6 SRe2L, 7 PRISM (default: as packed)")
    unpack.add_argument("--fp32", action="store_true", help="write logits as float32 (default: as stored)")
    verify = commands.add_parser("verify", help="read and check everything, or ask the teacher")
    verify.add_argument("path")
    if teacher_check is not None:
        teacher_check.add_arguments(verify)
    for command in (info, pack, unpack, verify):
        command.add_argument("--fkd-seed", "--fkd_seed", type=NATURAL, default=42, help="seed of the image order")
    return parser.parse_args(argv)


def info(args: argparse.Namespace) -> None:
    """Print what is in a label folder."""
    store = open_labels(args.path, args.fkd_seed)
    size = sum(entry.stat().st_size for entry in walk(args.path))
    known = store.image_digests
    images = f"known by their digests, {known.digest()}" if known else "not known: compare them with verify --images"
    try:
        digest = store.digest()
    except InputError as error:
        digest = f"none: {error}"
    facts = {"images": images, "digest": digest, "bytes": size} | ({"missing": store.gap} if store.gap else {})
    for key, value in (store.provenance() | facts).items():
        print(f"{key:>12}  {json.dumps(value) if isinstance(value, dict) else value}")


def walk(path: str) -> Iterator[os.DirEntry[str]]:
    """Yield every file below a folder."""
    for entry in os.scandir(path):
        if entry.is_dir(follow_symlinks=False):
            yield from walk(entry.path)
        else:
            yield entry


def read_epochs(store: LabelStore, epochs: Sequence[int], description: str) -> Iterator[tuple[int, list[BatchLabels]]]:
    """Yield (epoch, list of its `BatchLabels`) with a progress bar."""
    for epoch in progress_bar(epochs, description, len(epochs)):
        yield epoch, [store.read(epoch, batch) for batch in range(store.batches(epoch))]


def pack(args: argparse.Namespace) -> None:
    """Pack a folder of .tar labels."""
    store = open_labels(args.source, args.fkd_seed)
    if store.dialect == "packed":
        raise InputError(f"{args.source} is packed already; unpack it first to pack it in another way")
    store.refuse_gap()
    store.check_complete(range(store.epochs))
    writer = PackedWriter(args.target, manifest_for(store, args), image_digests=store.image_digests)
    for epoch, batches in read_epochs(store, writer.missing(store.epochs), "pack"):
        writer.write(epoch, batches)
    print(f"packed {amount(store)} into {args.target}: {ratio(args)}")


def manifest_for(store: LabelStore, args: argparse.Namespace) -> dict[str, Any]:
    """Return the manifest of the packed form of a store."""
    state_classes(store, args)
    if not store.has_epochs and TrainingViews(store, SAMPLED).smallest_batch() < store.batch_size:
        raise InputError(f"{args.source} holds batches of different sizes and cannot be packed; train on it as it is")
    some = store.keep_topk < store.num_classes
    if args.keep_topk and args.keep_topk > store.keep_topk:
        raise InputError(f"--keep-topk {args.keep_topk} is more than the {store.keep_topk} answers of {args.source}")
    kept = args.keep_topk or (store.keep_topk if some else None)
    codec = Codec(args.bits or (16 if store.logits_dtype == torch.float16 else 32), kept)
    kind: dict[str, Any] = {
        "answers": store.answers,
        "label_order": store.label_order,
        "num_classes_stated": not some or args.num_classes is not None,
        "batches": None if store.has_epochs else store.stored_batches(),
    }
    settings = {"packed_from": store.dialect, **store.settings}
    drawn = isinstance(store, TarStore) and store.dialect == "sre2l" and store.image_list is None  # from --fkd-seed
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


def state_classes(store: LabelStore, args: argparse.Namespace) -> None:
    """Set the number of classes of top-k labels that do not state it: --num-classes, or the highest class + 1."""
    if store.num_classes_stated:
        return
    highest = max(highest_class(store.read(e, b).logits) for e in range(store.epochs) for b in range(store.batches(e)))
    if args.num_classes and args.num_classes <= highest:
        raise InputError(f"--num-classes {args.num_classes}, but {args.source} names class {highest}; give more")
    store.state_classes(args.num_classes or max(highest, store.keep_topk) + 1)


def amount(store: LabelStore) -> str:
    """Return the amount of labels in a store, in words."""
    count = store.stored_batches()
    return f"{store.epochs} epochs of {store.num_images} images" if store.has_epochs else f"{count} batches"


def ratio(args: argparse.Namespace) -> str:
    """Return the sizes of source and target, in words."""
    before, after = (sum(entry.stat().st_size for entry in walk(path)) for path in (args.source, args.target))
    return f"{readable_size(before)} to {readable_size(after)} ({after / before:.2f} of it)"


def unpack(args: argparse.Namespace) -> None:
    """Unpack a packed folder into the 6- or 7-item dialect."""
    store = open_labels(args.source, args.fkd_seed)
    if not isinstance(store, PackedStore):
        raise InputError(f"{args.source} is not packed; there is nothing to unpack")
    store.refuse_gap()
    if not store.has_epochs or store.answers == "probabilities":
        unpack_as_packed(store, args)
        return
    if store.keep_topk < store.num_classes:
        raise InputError(
            f"{args.source} keeps the {store.keep_topk} largest logits of an image, and .tar files of epochs hold "
            "those of all classes; train on it as it is"
        )
    items = args.items or (7 if store.manifest["has_index"] else 6)
    dtype = torch.float16 if store.codec.bits == 16 and not args.fp32 else torch.float32
    settings = {name: value for name, value in store.settings.items() if name != "packed_from"}
    writer = TarWriter(args.target, dtype, with_index=items == 7, image_digests=store.image_digests, settings=settings)
    order = ReferenceOrder(store.num_images, args.fkd_seed)
    for epoch, batches in read_epochs(store, range(store.epochs), "unpack"):
        if items == 6 and not torch.equal(torch.cat([index_of(labels) for labels in batches]), order(epoch)):
            raise InputError(
                f"--items 6 cannot hold the image order of {args.source}: it is not that of --fkd-seed "
                f"{args.fkd_seed}; give the seed of relabelling, or use --items 7"
            )
        writer.write(epoch, batches)
    print(f"unpacked {store.epochs} epochs of {store.num_images} images into {args.target}: {ratio(args)}")


def unpack_as_packed(store: PackedStore, args: argparse.Namespace) -> None:
    """Unpack a store that was packed from LPLD, LPQLD or HALD into that project's own format."""
    if args.items or args.fp32:
        raise InputError(f"--items and --fp32 are for labels of SRe2L and PRISM; {args.source} is of another project")
    if store.codec.keep_topk and store.answers == "probabilities":
        raise InputError(
            f"{args.source} keeps the {store.keep_topk} largest probabilities, which no other format holds"
        )
    writer = (HaldWriter if store.has_epochs else FlatWriter)(args.target, store.image_digests)
    for epoch, batches in read_epochs(store, range(store.epochs), "unpack"):
        writer.write(epoch, batches)
    writer.finish()
    print(f"unpacked {amount(store)} into {args.target}: {ratio(args)}")


def verify(args: argparse.Namespace) -> None:
    """Read every batch; check digests, shapes, counts and values."""
    verify_digests = os.path.exists(os.path.join(args.path, "manifest.json"))
    store = open_labels(args.path, args.fkd_seed, verify=verify_digests)
    store.refuse_gap()
    store.check_complete(range(store.epochs))
    if isinstance(store, PackedStore) and store.epochs < store.manifest["epochs"]:
        raise InputError(
            f"{args.path} holds {store.epochs} of {store.manifest['epochs']} epochs; run relabel_FKD.py again to finish"
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


def main(argv: list[str] | None = None, teacher_check: TeacherCheck | None = None) -> int:
    """Run one command; return the exit code."""

    def run(arguments: list[str] | None) -> None:
        args = parse(arguments, teacher_check)
        if args.command == "verify" and teacher_check is not None and teacher_check.run(args):
            return
        {"info": info, "pack": pack, "unpack": unpack, "verify": verify}[args.command](args)

    return run_script(run, argv)


def add_codec_arguments(group: Any) -> None:
    """Add the flags that set how packed labels are stored."""
    group.add_argument(
        "--bits",
        type=int,
        choices=[32, 16, 8, 4],
        help="bits per stored value; 8 and 4 quantise (default: 32, or as given)",
    )
    group.add_argument("--keep-topk", type=COUNT, help="store only the k largest logits of an image (default: all)")
