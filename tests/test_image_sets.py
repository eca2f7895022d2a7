"""Image sets of every layout give the right number, classes, pixels, names and parts; wrong ones get one sentence."""

import json
import os
import pickle
import runpy
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import LIGHT, ROOT, Command, make_images, run, save_teacher
from image_layouts import (
    NAMES,
    WNIDS,
    imagenet_names,
    noise,
    write_cifar,
    write_flat,
    write_idx,
    write_kaggle,
    write_meta,
    write_old_pickle,
    write_tiny_imagenet,
)
from PIL import Image

import train_KD_parallel
from utils import images as image_command
from utils.data.identity import identify
from utils.data.image_sets import open_images
from utils.data.images import Container, ImageSet, Member, image_size, load_image, read_image
from utils.data.write import class_folders, name_files
from utils.report import random_images
from utils.system.errors import InputError

FASHION = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist lies


def pixels_of(found, channels=3):
    """Return the pixels of all images: uint8 [N, H, W, channels], or [N, H, W] for one channel."""
    return np.stack([np.asarray(load_image(image, channels)) for image, _ in found.samples])


def named(found):
    """Return (file name, name of the class) of every image of a set of files."""
    return [(os.path.basename(path), found.classes[target]) for path, target in found.samples]


def refused(message, *words, **options):
    """Check that a set is refused in one sentence that matches `message`."""
    with pytest.raises(InputError, match=message) as caught:
        open_images(*words, **options)
    assert "\n" not in str(caught.value)
    assert ";" in str(caught.value)  # the remedy


@pytest.mark.parametrize("version", [10, 100])
@pytest.mark.parametrize("place", ["folder", "root"])
def test_cifar(version, place, tmp_path, program_log):
    """Both parts have the pixels, the classes and the order of the pickles."""
    folder = tmp_path / {10: "cifar-10-batches-py", 100: "cifar-100-python"}[version]
    written = write_cifar(folder, version)
    path = folder if place == "folder" else tmp_path
    for part, flag in (("train", "--train-dir"), ("val", "--val-dir")):
        pixels, labels = written[part]
        found = open_images(path, flag, part)
        assert (found.classes, found.targets, found.named, found.channels) == (NAMES[version], labels, True, 3)
        assert (pixels_of(found) == pixels).all()
        assert image_size(found.samples[1][0]) == (32, 32)
        assert len({str(image) for image, _ in found.samples}) == len(labels)
    assert f"images  {folder} holds a train and a test part: --train-dir takes the train part" in program_log.text
    assert f"images  {folder} holds a train and a test part: --val-dir takes the test part" in program_log.text
    assert f"images  --val-dir {path}: CIFAR-{version} in Python pickles" in program_log.text


def test_cifar_written_by_python_3(tmp_path):
    """A pickle that was loaded with encoding="bytes" and written again is read like the original."""
    pixels, labels = write_cifar(tmp_path / "set")["val"]
    data = pixels.transpose(0, 3, 1, 2).reshape(-1, 3072)
    for protocol in (2, 4):
        content = {b"labels": labels, b"data": np.asfortranarray(data) if protocol == 4 else data}
        (tmp_path / "set" / "test_batch").write_bytes(pickle.dumps(content, protocol))
        assert (pixels_of(open_images(tmp_path / "set", "--val-dir", "val")) == pixels).all()


@pytest.mark.parametrize("name", ["test_batch", "batches.meta"])
def test_a_malicious_pickle_is_refused(name, tmp_path):
    """The sentence names the function, which does not run."""
    write_cifar(tmp_path / "set")
    (tmp_path / "set" / name).write_bytes(pickle.dumps({b"data": Command(tmp_path / "ran")}, 2))
    refused(f"{name} is refused: .*system", tmp_path / "set", "--val-dir", "val")
    assert not (tmp_path / "ran").exists()


