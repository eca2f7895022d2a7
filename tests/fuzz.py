"""Damage files in many ways and read them: each is read, or refused in one sentence.

    python tests/fuzz.py 20000            all kinds of file, in turn; `make fuzz`
    python tests/fuzz.py 500 --seed 7     another 500

Case n of a seed is always the same. Nothing may hang (10 s a case), end in a traceback or a crash, or
take memory (1 GB in all).
"""

import argparse
import importlib.util
import io
import json
import pickle
import resource
import shutil
import signal
import struct
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from image_layouts import (
    WNIDS,
    imagenet_names,
    write_cifar,
    write_flat,
    write_idx,
    write_kaggle,
    write_meta,
    write_parquet,
    write_tar,
)
from PIL import Image

from utils.data.image_sets import open_images
from utils.data.images import load_image
from utils.labels.batch_items import parse_items
from utils.labels.digests import ImageDigests, digest_of_archive
from utils.labels.formats import open_labels
from utils.labels.packed import PackedWriter
from utils.labels.packed_codec import Codec
from utils.labels.packed_manifest import make_manifest
from utils.labels.types import BatchLabels, Mix
from utils.labels.views import ViewPolicy
from utils.run.checkpoint import Progress, load_checkpoint, restore, save_checkpoint
from utils.system.errors import InputError
from utils.system.safe_load import load_archive
from utils.training.models import load_weights
from utils.training.optimizer import build_optimizer

SECONDS = 10
MEMORY = 2**30
EXTREMES = [-1, 0, 1, 2**31 - 1, 2**31, 2**63 - 1, 2**64, 10**30, -1e308, float("nan"), float("inf"), 0.5]
EXTREMES += ["", "../../etc/passwd", "x" * 10000, None, True, [], {}, [[]], {"a": 1}]


def flip_bytes(rng, data):
    """Change up to eight bytes."""
    data = bytearray(data)
    for place in rng.integers(len(data), size=rng.integers(1, 9)):
        data[place] = rng.integers(256)
    return bytes(data)


def truncate(rng, data):
    """Cut the end off."""
    return data[: rng.integers(len(data))]


def splice(rng, data):
    """Remove, double or move a piece."""
    start, end, to = sorted(rng.integers(len(data) + 1, size=3).tolist())
    return [data[:start] + data[end:], data[:end] + data[start:], data[:start] + data[end:to] + data[start:end]][
        rng.integers(3)
    ]


def overwrite_number(rng, data):
    """Put an extreme number somewhere, in 4 or 8 bytes."""
    number = struct.pack(*[("<I", 2**32 - 1), ("<q", -1), ("<Q", 2**63), ("<I", 0), ("<q", 2**40)][rng.integers(5)])
    place = int(rng.integers(max(1, len(data) - len(number))))
    return data[:place] + number + data[place + len(number) :]


def near_the_end(rng, data):
    """Damage the last 400 bytes, where a zip keeps its directory."""
    return data[:-400] + ANYWHERE[rng.integers(len(ANYWHERE))](rng, data[-400:])


ANYWHERE = [flip_bytes, truncate, splice, overwrite_number]


