"""Write small image sets in the layouts in which they are handed out, for tests and for fuzz.py."""

import csv
import gzip
import io
import json
import pickle
import struct
import tarfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image

from utils.data.images import load_image

NAMES = {10: ["airplane", "automobile", "bird"], 100: ["apple", "aquarium_fish", "baby", "bear"]}
WNIDS = ["n02119789", "n02100735", "n01440764"]  # ILSVRC2012_ID 1 and 2, and a third; not in sorted order


class OldPickler(pickle._Pickler):
    """Pickler that writes all strings as Python 2 did, as CIFAR's files have them."""

    def save_string(self, text):
        """Write bytes, or text in ASCII, as a string of Python 2."""
        data = text.encode("ascii") if isinstance(text, str) else text
        head = pickle.SHORT_BINSTRING + bytes([len(data)]) if len(data) < 256 else pickle.BINSTRING
        self.write(head + (b"" if len(data) < 256 else struct.pack("<i", len(data))) + data)
        self.memoize(text)

    dispatch: ClassVar = {**pickle._Pickler.dispatch, bytes: save_string, str: save_string}


def write_old_pickle(path, value):
    """Write a pickle as Python 2 with numpy 1 wrote it: protocol 2, strings of bytes, numpy.core."""
    with open(path, "w+b") as file:
        OldPickler(file, 2).dump(value)
        file.seek(0)
        content = file.read().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    Path(path).write_bytes(content)


def noise(count, *shape, seed=0):
    """Return random pixels: uint8 [count, *shape]."""
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def numbered_pixels(number, grey=False):
    """Return the pixels of the image with this number: uint8 [7, 9, 3], or [7, 9]."""
    return noise(1, 7, 9, *(() if grey else (3,)), seed=number)[0]


def numbered_file(number, kind="png", grey=False):
    """Return the bytes of an image file with `numbered_pixels`."""
    out = io.BytesIO()
    options = {"lossless": True} if kind == "webp" else {}
    Image.fromarray(numbered_pixels(number, grey)).save(out, {"jpg": "JPEG"}.get(kind, kind), **options)
    return out.getvalue()


def write_tar(path, files, kind=tarfile.USTAR_FORMAT):
    """Write a tar archive of (name, content); return its path."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w", format=kind) as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def image_column(first=0, grey=False, count=7):
    """Return a column of numbered images for `write_parquet`, as the Hugging Face hub has it."""
    return [{"bytes": numbered_file(first + number, grey=grey), "path": f"{number}.png"} for number in range(count)]


def write_parquet(path, columns, names=None, label="label", group=2, **options):
    """Write a table, and in its metadata the class names, as the library `datasets` does; return its path."""
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(exist_ok=True, parents=True)
    table = pyarrow.table(columns)
    if names is not None:
        features = {"image": {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pyarrow.parquet.write_table(table, path, row_group_size=group, **options)
    return path


def write_cifar(folder, version=10, per_file=4):
    """Write CIFAR-10 with three classes, or CIFAR-100 with four; return {part: (pixels [N, 32, 32, 3], labels)}."""
    folder.mkdir(parents=True)
    names = NAMES[version]
    if version == 10:
        files, meta = {**{f"data_batch_{n}": "train" for n in range(1, 6)}, "test_batch": "val"}, "batches.meta"
    else:
        files, meta = {"train": "train", "test": "val"}, "meta"
    key, label_names = ("labels", "label_names") if version == 10 else ("fine_labels", "fine_label_names")
    write_old_pickle(folder / meta, {label_names: names, "num_vis": 3072})
    written = {"train": ([], []), "val": ([], [])}
    for number, (name, part) in enumerate(files.items()):
        pixels = noise(per_file, 32, 32, 3, seed=number)
        labels = [(number + image) % len(names) for image in range(per_file)]
        data = pixels.transpose(0, 3, 1, 2).reshape(per_file, 3072)
        content = {key: labels, "data": data, "filenames": [f"{name}_{i}.png" for i in range(per_file)]}
        content |= {"coarse_labels": [0] * per_file} if version == 100 else {"batch_label": f"batch {number}"}
        write_old_pickle(folder / name, content)
        written[part][0].append(pixels)
        written[part][1].extend(labels)
    return {part: (np.concatenate(pixels), labels) for part, (pixels, labels) in written.items()}


def write_idx(folder, packed, count=6, size=(8, 7)):
    """Write MNIST's four files with three classes; return {part: (pixels [N, H, W], labels)}."""
    folder.mkdir(parents=True)
    written = {}
    for seed, (part, word) in enumerate({"train": "train", "val": "t10k"}.items()):
        pixels, labels = noise(count, *size, seed=seed), [(seed + 2 * image) % 3 for image in range(count)]
        images = struct.pack(">4B3I", 0, 0, 8, 3, *pixels.shape) + pixels.tobytes()
        numbers = struct.pack(">4BI", 0, 0, 8, 1, count) + bytes(labels)
        for name, data in ((f"{word}-images-idx3-ubyte", images), (f"{word}-labels-idx1-ubyte", numbers)):
            if packed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(data))
            else:
                (folder / name).write_bytes(data)
        written[part] = pixels, labels
    return written