def test_damaged_cifar(tmp_path):
    """Each missing, malformed or inconsistent file is named."""
    folder = tmp_path / "set"
    pixels, _ = write_cifar(folder)["val"]
    data = pixels.transpose(0, 3, 1, 2).reshape(-1, 3072)
    for content, words in (
        ([1], "test_batch does not hold images and labels of CIFAR-10"),
        ({"data": data, "fine_labels": [0] * 4}, "test_batch does not hold images and labels"),
        ({"data": data, "labels": [0] * 3}, "32 x 32 pixels, one for each of 3 labels"),
        ({"data": data.astype(np.int64), "labels": [0] * 4}, "32 x 32 pixels"),
        ({"data": data[:, :100], "labels": [0] * 4}, "32 x 32 pixels"),
        ({"data": data, "labels": [0, 1, 2, 3]}, "a label that is none of its 3 classes"),
        ({"data": data, "labels": [0, 1, 2, -1]}, "a label that is none of its 3 classes"),
        ({"data": data, "labels": [0, 1, 2, 0.0]}, "a label that is none of its 3 classes"),
        ({"data": data[:0], "labels": []}, "holds no images"),
    ):
        write_old_pickle(folder / "test_batch", content)
        refused(words, folder, "--val-dir", "val")
    (folder / "test_batch").write_bytes((folder / "data_batch_1").read_bytes()[:2000])
    refused("test_batch is damaged or not a pickle", folder, "--val-dir", "val")
    for content, words in (
        ({"label_names": ["a", "a", "b"]}, "names a class twice"),
        ({"label_names": []}, "names no classes"),
        ({}, "names no classes"),
    ):
        write_old_pickle(folder / "batches.meta", content)
        refused(f"batches.meta {words}", folder, "--train-dir")
    (folder / "data_batch_3").unlink()
    write_old_pickle(folder / "batches.meta", {"label_names": ["a", "b", "c"]})
    refused("data_batch_3 is missing", folder, "--train-dir")


def test_cifar_that_must_be_unpacked_or_chosen(tmp_path):
    """An archive and a folder with both versions get a sentence of their own."""
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"")
    for path in (tmp_path, tmp_path / "cifar-10-python.tar.gz"):
        refused(r"cifar-10-python.tar.gz is packed; unpack it with tar -xzf", path, "--train-dir")
    write_cifar(tmp_path / "cifar-10-batches-py")
    write_cifar(tmp_path / "cifar-100-python", 100)
    refused("holds CIFAR-10 and CIFAR-100; give one of", tmp_path, "--train-dir")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("place", [".", "raw", "FashionMNIST/raw"])
def test_idx_files(place, packed, tmp_path, program_log):
    """Plain and gzipped files, as torchvision and Debian lay them out: grey pixels, numbers as classes."""
    written = write_idx(tmp_path / "set" / place, packed)
    for part, flag in (("train", "--train-dir"), ("val", "--val-dir")):
        pixels, labels = written[part]
        found = open_images(tmp_path / "set", flag, part)
        assert (found.classes, found.targets, found.named, found.channels) == (["0", "1", "2"], labels, False, 1)
        assert (pixels_of(found, 1) == pixels).all()
        assert (pixels_of(found) == pixels[..., None]).all()
        assert image_size(found.samples[0][0]) == (7, 8)
    assert "holds a train and a test part: --val-dir takes the test part" in program_log.text
    suffix = ".gz" if packed else ""
    found = open_images(tmp_path / "set" / place / f"t10k-images-idx3-ubyte{suffix}", "--train-dir")
    assert (pixels_of(found, 1) == written["val"][0]).all()


def test_damaged_idx_files(tmp_path):
    """Each missing or damaged file is named, and a header that claims too much takes no memory."""
    folder = tmp_path / "set"
    write_idx(folder, False)
    images, labels = folder / "train-images-idx3-ubyte", folder / "train-labels-idx1-ubyte"
    sound, numbers = images.read_bytes(), labels.read_bytes()
    for content, words in (
        (b"", "does not begin like an idx file"),
        (sound[:3] + b"\1" + sound[4:], "does not begin like an idx file of bytes with 3 dimensions"),
        (sound[:2] + b"\x0d" + sound[3:], "does not begin like an idx file of bytes"),
        (sound[:-1], "fewer than the 336 values"),
        (sound + b"\0", "more than the 336 values"),
        (sound[:4] + b"\xff" * 12, "more than a file of this size can hold"),
        (sound[:4] + struct.pack(">3I", 0, 8, 7), " holds no images"),
    ):
        images.write_bytes(content)
        refused(f"train-images-idx3-ubyte.*{words}", folder, "--train-dir")
    images.write_bytes(sound)
    labels.write_bytes(numbers[:4] + struct.pack(">I", 5) + numbers[8:-1])
    refused("holds 6 images, but 5 labels", folder, "--train-dir")
    labels.unlink()
    refused("has no labels; copy train-labels-idx1-ubyte or", folder, "--train-dir")
    images.unlink()
    refused("holds no train-images-idx3-ubyte", folder, "--train-dir")
    for name in ("MNIST", "KMNIST"):
        write_idx(tmp_path / "both" / name / "raw", True)
    refused("holds several sets; give one of .*KMNIST/raw, .*MNIST/raw", tmp_path / "both", "--train-dir")
    packed = tmp_path / "both" / "MNIST" / "raw" / "train-images-idx3-ubyte.gz"
    packed.write_bytes(packed.read_bytes()[:-20])
    refused("train-images-idx3-ubyte.gz is damaged", packed, "--train-dir")
    packed.write_bytes(b"no gzip")
    refused("train-images-idx3-ubyte.gz cannot be read", packed, "--train-dir")