def rewrite_zip(rng, data):
    """Damage one record of a zip, and leave the zip itself sound."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        names = old.namelist()
        chosen = names[rng.integers(len(names))] if rng.random() < 0.3 else names[0]  # the first is data.pkl
        for name in names:
            record = old.read(name)
            if name == chosen and record:
                record = (damage_pickle if name.endswith(".pkl") else flip_bytes)(rng, record)
            compression = zipfile.ZIP_DEFLATED if rng.random() < 0.02 else zipfile.ZIP_STORED
            new.writestr(zipfile.ZipInfo(name), record, compression)
    return out.getvalue()


OPCODES = [getattr(pickle, name) for name in pickle.__all__ if name.isupper() and len(name) > 1]
OPCODES = [code for code in OPCODES if isinstance(code, bytes)]


def damage_pickle(rng, data):
    """Put opcodes into a pickle, or damage its bytes."""
    if rng.random() < 0.5:
        return ANYWHERE[rng.integers(len(ANYWHERE))](rng, data)
    for place in sorted(rng.integers(len(data), size=rng.integers(1, 4)).tolist(), reverse=True):
        opcode, skipped = OPCODES[rng.integers(len(OPCODES))], int(rng.integers(2))
        data = data[:place] + opcode + data[place + skipped :]
    return data


def damage_json(rng, data):
    """Replace, remove or add a value of a JSON object, at any depth."""
    value = json.loads(data)
    place = value
    while True:
        key = list(place)[rng.integers(len(place))]
        if not isinstance(place[key], dict) or not place[key] or rng.random() < 0.3:
            break
        place = place[key]
    new = EXTREMES[rng.integers(len(EXTREMES))]
    change = rng.integers(4)
    if change == 0:
        del place[key]
    elif change == 1:
        place[f"{key}{new}"[:100]] = new
    else:
        place[key] = new
    text = json.dumps(value)
    if change == 3:
        text = text.replace('"epochs"', '"epochs": ' + "[" * 20000 + ', "epochs"', 1)
    return text.encode()


def damage_table(rng, data):
    """Put signs into a text that its reader may take for the end of something."""
    signs = [b"\n", b"\r", b",", b"\t", b'"', b"\0", b" ", b"\xff", "²٣".encode(), b"9" * 5000, b"\x1c", b"-"]
    for place in rng.integers(len(data) + 1, size=rng.integers(1, 6)).tolist():
        data = data[:place] + signs[rng.integers(len(signs))] + data[place:]
    return data


def damage_header(rng, data):
    """Change the JSON header of a safetensors file, and keep its length right."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    tensor = header[list(header)[rng.integers(len(header))]]
    key = list(tensor)[rng.integers(len(tensor))]
    if isinstance(tensor[key], list) and tensor[key] and rng.random() < 0.7:
        tensor[key][rng.integers(len(tensor[key]))] = EXTREMES[rng.integers(len(EXTREMES))]
    else:
        types = ["F64", "F32", "F16", "I64", "I32", "BOOL", "U8", "F8_E4M3", "?"]
        tensor[key] = types[rng.integers(len(types))] if key == "dtype" else EXTREMES[rng.integers(len(EXTREMES))]
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def damage_tar(rng, data):
    """Change a header of a tar archive, and keep its checksum right."""
    places = [place for place in range(0, len(data), 512) if data[place + 257 : place + 262] == b"ustar"]
    place = places[rng.integers(len(places))]
    header = bytearray(data[place : place + 512])
    start, end = [(0, 100), (124, 136), (156, 157), (345, 500)][rng.integers(4)]  # name, size, type, prefix
    header[start:end] = [
        flip_bytes(rng, header[start:end]),
        rng.bytes(end - start),
        b"\x80" + rng.bytes(end - start - 1),
        b"\xff" * (end - start),
        bytes(rng.choice(list(b"0127gxLKS"), end - start)),
    ][rng.integers(5)]
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return data[:place] + bytes(header) + data[place + 512 :]


