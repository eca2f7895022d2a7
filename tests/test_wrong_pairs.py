"""Images, labels and validation sets that do not belong together are refused by name; right ones pass."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import (
    BATCH,
    CLASSES,
    EPOCHS,
    IMAGE_SIZE,
    LIGHT,
    PER_CLASS,
    SIDE,
    Tiny,
    make_images,
    relabel_flags,
    run,
    save_teacher,
)
from PIL import Image

import relabel_FKD
import train_FKD_parallel
import train_KD_parallel
from utils.data.folders import open_folder
from utils.data.identity import identify
from utils.labels.packed import PackedWriter
from utils.labels.packed_codec import Codec
from utils.labels.packed_manifest import make_manifest, read_manifest
from utils.labels.sre2l import TarWriter
from utils.labels.types import BatchLabels
from utils.labels.views import DrawnViews, ViewPolicy

IMAGES = CLASSES * PER_CLASS


def answered(epoch, batch, views, targets):
    """Return the labels of one batch of `DrawnViews` by a teacher that is right about every image."""
    drawn = views.read(epoch, batch)
    logits = torch.randn(len(drawn), CLASSES, generator=torch.Generator().manual_seed(100 * epoch + batch))
    logits += 6 * torch.nn.functional.one_hot(targets[drawn.index], CLASSES)
    return drawn.labelled(logits, [IMAGE_SIZE] * len(drawn))


def write_labels(folder, train, form="packed", knows=True, epochs=EPOCHS):
    """Write labels of an image folder; `knows`: with the digests of its images and the names of its class folders."""
    images = open_folder(train, "--data")
    views = DrawnViews(ViewPolicy(42, SIDE, 0.08, 1.0, "none", 0.8, 1.0), len(images.samples), BATCH)
    digests = identify(images.samples) if knows else None
    if form == "tar":
        writer = TarWriter(folder, torch.float16, image_digests=digests)
    else:
        settings = {"classes": images.classes} if knows else {}
        shape = len(images.samples), CLASSES, BATCH, epochs, "none"
        writer = PackedWriter(folder, make_manifest(Codec(16), *shape, True, settings), image_digests=digests)
    for epoch in range(epochs):
        batches = range(views.batches_per_epoch)
        labels = [answered(epoch, batch, views, torch.tensor(images.targets)) for batch in batches]
        assert isinstance(labels[0], BatchLabels)
        writer.write(epoch, labels)
    writer.finish()
    return Path(folder)


@pytest.fixture(params=["packed", "tar"])
def pair(request, tmp_path):
    """Make an image set and labels that know its images, in either format."""
    train, val = make_images(tmp_path / "train"), make_images(tmp_path / "val", per_class=2, seed=1)
    return Tiny(train, val, write_labels(tmp_path / "labels", train, request.param))


def train(pair, tmp_path, *more, script=train_FKD_parallel, **changed):
    """Train with the pair's flags."""
    return run(script, *pair.flags(tmp_path / "run", input_size=SIDE, **changed), *more)


def other_images(folder):
    """Replace every image by another one under the same name."""
    shutil.rmtree(folder)
    make_images(folder, seed=7)