@pytest.mark.skipif(not FASHION.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_fashion_mnist_of_debian():
    """The real files have 60,000 and 10,000 images, of which the first ones are known."""
    train, val = open_images(FASHION, "--train-dir"), open_images(FASHION, "--val-dir", "val")
    assert (len(train.samples), len(val.samples), len(train.classes)) == (60000, 10000, 10)
    assert train.targets[:10] == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    assert val.targets[:10] == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]
    mean = np.mean([np.asarray(load_image(image, 1)).mean() for image, _ in train.samples[::60]]) / 255
    assert mean == pytest.approx(0.286, abs=0.01)


@pytest.mark.parametrize("place", ["beside", "above", "flag"])
def test_imagenet_with_kaggles_table(place, tmp_path, program_log):
    """Each image gets the class of its line, whatever the order of the lines."""
    folder = tmp_path / "data" / "val"
    write_flat(folder, imagenet_names())
    classes = [WNIDS[number] for number in (0, 1, 2, 1, 0)]
    table = {"beside": folder, "above": tmp_path / "data", "flag": tmp_path}[place] / "LOC_val_solution.csv"
    write_kaggle(table, classes)
    found = open_images(folder, "--val-dir", "val", labels=str(table) if place == "flag" else None)
    assert named(found) == list(zip(imagenet_names(), classes, strict=True))
    assert found.classes == sorted(WNIDS)
    assert f"images in one folder, with the classes of {table}" in program_log.text


@pytest.mark.parametrize("kind", ["meta.mat", "compressed meta.mat", "map_clsloc.txt", "synsets.txt"])
@pytest.mark.parametrize("place", ["beside", "kit above", "flag"])
def test_imagenet_with_the_development_kit(place, kind, tmp_path):
    """The numbers of the kit are ILSVRC2012_ID, in the kit's order and not in the sorted one."""
    folder = tmp_path / "val"
    write_flat(folder, imagenet_names())
    kit = folder if place == "beside" else tmp_path / "ILSVRC2012_devkit_t12" / "data"
    kit.mkdir(parents=True, exist_ok=True)
    truth = kit / "ILSVRC2012_validation_ground_truth.txt"
    truth.write_text("3\n1\n2\n2\n1\n")
    lines = {"map_clsloc.txt": "{} {} words\n", "synsets.txt": "{}\n"}
    compressed, kind = kind.startswith("compressed"), kind.split()[-1]
    if kind == "meta.mat":
        pytest.importorskip("scipy.io")
        write_meta(kit / kind, WNIDS, compressed)
    else:
        (kit / kind).write_text("".join(lines[kind].format(wnid, n) for n, wnid in enumerate(WNIDS, 1)))
    expected = list(zip(imagenet_names(), [WNIDS[number - 1] for number in (3, 1, 2, 2, 1)], strict=True))
    for labels in (truth, kit / kind) if place == "flag" else (None,):
        found = open_images(folder, "--val-dir", "val", labels=labels and str(labels))
        assert named(found) == expected
    for name in imagenet_names()[:2]:  # a subset of the images keeps its lines
        (folder / name).unlink()
    assert named(open_images(folder, "--val-dir", "val")) == expected[2:]


