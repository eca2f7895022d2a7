"""Runs on image sets of every layout: loaders, resume, students and ranks agree; labels know their images."""

import gzip
import json
from importlib.util import find_spec

import numpy as np
import pytest
import rank_jobs
import torch
from helpers import LIGHT, read_run, run, same_weights, save_teacher, signal_in_step, tool
from image_layouts import (
    image_column,
    numbered_file,
    write_cifar,
    write_idx,
    write_parquet,
    write_tar,
    write_tiny_imagenet,
)
from PIL import Image

import relabel_FKD
import train_FKD_parallel
import train_KD_parallel

pytestmark = pytest.mark.usefixtures("small_student")
SIDE, CLASSES = 16, 3
NO_PYARROW = find_spec("pyarrow") is None
LAYOUTS = ["folders", "cifar", "idx", "tiny", "tensors", "soft tensors", "shards"]
PARQUET = pytest.param("parquet", marks=pytest.mark.skipif(NO_PYARROW, reason="needs pyarrow"))
TRAIN = ["--input-size", SIDE, "--batch-size", 4, "--sgd", "-lr", 0.05, "--device", "cpu", "--precision", "fp32"]
TRAIN += ["--eval-every", 2, "--epochs", 2]


def write_tensors(folder, soft):
    """Write floats beyond [0, 1] and their classes, or probabilities, for the train and the val part."""
    for seed, part in enumerate(("train", "val")):
        generator = torch.Generator().manual_seed(seed)
        (folder / part).mkdir(parents=True)
        torch.save(torch.rand(9, 3, 20, 20, generator=generator) * 1.2 - 0.05, folder / part / "images_best.pt")
        labels = torch.rand(9, CLASSES, generator=generator).softmax(dim=1) if soft else torch.arange(9) % CLASSES
        torch.save(labels, folder / part / "labels_best.pt")


def write_shards(folder):
    """Write two shards for training and one for validation, with class numbers."""
    folder.mkdir(parents=True)
    for name, first in (("train-000000", 0), ("train-000001", 6), ("val-000000", 12)):
        files = []
        for number in range(first, first + 6):
            files += [(f"{number:04}.png", numbered_file(number)), (f"{number:04}.cls", str(number % CLASSES).encode())]
        write_tar(folder / f"{name}.tar", files)


def write_tables(folder):
    """Write a table for each part, with named classes."""
    for part, first in (("train", 0), ("validation", 9)):
        columns = {"image": image_column(first, count=9), "label": [n % CLASSES for n in range(9)]}
        write_parquet(folder / "data" / f"{part}-00000-of-00001.parquet", columns, ["tench", "cock", "hen"])