class Corpus:
    """One sound file of each kind, and how it is read.

    Args:
        folder: where files are written.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
        self.optimizer = build_optimizer(self.model, False, 0.1, 0.1)
        self.model(torch.randn(2, 4)).sum().backward()
        self.optimizer.step()
        self.scaler = torch.cuda.amp.GradScaler(enabled=False)
        archive, generic = [*ANYWHERE, near_the_end, rewrite_zip, rewrite_zip, rewrite_zip], ANYWHERE
        self.kinds = {
            "batch_0.tar": (self.make_labels, self.read_labels, archive),
            "edc/batch_0.tar": (self.make_edc_labels, self.read_labels, archive),
            "wmdd/batch_0.tar": (self.make_weighted_labels, self.read_labels, archive),
            "cutouts/batch_0.tar": (self.make_cutout_labels, self.read_labels, archive),
            "old_batch_0.tar": (self.make_old_labels, self.read_labels, [*generic, damage_pickle]),
            "checkpoint.pth.tar": (self.make_checkpoint, self.read_checkpoint, archive),
            "weights.pth": (self.make_weights, load_weights, archive),
            "old.pth": (self.make_old_weights, load_weights, [*generic, damage_pickle]),
            "weights.safetensors": (self.make_safetensors, load_weights, [*generic, damage_header]),
            "packed/epoch_0000.safetensors": (self.make_packed, self.read_packed, [*generic, damage_header]),
            "packed_v2/epoch_0000.safetensors": (self.make_old_packed, self.read_packed, [*generic, damage_header]),
            "held/epoch_0000.safetensors": (self.make_held, self.read_packed, [*generic, damage_header]),
            "held/manifest.json": (self.make_held, self.read_packed, [*generic, damage_json, damage_json]),
            "packed/manifest.json": (self.make_packed, self.read_packed, [*generic, damage_json, damage_json]),
            "drawn/manifest.json": (self.make_drawn, self.read_packed, [damage_json]),
            "drawn/images.safetensors": (self.make_drawn, self.read_packed, [*generic, damage_header]),
            "cifar/test_batch": (self.make_cifar, self.read_set, [*generic, damage_pickle, damage_pickle]),
            "cifar/batches.meta": (self.make_cifar, self.read_set, [*generic, damage_pickle]),
            "idx/t10k-images-idx3-ubyte": (self.make_idx, self.read_set, generic),
            "idx/t10k-labels-idx1-ubyte": (self.make_idx, self.read_set, generic),
            "idx_gz/t10k-images-idx3-ubyte.gz": (self.make_idx, self.read_set, generic),
            "kaggle/LOC_val_solution.csv": (self.make_kaggle, self.read_set, [*generic, damage_table]),
            "tiny/val_annotations.txt": (self.make_annotations, self.read_set, [*generic, damage_table]),
            "kit/ILSVRC2012_validation_ground_truth.txt": (self.make_kit, self.read_set, [*generic, damage_table]),
            "kit/synsets.txt": (self.make_kit, self.read_set, [*generic, damage_table]),
            "kit_mat/meta.mat": (self.make_kit, self.read_set, generic),
            "kit_zip/meta.mat": (self.make_kit, self.read_set, generic),
            "pair/images_best.pt": (self.make_pair, self.read_set, archive),
            "pair/labels_best.pt": (self.make_pair, self.read_set, archive),
            "old_pair/images_best.pt": (self.make_old_pair, self.read_set, [*generic, damage_pickle]),
            "res_DC.pt": (self.make_experiments, self.read_file, archive),
            "npy/images.npy": (self.make_arrays, self.read_file, generic),
            "npy/labels.npy": (self.make_arrays, self.read_set, generic),
            "arrays.npz": (self.make_npz, self.read_file, archive),
            "arrays.safetensors": (self.make_named, self.read_file, [*generic, damage_header]),
            "shard.tar": (self.make_shard, self.read_file, [*generic, damage_tar, damage_tar]),
            "image.png": (self.make_image, load_image, generic),
            "image.jpg": (self.make_image, load_image, generic),
        }
        if importlib.util.find_spec("pyarrow") is not None:
            self.kinds["table.parquet"] = self.make_table, self.read_file, [*generic, near_the_end]
        self.sound = {}
        for name, (make, read, _) in self.kinds.items():
            path = self.folder / name
            path.parent.mkdir(exist_ok=True)
            make(path)
            read(path)
            self.sound[name] = path.read_bytes()

    def labels(self, rows=3):
        """Return a small batch of cutmix labels."""
        coords = torch.tensor([[0.0, 0.0, 1.0, 1.0]] * rows)
        flip, logits = torch.zeros(rows, dtype=torch.bool), torch.randn(rows, 4)
        return BatchLabels(coords, flip, Mix(torch.arange(rows), 0.5, (1, 2, 3, 4)), logits, torch.arange(rows))

    def items(self):
        """The seven items of this batch."""
        labels = self.labels()
        return [labels.coords, labels.flip, *labels.mix, labels.logits, labels.index]

    def make_labels(self, path):
        """Write a 7-item file with a numpy number, like the reference code."""
        items = self.items()
        torch.save([*items[:4], [np.int64(1), 2, 3, 4], *items[5:]], path)

    def make_edc_labels(self, path):
        """Write an 8-item file of EDC."""
        torch.save([*self.items(), torch.zeros(3, 2, 2, dtype=torch.int32)], path)

    def cutouts(self):
        """Return coloured cutouts of three rows: float32 [3, 7]."""
        return torch.tensor([[0.5, 0.25, 0.5, 0.5, 0, 100, 255]] * 3)

    def make_weighted_labels(self, path):
        """Write a 7-item file of WMDD."""
        torch.save([*self.items()[:6], torch.rand(3, dtype=torch.float64)], path)

    def make_cutout_labels(self, path):
        """Write a 6-item file of LPLD for ImageNet-21K."""
        coords, _, *_, logits, _ = self.items()
        torch.save([coords.half(), self.cutouts(), None, None, None, logits.half()], path)

    def make_old_labels(self, path):
        """Write the same file in the format of PyTorch before 1.6."""
        torch.save(self.items(), path, _use_new_zipfile_serialization=False)

    def read_labels(self, path):
        """Read a batch file like a label store."""
        parse_items(load_archive(path), path).weighted()
        digest_of_archive(path)

    def make_checkpoint(self, path):
        """Write a checkpoint of a very small model."""
        save_checkpoint(path, Progress(history=[{"epoch": 0}]), self.model, self.optimizer, self.scaler, {})

    def read_checkpoint(self, path):
        """Load a checkpoint like --resume."""
        restore(load_checkpoint(path, {}), self.model, self.optimizer, self.scaler)

    def make_weights(self, path):
        """Write a state dict."""
        torch.save({"state_dict": self.model.state_dict()}, path)

    def make_old_weights(self, path):
        """Write a state dict in the format of PyTorch before 1.6."""
        torch.save(self.model.state_dict(), path, _use_new_zipfile_serialization=False)

    def make_safetensors(self, path):
        """Write a state dict in safetensors."""
        from safetensors.torch import save_file

        save_file(self.model.state_dict(), path)

    def make_packed(self, path):
        """Write a packed store of one epoch and three images."""
        self.write_packed(path.parent, Codec(8, 2))

    def make_old_packed(self, path):
        """Write a packed store of version 2."""
        stored = Path(__file__).parent / "data" / "packed_v2" / "top3_8"
        shutil.copytree(stored, path.parent, dirs_exist_ok=True)

    def make_held(self, path):
        """Write a packed store with weights and cutouts."""
        self.write_packed(path.parent, Codec(16), has_weights=True, has_cutouts=True)

    def make_drawn(self, path):
        """Write the same store with views that are drawn again instead of stored."""
        self.write_packed(path.parent, Codec(16, None, "drawn"))

    def write_packed(self, folder, codec, **held):
        """Write a packed store, unless it is there. `held`: entries of the manifest."""
        if not (folder / "manifest.json").exists():
            policy = ViewPolicy(42, 8, 0.1, 1.0, "cutmix", 0.8, 1.0)
            manifest = make_manifest(codec, 3, 4, 3, 1, "cutmix", True, {"class_names": "0"}, policy, **held)
            sizes = torch.full((3, 2), 8) if codec.views == "drawn" else None
            digests = ImageDigests(*torch.zeros(2, 3, 8, dtype=torch.uint8))
            PackedWriter(folder, manifest, sizes, image_digests=digests).write(
                0, [replace(self.labels(), weights=torch.rand(3, dtype=torch.float64), augment=self.cutouts())]
            )

    def read_packed(self, path):
        """Read a packed store like training: open, describe, read one batch of the first epoch and its views."""
        store = open_labels(path.parent)
        store.provenance(), store.digest(), store.class_names, store.class_list
        if store.image_digests is not None:
            store.image_digests.digest()
        labels = store.read(0, 0).weighted()
        labels.view(len(labels) - 1, (8, 8))

    def make_cifar(self, path):
        """Write CIFAR-10 with one image per file, unless it is there."""
        if not list(path.parent.iterdir()):
            path.parent.rmdir()
            write_cifar(path.parent, per_file=1)

    def make_idx(self, path):
        """Write MNIST's files, unless they are there."""
        if not list(path.parent.iterdir()):
            path.parent.rmdir()
            write_idx(path.parent, path.suffix == ".gz")

    def make_flat(self, path):
        """Write the images of ImageNet's validation set beside a table."""
        if not list(path.parent.iterdir()):
            path.parent.rmdir()
            write_flat(path.parent, imagenet_names())

    def make_kaggle(self, path):
        """Write Kaggle's table of these images."""
        self.make_flat(path)
        write_kaggle(path, [WNIDS[number % 3] for number in range(5)])

    def make_annotations(self, path):
        """Write Tiny-ImageNet's table of these images."""
        self.make_flat(path)
        path.write_text("".join(f"{name}\t{WNIDS[0]}\t0\t32\t44\t62\n" for name in imagenet_names()))

    def make_kit(self, path):
        """Write the development kit's numbers and list of classes."""
        self.make_flat(path)
        (path.parent / "ILSVRC2012_validation_ground_truth.txt").write_text("3\n1\n2\n2\n1\n")
        if path.suffix == ".mat":
            write_meta(path, WNIDS, path.parent.name == "kit_zip")
        else:
            (path.parent / "synsets.txt").write_text("".join(f"{wnid}\n" for wnid in WNIDS))

    def read_set(self, path):
        """Open the validation part of an image set, and load its images."""
        found = open_images(path.parent, "--val-dir", "val")
        for image, _ in found.samples:
            load_image(image, found.channels)

    def read_file(self, path):
        """Open an image set in one file, and load its images."""
        found = open_images(path, "--val-dir", "val")
        for image, _ in found.samples:
            load_image(image, found.channels)

    def tensors(self):
        """Return images and probabilities: (float32 [3, 3, 4, 4], float32 [3, 4])."""
        return torch.randn(3, 3, 4, 4), torch.randn(3, 4).softmax(1)

    def make_pair(self, path, **options):
        """Write a set of tensors as MTT does, unless it is there."""
        if not list(path.parent.iterdir()):
            for name, tensor in zip(("images", "labels"), self.tensors(), strict=True):
                torch.save(tensor, path.parent / f"{name}_best.pt", **options)

    def make_old_pair(self, path):
        """Write the same in the format of PyTorch before 1.6."""
        self.make_pair(path, _use_new_zipfile_serialization=False)

    def make_experiments(self, path):
        """Write the sets of two experiments, like DC."""
        pairs = [[self.tensors()[0], torch.tensor([0, 1, 2])] for _ in range(2)]
        torch.save({"data": pairs, "accs_all_exps": {"ConvNet": [np.float64(0.5)]}}, path)

    def make_arrays(self, path):
        """Write images.npy and labels.npy, unless they are there."""
        if not list(path.parent.iterdir()):
            for name, tensor in zip(("images", "labels"), self.tensors(), strict=True):
                np.save(path.parent / f"{name}.npy", tensor.numpy())

    def make_npz(self, path):
        """Write 8-bit images and their classes with numpy."""
        np.savez_compressed(path, images=np.arange(144, dtype=np.uint8).reshape(3, 4, 4, 3), labels=np.arange(3))

    def make_named(self, path):
        """Write images and soft labels in safetensors."""
        from safetensors.torch import save_file

        save_file(dict(zip(("images", "labels"), self.tensors(), strict=True)), path)

    def image_bytes(self):
        """Return the bytes of a small image file."""
        out = io.BytesIO()
        Image.fromarray(np.arange(144, dtype=np.uint8).reshape(6, 8, 3)).save(out, "PNG")
        return out.getvalue()

    def make_shard(self, path):
        """Write a webdataset shard, one of whose names is long."""
        sample = {"png": self.image_bytes(), "cls": b"2"}
        names = ("a", "b", "c" * 150)
        files = [(f"{name}.{suffix}", content) for name in names for suffix, content in sample.items()]
        write_tar(path, files, tarfile.PAX_FORMAT)

    def make_table(self, path):
        """Write a parquet table with names of classes."""
        images = [{"bytes": self.image_bytes(), "path": "a"}] * 5
        write_parquet(path, {"image": images, "label": [0, 1, 2, 1, 0]}, ["a", "b", "c"])

    def make_image(self, path):
        """Write a small image."""
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)).save(path)

    def run_case(self, seed, number):
        """Damage and read one file; return whether it was refused. Any other error is raised."""
        rng = np.random.default_rng((seed, number))
        name = list(self.kinds)[number % len(self.kinds)]
        _, read, mutators = self.kinds[name]
        data = mutators[rng.integers(len(mutators))](rng, self.sound[name])
        path = self.folder / name
        path.write_bytes(data)
        try:
            read(path)
            return False
        except InputError as error:
            sentence = str(error)
        finally:
            path.write_bytes(self.sound[name])
        assert "\n" not in sentence, f"more than one line: {sentence}"
        assert any(word in sentence for word in (path.name, path.parent.name, "--resume")), sentence
        return True


def fuzz(count, seed, folder):
    """Run `count` cases; return (number refused, list of (case, kind, error) that ended otherwise)."""

    def too_long(*_):
        raise TimeoutError(f"more than {SECONDS} s")

    corpus, refused, findings = Corpus(folder), 0, []
    previous = signal.signal(signal.SIGALRM, too_long)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        for number in range(count):
            signal.alarm(SECONDS)
            try:
                refused += corpus.run_case(seed, number)
            except Exception as error:
                kind = list(corpus.kinds)[number % len(corpus.kinds)]
                findings.append((number, kind, f"{type(error).__name__}: {error}"[:300]))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    if grown > MEMORY:
        findings.append((count, "memory", f"{grown / 1e6:.0f} MB"))
    return refused, findings


def main():
    """Run the cases that the command line asks for; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        refused, findings = fuzz(args.count, args.seed, folder)
    for finding in findings[:40]:
        print(*finding)
    print(f"{args.count} damaged files: {refused} refused, {len(findings)} unclear")
    return bool(findings)


if __name__ == "__main__":
    sys.exit(main())