def test_a_sorted_list_of_classes_is_not_the_kits(tmp_path):
    """The numbers of the kit do not count sorted classes, so that a sorted list would give wrong classes."""
    write_flat(tmp_path / "val", imagenet_names(2))
    (tmp_path / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n2\n")
    refused("the names of the classes are missing; put one of meta.mat", tmp_path / "val", "--val-dir", "val")
    (tmp_path / "synsets.txt").write_text("".join(f"{wnid}\n" for wnid in sorted(WNIDS)))
    refused("synsets.txt lists the classes in sorted order", tmp_path / "val", "--val-dir", "val")
    mapping = tmp_path / "LOC_synset_mapping.txt"
    mapping.write_text("".join(f"{wnid} word, other word\n" for wnid in sorted(WNIDS)))
    refused("LOC_synset_mapping.txt lists the classes in", tmp_path / "val", "--val-dir", "val", labels=str(mapping))


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("b.jpg,two\na.jpg,one\nc.jpg,one\n", ["one", "two", "one"]),
        ('file,class\nx/a.jpg,"tench, Tinca"\nb,two\nc.jpg,two\n', ["tench, Tinca", "two", "two"]),
        ("a.jpg\tone fish\t1\t2\r\nb.jpg\ttwo\r\nc.jpg\ttwo\r\nelse.jpg\ttwo\r\n", ["one fish", "two", "two"]),
        ("\ufeffval/a.jpg 10\nval/b.jpg 9\nval/c.jpg 10\n", ["10", "9", "10"]),
        ("one\ntwo\none\n", ["one", "two", "one"]),
        ("7\n10\n7\n", ["7", "10", "7"]),
    ],
)
def test_other_tables(text, classes, tmp_path):
    """Commas, tabs and spaces; with a header, folders, quotes, other images; or one class a line."""
    write_flat(tmp_path / "val", ["a.jpg", "b.jpg", "c.jpg"])
    (tmp_path / "table").write_text(text, encoding="utf-8")
    found = open_images(tmp_path / "val", "--val-dir", "val", labels=str(tmp_path / "table"))
    assert named(found) == list(zip(["a.jpg", "b.jpg", "c.jpg"], classes, strict=True))
    by_value = text[-2:] == "7\n" or "10" in text
    assert found.classes == (sorted(set(classes), key=int) if by_value else sorted(set(classes)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "table is empty"),
        (b"a.jpg,1\nb.jpg,2\n", r"gives no class for 1 of 3 images in .* \(c.jpg\)"),
        (b"a.jpg,1\na.jpg,2\nb.jpg,1\nc.jpg,2\n", "gives a.jpg two classes, 1 and 2"),
        (b"a.jpg,1\nb.jpg\nc.jpg,1\n", "the line 'b.jpg' has no class; give lines FILE<tab>CLASS"),
        (b"a.jpg,1\nb.jpg,\nc.jpg,1\n", "the line 'b.jpg,' has no class"),
        (b'a.jpg,"1\nb.jpg,1\nc.jpg,1\n', "has a damaged line"),
        (b"a.jpg\0,1", "not a text file"),
        (b"one\ntwo\n", "lists only the names of classes, and no file gives the classes of the images"),
        (None, "table cannot be read"),
    ],
)
def test_tables_that_do_not_fit(text, words, tmp_path):
    """One sentence names the table and what is wrong."""
    write_flat(tmp_path / "val", ["a.jpg", "b.jpg", "c.jpg"])
    if text is not None:
        (tmp_path / "table").write_bytes(text)
    refused(words, tmp_path / "val", "--val-dir", "val", labels=str(tmp_path / "table"))


def test_numbers_of_the_kit_that_do_not_fit(tmp_path):
    """Too few lines, unknown classes, words, and images that do not say their number."""
    folder, truth = tmp_path / "val", tmp_path / "ILSVRC2012_validation_ground_truth.txt"
    write_flat(folder, imagenet_names(3))
    (tmp_path / "synsets.txt").write_text("b\na\n")
    for text, words in (
        ("1\n2\n", "has 2 lines, none of them for ILSVRC2012_val_00000003.JPEG"),
        ("1\n2\n3\n", "synsets.txt does not name class 3 of"),
        ("1\n2\n0\n", "synsets.txt does not name class 0 of"),
    ):
        truth.write_text(text)
        refused(words, folder, "--val-dir", "val")
    (folder / "other.JPEG").write_bytes((folder / imagenet_names(1)[0]).read_bytes())
    truth.write_text("1\n2\n1\n")
    refused("has 3 lines, but there are 4 images, which are not named ILSVRC2012_val", folder, "--val-dir", "val")
    (tmp_path / "meta.mat").write_bytes(b"MATLAB 5.0 MAT-file" + b"\0" * 200)
    refused("meta.mat is damaged, or not of the kit", folder, "--val-dir", "val")


def test_labels_for_folders_of_classes(tmp_path):
    """--val-labels with class folders would be without effect."""
    make_images(tmp_path / "val")
    (tmp_path / "table").write_text("a.jpg,1\n")
    refused("leave --val-labels out", tmp_path / "val", "--val-dir", "val", labels=str(tmp_path / "table"))


@pytest.mark.parametrize("place", [".", "val", "val/images"])
def test_tiny_imagenet(place, tmp_path, program_log):
    """The root gives either part; the files of boxes are skipped without a word."""
    written = write_tiny_imagenet(tmp_path / "tiny")
    if place == ".":
        train = open_images(tmp_path / "tiny", "--train-dir")
        names = [(os.path.relpath(path, train.root), train.classes[target]) for path, target in train.samples]
        assert names == written["train"]
        assert "holds a train and a val part: --train-dir takes the train part" in program_log.text
    val = open_images(tmp_path / "tiny" / place, "--val-dir", "val")
    assert named(val) == sorted(written["val"])
    assert "skipped" not in program_log.text


