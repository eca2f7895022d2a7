"""Compare packed labels with .tar files (reading speed) and with LPQLD's folders (reading speed and size).

    python benchmarks/label_store.py [--json OUT]

The script generates labels with 1,000 classes and batch size 50, as for ImageNet-1K, and prints median times. The
reference code reads one .tar file per batch with `torch.load`. When reading is timed, the files are in the page cache.

Then the script writes a folder in the format of LPQLD (Xiao and He, 2026: the 50 largest of 1,000 logits, batch size
128), and packs the folder at 8 and at 4 bits. It prints, among others:

* `lpqld_bytes_*`: size of the packed labels divided by the size of LPQLD's folder. Both include views and image order.
* `lpqld_read_speedup`: time to read a batch with `torch.load` divided by the time to read a batch packed at 8 bits.
  Batches are read in random order. All packed epochs are opened beforehand.
* `lpqld_open_ms`: time to open and check an epoch packed at 8 bits, divided by the number of batches in the epoch.
* `lpqld_speedup_with_opening`: as `lpqld_read_speedup`, with `lpqld_open_ms` added to the time of each packed read.

`torch.load` is called with weights_only=False, which is faster than weights_only=True.
"""

import argparse
import contextlib
import io
import json
import platform
import random
import statistics
import tempfile
import time
from pathlib import Path

import torch

from utils.labels import command
from utils.labels.formats import open_labels
from utils.labels.packed import PackedWriter
from utils.labels.packed_codec import Codec
from utils.labels.packed_manifest import epoch_name, make_manifest
from utils.labels.sre2l import TarWriter
from utils.labels.views import DrawnViews, ViewPolicy

CLASSES, BATCH_SIZE = 1000, 50
KEPT, POOL_BATCH = 50, 128  # logits per row and batch size of LPQLD


def make_epoch(views, epoch, sizes):
    """Return a list with the labels of each batch of an epoch: crops, flips and mixes, and random logits.

    Args:
        views: `DrawnViews`, which draws the crops, flips and mixes.
        epoch: number of the epoch, also the seed of the logits.
        sizes: (height, width) in pixels, the same for all images.
    """
    generator = torch.Generator().manual_seed(epoch)
    batches = []
    for batch in range(views.batches_per_epoch):
        drawn = views.read(epoch, batch)
        logits = torch.randn(len(drawn.index), CLASSES, generator=generator).half()
        batches.append(drawn.labelled(logits, [sizes] * len(drawn.index)))
    return batches


def median_ms(call, repeats):
    """Return the median time of `call(i)` over `repeats` calls, in milliseconds."""
    times = []
    for i in range(repeats):
        started = time.perf_counter()
        call(i)
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times)