def write_flat(folder, names, size=(9, 8)):
    """Write JPEG files of noise by these names in one folder."""
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        Image.fromarray(noise(1, *size, 3, seed=number)[0]).save(folder / name, "JPEG")


def imagenet_names(count=5):
    """Return the names of ImageNet's first validation images."""
    return [f"ILSVRC2012_val_{number:08}.JPEG" for number in range(1, count + 1)]


def write_kaggle(path, classes):
    """Write the table of Kaggle, in another order than the images'; `classes` has the class of each image."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ImageId", "PredictionString"])
        for name, wnid in reversed(list(zip(imagenet_names(len(classes)), classes, strict=True))):
            writer.writerow([name.removesuffix(".JPEG"), f"{wnid} 111 108 370 297 {wnid} 1 2 3 4 "])


def write_meta(path, wnids, compressed=False):
    """Write the kit's meta.mat, whose rows are in another order than the numbers."""
    from scipy.io import savemat

    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    rows = [(number, wnid, f"words of {wnid}", 0) for number, wnid in enumerate(wnids, 1)]
    savemat(
        path,
        {"other": [1.5], "synsets": np.array(list(reversed(rows)), dtype=kind)[:, None]},
        do_compression=compressed,
    )


def write_tiny_imagenet(folder):
    """Write Tiny-ImageNet with two classes; return {part: [(path in the part, class)]}."""
    classes = ["n01443537", "n01629819"]
    written = {"train": [], "val": []}
    for wnid in classes:
        names = [f"{wnid}_{number}.JPEG" for number in range(3)]
        write_flat(folder / "train" / wnid / "images", names)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{names[0]}\t0\t10\t63\t58\n")
        written["train"] += [(f"{wnid}/images/{name}", wnid) for name in names]
    names = [f"val_{number}.JPEG" for number in (0, 1, 10, 2)]
    write_flat(folder / "val" / "images", names)
    lines = [f"{name}\t{classes[place % 2]}\t0\t32\t44\t62\n" for place, name in enumerate(names)]
    (folder / "val" / "val_annotations.txt").write_text("".join(reversed(lines)))
    written["val"] = [(f"{name}", classes[place % 2]) for place, name in enumerate(names)]
    write_flat(folder / "test" / "images", ["test_0.JPEG"])
    (folder / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in reversed(classes)))
    return written


class Loaded(torch.utils.data.Dataset):
    """Data set that loads the images of a set, as tensors, in a worker process."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images.samples)

    def __getitem__(self, number):
        image = load_image(self.images.samples[number][0], self.images.channels)
        return image if isinstance(image, torch.Tensor) else torch.from_numpy(np.array(image))