@pytest.mark.parametrize("other", ["val", "validation", "test"])
def test_a_root_with_parts(other, tmp_path, program_log):
    """ImageNette's root: `train` and `val` are parts and not classes."""
    make_images(tmp_path / "root" / "train", seed=1)
    make_images(tmp_path / "root" / other, per_class=1, seed=2)
    for part, name in (("train", "train"), ("val", other)):
        found = open_images(tmp_path / "root", "--flag", part)
        assert found.samples == open_images(tmp_path / "root" / name, "--flag").samples
        assert found.classes == ["class_0", "class_1", "class_2"]
        assert f"holds a train and a {other} part: --flag takes the {name} part" in program_log.text


def test_classes_called_train_and_val(tmp_path):
    """With images in it, `train` is a class (of vehicles, for instance), and so is a folder without the other part."""
    for name in ("train", "val"):
        write_flat(tmp_path / "both" / name, ["0.jpg"])
    assert open_images(tmp_path / "both", "--train-dir").classes == ["train", "val"]
    make_images(tmp_path / "one" / "train")
    assert open_images(tmp_path / "one", "--train-dir").classes == ["train"]


def test_imagenets_root(tmp_path):
    """Class folders for training, images in one folder for validation, and the table beside both."""
    make_images(tmp_path / "train")
    write_flat(tmp_path / "val", imagenet_names(2))
    write_kaggle(tmp_path / "LOC_val_solution.csv", WNIDS[:2])
    assert len(open_images(tmp_path, "--train-dir").samples) == 12
    assert named(open_images(tmp_path, "--val-dir", "val")) == list(zip(imagenet_names(2), WNIDS[:2], strict=True))


def test_places_without_a_known_layout(tmp_path):
    """The sentence says what was found and what is taken."""
    refused("--train-dir None does not exist", None, "--train-dir")
    refused("none does not exist; give a folder with one sub-folder", tmp_path / "none", "--train-dir")
    (tmp_path / "notes.txt").write_text("")
    refused("notes.txt is a file of a layout that is not known; .*docs/images.md", tmp_path / "notes.txt", "--data")
    refused(r"holds no layout that is known \(notes.txt\)", tmp_path, "--train-dir")
    (tmp_path / "empty").mkdir()
    refused("empty holds nothing", tmp_path / "empty", "--train-dir")
    write_flat(tmp_path / "loose", ["a.jpg"])
    refused("holds images, but no sub-folders and no table .*val_annotations.txt", tmp_path / "loose", "--val-dir")


def test_grey_folders(tmp_path):
    """A folder of grey files has one channel; one coloured file makes three."""
    for number in range(3):
        path = tmp_path / "set" / "a" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(1, 8, 8, seed=number)[0]).save(path)
    assert open_images(tmp_path / "set", "--train-dir").channels == 1
    Image.fromarray(noise(1, 8, 8, 3)[0]).save(path)
    assert open_images(tmp_path / "set", "--train-dir").channels == 3


def facts_of(*words):
    """Run `python -m utils.images info`; return its lines as a dict."""
    result = run(image_command, "info", *words)
    assert result.code == 0, result.err
    lines = [line for line in result.out.splitlines() if line.startswith(" ")]
    return {line[:12].strip(): line[14:] for line in lines}


def converted(source, target, part):
    """Convert a set and open the result; return (source, result)."""
    result = run(image_command, "convert", source, target, "--part", part)
    assert result.code == 0, result.err
    return open_images(source, "--flag", part), open_images(target, "--flag")


def test_cifar_as_folders(tmp_path):
    """PNG files have the same pixels in the same classes; the digests of the pixels agree."""
    write_cifar(tmp_path / "set")
    for part, images in (("train", 20), ("val", 4)):
        source, folders = converted(tmp_path / "set", tmp_path / part, part)
        in_order = sorted(source.samples, key=lambda sample: sample[1])  # folders are read class by class
        assert len(folders.samples) == images
        assert folders.classes == source.classes
        assert [target for _, target in in_order] == folders.targets
        assert torch.equal(identify(in_order).pixels, identify(folders.samples).pixels)
        before, after = facts_of(tmp_path / "set", "--part", part), facts_of(tmp_path / part)
        assert before["content"] == after["content"]
        assert (before["mean"], before["range"]) == (after["mean"], after["range"])
    assert before["classes"] == "3: airplane, automobile, bird"
    assert (before["images"], before["sizes"], before["per class"]) == ("4", "32 x 32", "1 to 2")