def noise(folder):
    """Replace every image by uniform noise of the same size."""
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        pixels = np.random.default_rng(1000 + number).integers(0, 256, (*IMAGE_SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)


def shuffled_in_class(folder):
    """Shuffle the file names within a class."""
    paths = sorted(folder.glob("class_1/*.png"))
    contents = [path.read_bytes() for path in paths]
    for path, content in zip(paths, contents[1:] + contents[:1], strict=True):
        path.write_bytes(content)


def swapped_folders(folder):
    """Swap the names of two class folders."""
    for old, new in (("class_0", "x"), ("class_2", "class_0"), ("x", "class_2")):
        (folder / old).rename(folder / new)


def other_sizes(folder):
    """Resize the images."""
    for path in folder.rglob("*.png"):
        Image.open(path).resize((20, 20)).save(path)


def moved_boundary(folder):
    """Move an image from the first class to the last one, so that every number is off by one."""
    (folder / "class_0" / "0.png").rename(folder / "class_2" / "9.png")


def one_more(folder):
    """Add an image without labels."""
    Image.new("RGB", IMAGE_SIZE[::-1]).save(folder / "class_0" / "00.png")


def one_less(folder):
    """Remove an image."""
    (folder / "class_1" / "2.png").unlink()


def one_replaced(folder):
    """Replace one image of twelve."""
    Image.new("RGB", IMAGE_SIZE[::-1]).save(folder / "class_2" / "3.png")


WRONG = [
    (other_images, "none of its images is one of those that the labels were made for"),
    (noise, "none of its images"),
    (shuffled_in_class, "4 images have another number: image 4 of the labels is now image 7, class_1/3.png"),
    (swapped_folders, "8 images have another number: image 0 of the labels is now image 8, class_2/0.png"),
    (other_sizes, "none of its images"),
    (moved_boundary, "12 images have another number: image 0 of the labels is now image 11, class_2/9.png"),
    (one_more, "it holds 13 images and the labels were made for 12"),
    (one_less, "it holds 11 images and the labels were made for 12 and 1 of the labels' 12 images are not in it"),
    (one_replaced, "1 of the labels' 12 images are not in it (image 11)"),
]


@pytest.mark.parametrize(("change", "found"), WRONG, ids=[change.__name__ for change, _ in WRONG])
@pytest.mark.parametrize("mode", ["--dry-run", "--no-progress"])
def test_other_images_are_refused(change, found, mode, pair, tmp_path):
    """A dry run and a run name the difference before the first step."""
    change(pair.train)
    done = train(pair, tmp_path, mode)
    assert done.code == 2
    assert found in done.err
    assert "relabel_FKD.py" in done.err
    assert not (tmp_path / "run").exists()


def rewritten(folder):
    """Write the same pixels with other bytes."""
    for path in folder.rglob("*.png"):
        Image.open(path).save(path, compress_level=1)


def renamed_files(folder):
    """Rename the files and keep their order."""
    for path in folder.rglob("*.png"):
        path.rename(path.with_name(f"image-{path.name}"))


def renamed_folders(folder):
    """Rename the class folders and keep their order."""
    for path in folder.glob("class_*"):
        path.rename(path.with_name(path.name.replace("class", "kind")))


@pytest.mark.parametrize("change", [rewritten, renamed_files, renamed_folders])
def test_the_same_images_pass(change, pair, tmp_path):
    """Neither the bytes nor the name of a file matter."""
    change(pair.train)
    done = train(pair, tmp_path, epochs=1)
    assert done.code == 0, done.err
    assert "12 of 12 compared: they are those that were labelled" in done.out
    digest = json.loads((tmp_path / "run" / "summary.json").read_text())["images"]["digest"]
    original = make_images(tmp_path / "again")
    assert digest == identify(open_folder(original, "--data").samples).digest()


def test_a_dry_run_compares_a_sample_and_verify_labels_all(tmp_path):
    """The dry run compares 64 of 102 images; --verify-labels finds a wrong one that is not among them."""
    images, val = make_images(tmp_path / "train", per_class=34), make_images(tmp_path / "val", seed=1)
    pair = Tiny(images, val, write_labels(tmp_path / "labels", images))
    Image.new("RGB", IMAGE_SIZE[::-1]).save(images / "class_1" / "5.png")
    done = train(pair, tmp_path, "--dry-run")
    assert done.code == 0
    assert "64 of 102 compared" in done.out
    for mode in (["--dry-run", "--verify-labels"], []):
        done = train(pair, tmp_path, *mode)
        assert done.code == 2
        assert "1 of the labels' 102 images are not in it" in done.err


def test_verify_labels_compares_images_of_tar_labels(tmp_path):
    """Tar labels have no digests of their own files, but of their images."""
    images, val = make_images(tmp_path / "train"), make_images(tmp_path / "val", seed=1)
    pair = Tiny(images, val, write_labels(tmp_path / "labels", images, "tar"))
    assert train(pair, tmp_path, "--verify-labels", "--dry-run").code == 0
    noise(images)
    done = train(pair, tmp_path, "--verify-labels", "--dry-run")
    assert done.code == 2
    assert "none of its images" in done.err


def words_for_classes(folder):
    """Rename the validation folders to words that sort in another order."""
    for old, new in (("class_0", "zero"), ("class_1", "one"), ("class_2", "two")):
        (folder / old).rename(folder / new)


def test_validation_folders_of_other_names(pair, tmp_path):
    """They are refused; with a map the classes are right; `sorted` would pair zero with class_2."""
    right = train(pair, tmp_path)
    assert right.code == 0, right.err
    figures = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[-1].split(",")[7:9]
    words_for_classes(pair.val)
    done = train(pair, tmp_path, "--overwrite")
    assert done.code == 2
    assert "only in --val-dir: one, two, zero; only in --train-dir: class_0, class_1, class_2" in done.err
    table = tmp_path / "map.tsv"
    table.write_text("zero\tclass_0\none\tclass_1\ntwo\tclass_2\n")
    found = {}
    for given in (table, "sorted"):
        done = train(pair, tmp_path, "--overwrite", "--class-map", given)
        assert done.code == 0, done.err
        found[given] = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[-1].split(",")[7:9]
    assert [float(value) for value in found[table]] == pytest.approx([float(value) for value in figures], rel=1e-5)
    assert found["sorted"][0] != figures[0]


def test_a_validation_set_of_more_classes(pair, tmp_path):
    """Only the trained classes are evaluated, and the log says so."""
    alone = train(pair, tmp_path, epochs=1)
    before = json.loads((tmp_path / "run" / "summary.json").read_text())
    shutil.copytree(pair.val / "class_0", pair.val / "another")
    done = train(pair, tmp_path, "--overwrite", epochs=1)
    assert alone.code == done.code == 0, done.err
    assert "1 of 4 validation folders are left out" in done.out
    after = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert after["last"] == before["last"]
    assert after["validation"]["number"] == before["validation"]["number"] == 6
    assert after["validation"]["digest"] == before["validation"]["digest"]


def test_class_order_says_which_class_a_folder_is(tmp_path):
    """The labels' classes are in another order: they are refused until a file names them."""
    images, val = make_images(tmp_path / "train"), make_images(tmp_path / "val", per_class=2, seed=1)
    pair = Tiny(images, val, write_labels(tmp_path / "labels", images, "tar", knows=False))
    order = tmp_path / "order.txt"
    order.write_text("class_2\nclass_0\nclass_1\n")
    done = train(pair, tmp_path, "--class-order", order, "--dry-run")
    assert f"3 training folders are numbered by {order}" in done.out


@pytest.mark.parametrize("kind", ["same", "linked", "copied"])
def test_training_images_in_the_validation_set(kind, pair, tmp_path):
    """The validation set is the same folder, links to its files, or copies of them."""
    val = pair.train
    if kind == "linked":
        val = tmp_path / "linked"
        for path in pair.train.rglob("*.png"):
            (val / path.parent.name).mkdir(parents=True, exist_ok=True)
            (val / path.parent.name / f"z{path.name}").symlink_to(path)
    if kind == "copied":
        val = shutil.copytree(pair.train, tmp_path / "copied")
    done = train(Tiny(pair.train, val, pair.labels), tmp_path, "--dry-run")
    assert done.code == 0, done.err
    assert "WARNING: at least 12 images of --val-dir" in done.out
    assert "WARNING" not in train(pair, tmp_path, "--dry-run").out.replace("WARNING: the teacher", "")


def test_a_validation_set_copied_in_part(tmp_path):
    """Nine classes of two images and one of one are reported; classes of all sizes pass."""
    train, val = make_images(tmp_path / "train", 10, 2), make_images(tmp_path / "val", 10, 2, seed=1)

    def said():
        flags = Tiny(train, val, None).flags(tmp_path / "out", loss_type="ce", dry_run=True)
        result = run(train_KD_parallel, *flags)
        assert result.code == 0, result.err
        return result.out

    assert "complete?" not in said()
    (val / "class_9" / "1.png").unlink()
    assert "WARNING: fewer validation images than the 2 of the other classes are in class_9; is --val-dir" in said()
    (val / "class_8" / "1.png").unlink()
    assert "complete?" not in said()


@pytest.mark.parametrize(("change", "found"), WRONG[:4], ids=[change.__name__ for change, _ in WRONG[:4]])
def test_resuming_on_other_images_is_refused(change, found, tmp_path):
    """Labels of other projects do not know their images, but the run does."""
    images, val = make_images(tmp_path / "train"), make_images(tmp_path / "val", per_class=2, seed=1)
    pair = Tiny(images, val, write_labels(tmp_path / "labels", images, "tar", knows=False))
    assert train(pair, tmp_path, epochs=2).code == 0
    before = (tmp_path / "run" / "checkpoint.pth.tar").read_bytes()
    change(images)
    done = train(pair, tmp_path, "--resume", epochs=2)
    assert done.code == 2
    assert "have changed since the run began" in done.err
    assert found.replace("the labels were made for", "the run began with").replace("labels", "run") in done.err
    assert (tmp_path / "run" / "checkpoint.pth.tar").read_bytes() == before


def test_naive_kd_knows_its_images_too(tmp_path):
    """Hard labels without label files behave the same."""
    images, val = make_images(tmp_path / "train"), make_images(tmp_path / "val", per_class=2, seed=1)
    words = ["--train-dir", images, "--val-dir", val, "--loss-type", "ce", "--batch-size", 6, "--model", LIGHT]
    words += ["--input-size", SIDE, "--device", "cpu", "-j", 0, "--output-dir", tmp_path / "run", "--epochs", 2]
    assert run(train_KD_parallel, *words).code == 0
    rewritten(images)
    assert run(train_KD_parallel, *words, "--resume").code == 0
    one_replaced(images)
    done = run(train_KD_parallel, *words, "--resume")
    assert done.code == 2
    assert "1 of the run's 12 images are not in it (image 11)" in done.err


def test_resuming_on_other_validation_images_is_refused(pair, tmp_path):
    """Names and sizes are the same; the content is compared during evaluation."""
    for path in pair.val.rglob("*.png"):  # stored without compression, so that every file has the same size
        Image.open(path).save(path.with_suffix(".ppm"))
        path.unlink()
    assert train(pair, tmp_path, epochs=2).code == 0
    checkpoint = torch.load(tmp_path / "run" / "checkpoint.pth.tar", weights_only=False)
    assert checkpoint["progress"]["validation"]
    # pretend that the run was stopped after the first evaluation
    checkpoint["progress"]["epoch"] = 1
    checkpoint["progress"]["history"] = checkpoint["progress"]["history"][:1]
    torch.save(checkpoint, tmp_path / "run" / "checkpoint.pth.tar")
    first, second = sorted(pair.val.rglob("*.ppm"))[:2]
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    assert train(pair, tmp_path, "--resume", epochs=2).code == 2
    second.write_bytes(a)  # two images of one class are swapped, which gives the same set
    assert train(pair, tmp_path, "--resume", epochs=2).code == 0


def relabel(images, labels, weights, *more, epochs=2):
    """Write labels of `epochs` epochs."""
    words = relabel_flags(images, weights, labels, *more, "--accept-labels", arch=LIGHT, epochs=epochs)
    return run(relabel_FKD, *words)


@pytest.mark.parametrize(("change", "found"), WRONG, ids=[change.__name__ for change, _ in WRONG])
def test_relabelling_is_not_continued_on_other_images(change, found, tmp_path):
    """One store never holds labels of two image sets."""
    images, weights = make_images(tmp_path / "train"), save_teacher(tmp_path / "teacher.pth")
    assert relabel(images, tmp_path / "labels", weights).code == 0
    (tmp_path / "labels" / "epoch_0001.safetensors").unlink()
    manifest = json.loads((tmp_path / "labels" / "manifest.json").read_text())
    del manifest["digests"]["epoch_0001.safetensors"]
    (tmp_path / "labels" / "manifest.json").write_text(json.dumps(manifest))
    before = {path.name: path.read_bytes() for path in (tmp_path / "labels").iterdir()}
    change(images)
    done = relabel(images, tmp_path / "labels", weights)
    assert done.code == 2
    assert found in done.err or "num_images is 12" in done.err
    assert {path.name: path.read_bytes() for path in (tmp_path / "labels").iterdir()} == before


NETTE = "n01440764 n02102040 n02979186".split()


def test_a_thousand_classes_on_three_folders_of_imagenet(tmp_path):
    """The folders are classes 0, 217 and 482 of the teacher and of the student: tench, springer, cassette player."""
    images, val = make_images(tmp_path / "train"), make_images(tmp_path / "val", per_class=2, seed=1)
    for folder, number in itertools.product((images, val), range(CLASSES)):
        (folder / f"class_{number}").rename(folder / NETTE[number])
    done = relabel(images, tmp_path / "labels", save_teacher(tmp_path / "teacher.pth", classes=1000))
    assert done.code == 0, done.err
    assert "3 folders are numbered by ImageNet's list of classes" in done.out
    classes = read_manifest(tmp_path / "labels")["settings"]["classes"]
    assert [classes[number] for number in (0, 217, 482)] == NETTE
    assert len(classes) == 483
    done = train(Tiny(images, val, tmp_path / "labels"), tmp_path, "--accept-labels", epochs=1)
    assert done.code == 0, done.err
    assert "3 training folders are numbered by the names that the labels state" in done.out
    args = json.loads((tmp_path / "run" / "args.json").read_text())
    assert args["classes"] == "numbered by the names that the labels state, paired by name"


def test_a_checkpoint_of_the_release_before_is_continued(pair, tmp_path):
    """It has digests of names and of the first label file, but none of images."""
    from utils.labels.formats import open_labels
    from utils.labels.packed_manifest import digest_of_names

    assert train(pair, tmp_path, epochs=2).code == 0
    file = tmp_path / "run" / "checkpoint.pth.tar"
    checkpoint = torch.load(file, weights_only=False)
    for name in ("val_resize", "classes"):
        checkpoint["arguments"].pop(name, None)
    relative = [sorted(str(path.relative_to(root)) for path in root.rglob("*.png")) for root in (pair.train, pair.val)]
    checkpoint["arguments"]["train_images"], checkpoint["arguments"]["val_images"] = map(digest_of_names, relative)
    checkpoint["arguments"]["labels"] = open_labels(pair.labels).legacy_digest()
    del checkpoint["images"], checkpoint["progress"]["validation"]
    torch.save(checkpoint, file)
    done = train(pair, tmp_path, "--resume", epochs=2, val_resize=round(SIDE * 256 / 224))
    assert done.code == 0, done.err
    (pair.train / "class_0" / "0.png").rename(pair.train / "class_0" / "00.png")
    torch.save(checkpoint, file)
    done = train(pair, tmp_path, "--resume", epochs=2, val_resize=round(SIDE * 256 / 224))
    assert done.code == 2
    assert "digest of the training images' classes was" in done.err