def write_folders(folder):
    for part, seed in (("train", 0), ("val", 1)):
        rng = np.random.default_rng(seed)
        for name in "abc":
            (folder / part / name).mkdir(parents=True)
            for number in range(3):
                pixels = rng.integers(0, 256, (18, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{number}.png")


WRITERS = {
    "folders": write_folders,
    "cifar": write_cifar,
    "idx": lambda folder: write_idx(folder, packed=True, count=9, size=(12, 12)),
    "tiny": write_tiny_imagenet,
    "tensors": lambda folder: write_tensors(folder, soft=False),
    "soft tensors": lambda folder: write_tensors(folder, soft=True),
    "shards": write_shards,
    "parquet": write_tables,
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Return a function that writes a set of a layout once, and returns its place."""
    root, made = tmp_path_factory.mktemp("sets"), {}

    def get(layout):
        if layout not in made:
            made[layout] = root / layout.replace(" ", "_")
            WRITERS[layout](made[layout])
        return made[layout]

    return get


def words_for(place, output, *more):
    """Return the command line of train_KD_parallel.py for training on plain labels; `place` gives both parts."""
    words = ["--train-dir", place, "--val-dir", place, "--output-dir", output, "--loss-type", "ce", *TRAIN, "-j", 0]
    return [str(word) for word in [*words, *more]]


def train(place, output, *more):
    result = run(train_KD_parallel, *words_for(place, output, *more))
    assert result.code == 0, result.err
    return read_run(output)


@pytest.mark.parametrize("layout", [*LAYOUTS, PARQUET])
def test_loaders_and_a_resumed_run_agree(layout, places, tmp_path):
    """Worker processes and resident images give the same weights; so does a run that was stopped within an epoch."""
    place = places(layout)
    whole = train(place, tmp_path / "whole")
    assert whole.rows[-1]["val_top1"] is not None
    workers = train(place, tmp_path / "workers", "--loader", "workers", "-j", 1)
    assert same_weights(workers.weights(), whole.weights())
    assert workers.rows[-1]["val_loss"] == pytest.approx(whole.rows[-1]["val_loss"], rel=1e-6)
    with pytest.MonkeyPatch.context() as patch:
        signal_in_step(patch, 15, 4)
        stopped = run(train_KD_parallel, *words_for(place, tmp_path / "stopped"))
    assert stopped.code == 128 + 15, stopped.err
    resumed = train(place, tmp_path / "stopped", "--resume")
    assert same_weights(resumed.weights(), whole.weights())
    assert resumed.rows[-1]["val_loss"] == whole.rows[-1]["val_loss"]


@pytest.mark.parametrize("layout", [*LAYOUTS, PARQUET])
def test_students_side_by_side_are_those_of_their_own_runs(layout, places, tmp_path):
    place = places(layout)
    train_both = run(train_KD_parallel, *words_for(place, tmp_path / "both", "--seeds", 0, 1))
    assert train_both.code == 0, train_both.err
    for seed in (0, 1):
        alone = train(place, tmp_path / f"alone{seed}", "--seed", seed)
        assert same_weights(read_run(tmp_path / "both" / f"resnet18-seed{seed}").weights(), alone.weights())


def test_ranks_agree_with_one_process(places, tmp_path):
    """Two processes give the weights of one, on every layout."""
    pairs = {layout: places(layout) for layout in [*LAYOUTS, *([] if NO_PYARROW else ["parquet"])]}
    flags = ["--sync-bn", "--mix-type", "cutmix"]
    jobs = [["train_KD_parallel", *words_for(place, tmp_path / "two" / name, *flags)] for name, place in pairs.items()]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    done = rank_jobs.launch(2, tmp_path / "jobs.json")
    assert done.returncode == 0, done.stderr[-3000:]
    for name, place in pairs.items():
        one = train(place, tmp_path / "one" / name, *flags).weights()
        two = read_run(tmp_path / "two" / name).weights()
        assert all((two[key].double() - value.double()).abs().max() < 1e-5 for key, value in one.items()), name


@pytest.mark.parametrize("layout", [*LAYOUTS, PARQUET])
def test_labels_know_the_images_of_every_layout(layout, places, tmp_path):
    """Labels made for a set train on it; another set of the same layout is refused, because its images differ."""
    if layout == "soft tensors":
        pytest.skip("a teacher labels the images, whatever labels they bring")
    place = places(layout)
    classes = 2 if layout == "tiny" else CLASSES
    teacher = save_teacher(tmp_path / "teacher.pth", classes=classes)
    words = ["--data", place, "-a", LIGHT, "--checkpoint", teacher, "--fkd-path", tmp_path / "labels", "-b", 4]
    words += ["--epochs", 2, "--input-size", SIDE, "-j", 0, "--device", "cpu", "--precision", "fp32", "--accept-labels"]
    result = run(relabel_FKD, *words)
    assert result.code == 0, result.err
    (tmp_path / "labels" / "epoch_0001.safetensors").unlink()  # as if the relabelling had been interrupted
    result = run(relabel_FKD, *words)
    assert result.code == 0, result.err
    assert "was compared again" in result.out
    words = ["verify", tmp_path / "labels", "--images", place, "-a", LIGHT, "--checkpoint", teacher]
    assert tool(*words) == 0
    words = ["--train-dir", place, "--val-dir", place, "--fkd-path", tmp_path / "labels", *TRAIN, "-j", 0]
    words += ["--accept-labels"]
    result = run(train_FKD_parallel, *words, "--output-dir", tmp_path / "run")
    assert result.code == 0, result.err
    assert "compared: they are those that were labelled" in result.out
    other = tmp_path / "other"
    WRITERS[layout](other)
    damage(layout, other)
    words[1] = other
    result = run(train_FKD_parallel, *words[:-1], "--output-dir", tmp_path / "2")
    assert result.code == 2
    assert "does not hold the images of the labels" in result.err


def damage(layout, place):
    """Change one training image of a set, or exchange two, so that it stays a set of this layout."""
    if layout in ("folders", "tiny"):
        one, two = sorted(path for path in (place / "train").rglob("*") if path.suffix in (".png", ".JPEG"))[:2]
        content = one.read_bytes()
        one.write_bytes(two.read_bytes())
        two.write_bytes(content)
    elif layout == "cifar":
        path = place / "data_batch_2"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 255
        path.write_bytes(content)
    elif layout == "idx":
        path = place / "train-images-idx3-ubyte.gz"
        content = bytearray(gzip.decompress(path.read_bytes()))
        content[100] ^= 255
        path.write_bytes(gzip.compress(bytes(content)))
    elif layout == "tensors":
        path = place / "train" / "images_best.pt"
        images = torch.load(path, weights_only=True)
        images[3, 1, 5, 5] += 1e-6
        torch.save(images, path)
    elif layout == "shards":
        files = []
        for number in range(6, 12):
            image = numbered_file(number if number != 8 else 99)
            files += [(f"{number:04}.png", image), (f"{number:04}.cls", str(number % CLASSES).encode())]
        write_tar(place / "train-000001.tar", files)
    else:
        columns = {"image": image_column(1, count=9), "label": [n % CLASSES for n in range(9)]}
        write_parquet(place / "data" / "train-00000-of-00001.parquet", columns, ["tench", "cock", "hen"])