def test_idx_files_as_folders(tmp_path):
    """Grey images stay grey; classes get their numbers as names; facts are computed from the right values."""
    written = write_idx(tmp_path / "set", True)
    source, folders = converted(tmp_path / "set", tmp_path / "folders", "train")
    assert (folders.classes, folders.channels) == (["0", "1", "2"], 1)
    with Image.open(folders.samples[0][0]) as image:
        assert image.mode == "L"
    in_order = sorted(source.samples, key=lambda sample: sample[1])
    assert torch.equal(identify(in_order).pixels, identify(folders.samples).pixels)
    facts, values = facts_of(tmp_path / "set"), written["train"][0] / 255
    assert facts["content"] == facts_of(tmp_path / "folders")["content"]
    assert (facts["mean"], facts["std"]) == (f"{values.mean():.4f}", f"{values.std():.4f}")
    assert (facts["classes"], facts["channels"], facts["soft labels"]) == ("3: numbers, without names", "1", "none")
    assert facts["layout"] == "idx files (MNIST's format)"
    assert "8 bits" in facts["values"]


def test_files_are_copied_as_they_are(tmp_path):
    """A JPEG file is not decoded and encoded again; files of one name in a class stay apart."""
    write_tiny_imagenet(tmp_path / "tiny")
    source, folders = converted(tmp_path / "tiny", tmp_path / "folders", "val")
    assert sorted(named(source)) == sorted(named(folders))
    contents = {read_image(image) for image, _ in source.samples}
    assert contents == {read_image(image) for image, _ in folders.samples}
    for name in ("x", "y"):
        write_flat(tmp_path / "nested" / "a" / name, ["0.jpg"])
    _, folders = converted(tmp_path / "nested", tmp_path / "flat", "train")
    assert [os.path.basename(path) for path, _ in folders.samples] == ["0.jpg", "1-0.jpg"]


def test_convert_does_not_overwrite(tmp_path):
    """A target that exists is refused and kept; a failure leaves nothing behind."""
    write_cifar(tmp_path / "set")
    (tmp_path / "there").mkdir()
    result = run(image_command, "convert", tmp_path / "set", tmp_path / "there")
    assert (result.code, f"TARGET {tmp_path}/there exists; delete it" in result.err) == (2, True)
    make_images(tmp_path / "images")
    write_tiny_imagenet(tmp_path / "tiny")
    (tmp_path / "tiny" / "val" / "images" / "val_2.JPEG").unlink()
    (tmp_path / "tiny" / "val" / "images" / "val_2.JPEG").symlink_to("gone")
    result = run(image_command, "convert", tmp_path / "tiny", tmp_path / "out", "--part", "val")
    assert (result.code, "val_2.JPEG cannot be read" in result.err) == (2, True)
    assert not [name for name in os.listdir(tmp_path) if "out" in name]


def save_tensors(folder, images, labels):
    """Write a set of tensors; return its folder."""
    folder.mkdir()
    torch.save(images, folder / "images_best.pt")
    torch.save(labels, folder / "labels_best.pt")
    return folder


@pytest.mark.parametrize("answers", [None, "logits"])
def test_floating_point_images_become_tensors(answers, tmp_path):
    """The values are not rounded, and soft labels are kept."""
    images = torch.randn(4, 3, 5, 6) * 3
    given = torch.randn(4, 2) * 3 if answers else torch.tensor([0, 1, 0, 1])
    folder = save_tensors(tmp_path / "set", images, given)
    result = run(image_command, "convert", folder, tmp_path / "out")
    assert result.code == 0, result.err
    assert "give --normalised yes" in result.out
    assert torch.equal(torch.load(tmp_path / "out" / "images_best.pt"), images)
    assert torch.equal(torch.load(tmp_path / "out" / "labels_best.pt"), given)
    facts = facts_of(folder)
    assert (facts["values"], facts["normalised"][:3]) == ("floating-point numbers", "yes")
    assert facts["soft labels"] == (answers or "none")


def test_class_names_that_are_no_folder_names(tmp_path):
    """Names from a file cannot lead out of the folder that is written."""
    found = ImageSet(str(tmp_path), ["../up", ".", "a/b", "/etc", "cat"], [])
    assert class_folders(found) == ["_.._up", "_.", "a_b", "_etc", "cat"]
    with pytest.raises(InputError, match="get the same folder name"):
        class_folders(ImageSet(str(tmp_path), ["a/b", "a_b"], []))
    assert class_folders(ImageSet("", [str(n) for n in range(11)], [], named=False))[1::9] == ["01", "10"]