def main():
    """Generate labels in a temporary folder, measure, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=300, help="number of epoch files in the packed store")
    parser.add_argument("--pool", type=int, default=156, help="batches of the LPQLD folder")
    parser.add_argument("--json", help="also write the results to this file")
    args = parser.parse_args()
    policy = ViewPolicy(42, 224, 0.08, 1.0, "cutmix", 0.8, 1.0)
    views = DrawnViews(policy, args.images, BATCH_SIZE)
    with tempfile.TemporaryDirectory() as scratch:
        epochs = [make_epoch(views, epoch, (256, 256)) for epoch in range(2)]
        tar = TarWriter(f"{scratch}/tar")
        manifest = make_manifest(Codec(16), args.images, CLASSES, BATCH_SIZE, args.epochs, "cutmix", True, {})
        packed = PackedWriter(f"{scratch}/packed", manifest)
        for number, batches in enumerate(epochs):
            tar.write(number, batches)
            packed.write(number, batches)
        fill_up(packed, args.epochs)
        figures = measure(f"{scratch}/tar", f"{scratch}/packed", views.batches_per_epoch)
        figures |= measure_lpqld(Path(scratch), args.pool)
    print(f"python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}, medians")
    for name, value in figures.items():
        print(f"{name:<28}{value:>10.4f}")
    if args.json:
        Path(args.json).write_text(json.dumps(figures, indent=2))


def fill_up(packed, epochs):
    """Extend a packed folder from 2 epochs to `epochs` epochs, and finish the folder.

    Each added epoch is a hard link to the file of epoch 0. Hard links take little disk space.

    Args:
        packed: `PackedWriter` of the labels.
        epochs: number of epochs of the extended folder.
    """
    first = packed.path / epoch_name(0)
    for epoch in range(2, epochs):
        (packed.path / epoch_name(epoch)).hardlink_to(first)
    packed.finish()


def measure(tar, packed, batches):
    """Measure how fast the same labels are read from .tar files and from the packed format.

    Args:
        tar: folder of the .tar files.
        packed: folder of the packed labels.
        batches: number of batches per epoch.

    Returns:
        dict of medians: milliseconds per batch for each way to read, milliseconds to open a packed epoch, and seconds
        to open the packed folder. The dict also holds `read_speedup`: the time of `torch.load` divided by the time of
        a packed read.
    """
    tar_store, packed_store = open_labels(tar), open_labels(packed)
    packed_store.read(0, 0)
    ours, theirs = packed_store.read(0, 1), tar_store.read(0, 1)
    assert torch.equal(ours.mix.partner, theirs.mix.partner)
    for name in ("logits", "coords", "flip", "index"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    torch_load = median_ms(lambda i: torch.load(tar_store.file(0, i % batches), weights_only=False), 10 * batches)
    packed_read = median_ms(lambda i: packed_store.read(0, i % batches), 50 * batches)
    return {
        "torch_load_ms": torch_load,
        "tar_read_ms": median_ms(lambda i: tar_store.read(0, i % batches), 10 * batches),
        "packed_read_ms": packed_read,
        "read_speedup": torch_load / packed_read,
        "packed_open_epoch_ms": median_ms(lambda i: packed_store.open(i % 2), 50),
        "open_seconds": median_ms(lambda i: open_labels(packed), 20) / 1e3,
    }


def teacher_logits(rows: int, generator: torch.Generator) -> torch.Tensor:
    """Return random logits float32 [rows, CLASSES] that resemble a teacher's logits of cutmix images.

    In each row, two random classes and the classes similar to them have high logits. The similarity of two classes is
    random and does not depend on their ids. If similar classes had similar ids, the stored ids would compress too well.
    """
    directions = torch.randn(CLASSES, 64, generator=torch.Generator().manual_seed(0)) / 8
    first, second = directions[torch.randint(CLASSES, (2, rows), generator=generator)]
    share = torch.rand(rows, 1, generator=generator)
    seen = torch.nn.functional.normalize(share * first + (1 - share) * second, dim=1)
    return 12 * seen @ directions.T + torch.randn(rows, CLASSES, generator=generator)


def write_lpqld(folder: Path, pool: int) -> None:
    """Write labels in LPQLD's format: `pool` batch files, and a JSON file with the image numbers of each batch.

    The items of a batch and their dtypes are the same as in LPQLD's own files; the values are random.
    """
    folder.mkdir()
    # An epoch has at most 78 batches, that is 9,984 images. A set with 10 images for each of 1,000 classes has 10,000.
    images_of_set = POOL_BATCH * min(pool, 78)
    views = DrawnViews(ViewPolicy(42, 224, 0.08, 1.0, "cutmix", 0.8, 1.0), images_of_set, POOL_BATCH)
    generator = torch.Generator().manual_seed(1)
    images = {}
    for number in range(pool):
        drawn = views.read(*divmod(number, views.batches_per_epoch))
        labels = drawn.labelled(torch.empty(POOL_BATCH, 0), [(256, 256)] * POOL_BATCH)
        values, classes = teacher_logits(POOL_BATCH, generator).topk(KEPT, dim=1)
        box = [torch.tensor(edge, dtype=torch.uint8) for edge in labels.mix.box]
        small = [labels.coords.half(), labels.flip, labels.mix.partner.to(torch.uint8), labels.mix.lam, box]
        torch.save([*small, values.half(), classes.to(torch.int16)], folder / f"batch_{number}.tar")
        images[str(number)] = labels.index.tolist()
    (folder / "sampler_indices_batch.json").write_text(json.dumps(images))


def measure_lpqld(scratch: Path, pool: int) -> dict[str, float]:
    """Compare an LPQLD folder with packed versions of the same labels.

    Args:
        scratch: folder to write to.
        pool: number of batches of the LPQLD folder.

    Returns:
        dict of the results `lpqld_*`, which the docstring of this module explains.
    """
    theirs = scratch / "lpqld"
    figures = {}
    write_lpqld(theirs, pool)
    for bits in (8, 4):
        target = scratch / f"lpqld_{bits}"
        with contextlib.redirect_stdout(io.StringIO()):
            words = ["pack", str(theirs), str(target), "--bits", str(bits), "--num-classes", str(CLASSES)]
            assert command.main(words) == 0
        figures[f"lpqld_bytes_{bits}bit"] = bytes_of(target) / bytes_of(theirs)
    store = open_labels(scratch / "lpqld_8")
    numbers = list(range(pool))
    store.random_access()
    fresh = iter([open_labels(scratch / "lpqld_8") for _ in range(20)])
    opening = median_ms(lambda i: next(fresh).open(0), 20) / store.batches_per_epoch
    for epoch in range(store.epochs):
        store.open(epoch)
    places = [divmod(number, store.batches_per_epoch) for number in numbers]
    random.Random(0).shuffle(places)
    random.Random(1).shuffle(numbers)
    load = median_ms(lambda i: torch.load(theirs / f"batch_{numbers[i % pool]}.tar", weights_only=False), 5 * pool)
    read = median_ms(lambda i: store.read(*places[i % pool]), 20 * pool)
    return figures | {
        "lpqld_torch_load_ms": load,
        "lpqld_read_ms": read,
        "lpqld_open_ms": opening,
        "lpqld_read_speedup": load / read,
        "lpqld_speedup_with_opening": load / (read + opening),
    }


def bytes_of(folder: Path) -> int:
    """Return the total size of the files in a folder, in bytes."""
    return sum(file.stat().st_size for file in folder.iterdir())


if __name__ == "__main__":
    main()