def train_flags(folder, train, val, **changed):
    """Return the flags of a short run with hard labels on the CPU."""
    flags = {
        **{"train-dir": train, "val-dir": val, "output-dir": folder, "loss-type": "ce", "model": LIGHT},
        **{"epochs": 1, "batch-size": 4, "input-size": 32, "device": "cpu", "workers": 0, **changed},
    }
    return [word for name, value in flags.items() for word in (f"--{name}", value)]


def test_training_on_cifar(tmp_path):
    """The root of the set is given to both flags: train and test part, paired by name."""
    write_cifar(tmp_path / "data" / "cifar-10-batches-py")
    result = run(train_KD_parallel, *train_flags(tmp_path / "run", tmp_path / "data", tmp_path / "data"))
    assert result.code == 0, result.err
    assert "train   20 images, 3 classes" in result.out
    assert "val     4 images, 3 classes" in result.out
    assert "--val-dir takes the test part" in result.out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["images"]["number"] == 20
    assert summary["images"]["digest"] == facts_of(tmp_path / "data")["digest"]


def test_validation_labels_of_a_run(tmp_path):
    """--val-labels gives the classes of validation images in one folder."""
    train = make_images(tmp_path / "train")
    write_flat(tmp_path / "val", ["a.jpg", "b.jpg", "c.jpg"], size=(40, 40))
    (tmp_path / "table.csv").write_text("c.jpg,class_0\na.jpg,class_1\nb.jpg,class_2\n")
    words = train_flags(tmp_path / "run", train, tmp_path / "val", **{"val-labels": tmp_path / "table.csv"})
    result = run(train_KD_parallel, *words)
    assert result.code == 0, result.err
    assert "val     3 images, 3 classes" in result.out
    result = run(train_KD_parallel, *train_flags(tmp_path / "two", train, tmp_path / "val"))
    assert (result.code, "--val-labels FILE" in result.err) == (2, True)


def test_sets_without_names_pair_by_number(tmp_path):
    """Class k belongs to class k, and the log says so; a class that is missing is named."""
    write_idx(tmp_path / "idx", False, size=(32, 32))
    folders = make_images(tmp_path / "named", classes=3)
    for number, (train, val) in enumerate([("idx", "idx"), ("named", "idx"), ("idx", "named")]):
        result = run(train_KD_parallel, *train_flags(tmp_path / f"run{number}", tmp_path / train, tmp_path / val))
        assert result.code == 0, result.err
        assert "are paired with training folders by number, because at least one of the two sets" in result.out
        assert "WARNING" not in result.out
    make_images(folders / "more", classes=1)
    (folders / "more").rename(folders / "class_3")
    result = run(train_KD_parallel, *train_flags(tmp_path / "run3", folders, tmp_path / "idx"))
    assert (result.code, "no folder of --val-dir belongs to class 3" in result.err) == (2, True)
    result = run(train_KD_parallel, *train_flags(tmp_path / "run4", tmp_path / "idx", folders))
    assert result.code == 0, result.err
    assert "4 and 3 classes, which are paired by number" in result.out


def test_a_teacher_of_more_classes(tmp_path):
    """Classes without names are the teacher's first ones; the order of the teacher's classes is not looked up."""
    write_idx(tmp_path / "idx", False, size=(32, 32))
    save_teacher(tmp_path / "teacher.pth", LIGHT, 1000)
    teacher = {"teacher-model": LIGHT, "teacher-checkpoint": tmp_path / "teacher.pth", "loss-type": "kl"}
    words = train_flags(tmp_path / "run", tmp_path / "idx", tmp_path / "idx", **teacher)
    result = run(train_KD_parallel, *words, "--accept-labels")
    assert result.code == 0, result.err
    assert "by number" in result.out


def test_random_images_of_cifar(tmp_path):
    """Drawn members become PNG files in folders with the right names, and a second call finds the same draw."""
    written = write_cifar(tmp_path / "cifar-10-batches-py")["train"]
    like = tmp_path / "like"
    for name in ("bird", "airplane"):
        make_images(tmp_path / "made", classes=1, per_class=2)
        like.mkdir(exist_ok=True)
        (tmp_path / "made" / "class_0").rename(like / name)
    words = [tmp_path, "--like", like, "--output", tmp_path / "random", "--again"]
    assert run(random_images, *words).code == 0
    drawn = open_images(tmp_path / "random", "--train-dir")
    assert (drawn.classes, drawn.targets) == (["airplane", "bird"], [0, 0, 1, 1])
    by_class = {name: written[0][np.array(written[1]) == NAMES[10].index(name)] for name in drawn.classes}
    for image, target in drawn.samples:
        pixels = np.asarray(load_image(image))
        assert (by_class[drawn.classes[target]] == pixels).all(axis=(1, 2, 3)).sum() == 1
    record = json.loads((tmp_path / "random.json").read_text())
    assert record["digest"] == identify(drawn.samples).digest()
    lines = (tmp_path / "random.txt").read_text().splitlines()
    assert all(f"\t{tmp_path}/cifar-10-batches-py: " in line for line in lines)
    assert "already" in run(random_images, *words).out
    result = run(random_images, *words, "--seed", 1)
    assert (result.code, "does not hold the draw of seed 1" in result.err) == (2, True)


def test_random_images_like_a_set_without_names(tmp_path):
    """Classes are paired by number and get the names of the real set, so that they fit the validation set."""
    write_cifar(tmp_path / "cifar-10-batches-py")
    write_idx(tmp_path / "idx", False, count=3)
    result = run(random_images, tmp_path, "--like", tmp_path / "idx", "--output", tmp_path / "random")
    assert result.code == 0, result.err
    assert "paired by number" in result.out
    assert open_images(tmp_path / "random", "--train-dir").classes == NAMES[10]


def test_random_floating_point_images(tmp_path):
    """They are written as tensors with their values."""
    images = torch.randn(6, 1, 4, 4)
    real = save_tensors(tmp_path / "real", images, torch.arange(6) % 2)
    like = save_tensors(tmp_path / "like", images[:3].clone(), torch.tensor([0, 1, 1]))
    result = run(random_images, real, "--like", like, "--output", tmp_path / "out")
    assert result.code == 0, result.err
    drawn, labels = (torch.load(tmp_path / "out" / f"{name}_best.pt") for name in ("images", "labels"))
    assert labels.tolist() == [0, 1, 1]
    numbers = [next(n for n in range(6) if torch.equal(images[n], one)) for one in drawn]
    assert [number % 2 for number in numbers] == [0, 1, 1]
    assert len(set(numbers)) == 3


def test_names_of_members(tmp_path):
    """Encoded members keep their bytes and get a suffix; pixels become PNG files."""

    class Archive(Container):
        path = "archive"

        def name(self, number):
            return f"{number}.jpg"

        def read(self, number):
            return (tmp_path / "jpeg" / f"{number}.jpg").read_bytes()

    write_flat(tmp_path / "jpeg", ["0.jpg", "1.jpg"])
    archive = Archive()
    samples = [(Member(archive, number), number) for number in range(2)]
    assert [name for name, _, _ in name_files(samples, ["a", "b"])] == ["a/0.jpeg", "b/1.jpeg"]


def test_evidence_on_other_layouts(tmp_path):
    """scripts/evidence.py takes an idx file as image set, and the root of CIFAR for real and validation images."""
    write_cifar(tmp_path / "data" / "cifar-10-batches-py")
    write_idx(tmp_path / "idx", False, size=(32, 32))
    idx_file = tmp_path / "idx" / "train-images-idx3-ubyte"
    settings = {
        **{"IMAGE_SETS": str(idx_file), "REAL_DIR": str(tmp_path / "data"), "VAL_DIR": str(tmp_path / "data")},
        **{"WORK": str(tmp_path / "w"), "MODELS": LIGHT, "SEEDS": "0", "REGIMES": "HL", "EPOCHS": "1", "WORKERS": "0"},
        **{"BATCH_SIZE": "4", "ACCUMULATION": "1", "INPUT_SIZE": "32", "PYTHON": sys.executable},
    }
    command = [sys.executable, str(ROOT / "scripts" / "evidence.py"), "--device", "cpu"]
    calls = {"capture_output": True, "text": True, "cwd": tmp_path, "env": os.environ | settings}
    done = subprocess.run(command, **calls)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((tmp_path / "w" / "runs").rglob("summary.json"))) == 2
    assert "drawn from" in (tmp_path / "w" / "report" / "report.md").read_text()


def test_the_state_of_a_set_that_is_a_file(tmp_path, monkeypatch):
    """Commands of the evidence script contain it, so that results of another file are not mixed."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    state_of = runpy.run_path(str(ROOT / "scripts" / "evidence.py"))["state_of"]
    states = set()
    for name, content in (("a", b"1"), ("a", b"12"), ("b", b"1")):
        (tmp_path / name).write_bytes(content)
        states.add(state_of(str(tmp_path / name)))
    assert len(states) == 3
