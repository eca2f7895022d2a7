"""Image folders: which files are counted, in which order, and what their pixels are."""

import os
from pathlib import Path

import pytest
from conftest import make_images, run
from PIL import Image
from torchvision.datasets import ImageFolder

import train_FKD_parallel
from utils.system.errors import InputError
from utils.views.folders import ImageSet, open_folder


def names_of(images: ImageSet):
    """Paths below the root, with their classes."""
    return [(os.path.relpath(path, images.root), target) for path, target in images.samples]


def write(folder, *names):
    """Write small images by these names, JPEG or PNG by their suffix; another suffix gets text."""
    for name in names:
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = {".jfif": "JPEG", ".jpe": "JPEG", ".jpg": "JPEG", ".png": "PNG"}.get(path.suffix.lower())
        if kind is None:
            path.write_text("no image")
        else:
            Image.new("RGB", (8, 8)).save(path, kind)


def test_the_order_is_that_of_torchvision(tmp_path):
    """Upper and lower case, nested folders, names around the slash, links: the samples of ImageFolder."""
    write(tmp_path / "set", "B/1.png", "a/x b/2.PNG", "a/x/3.jpg", "a/x/c/1.png", "a/10.png", "a/9.png", "a/Z.png")
    write(tmp_path / "set", "a/x-y/4.png", "é/1.png", "a10/1.png", "a2/1.png", "a2/ü.png", "loose.png")
    write(tmp_path / "elsewhere", "deep/er/5.png", "6.png")
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "B" / "also").symlink_to(tmp_path / "elsewhere" / "deep")
    ours, theirs = open_folder(tmp_path / "set", "--train-dir"), ImageFolder(tmp_path / "set")
    assert ours.samples == theirs.samples
    assert ours.classes == theirs.classes
    assert ours.targets == theirs.targets


def test_other_names_of_jpeg_files_are_counted(tmp_path):
    """Half of the images are named .jfif, .JPE and so on."""
    write(tmp_path, "a/0.jpg", "a/1.jfif", "a/2.JFIF", "b/0.JPE", "b/1.JPG")
    images = open_folder(tmp_path, "--val-dir")
    assert names_of(images) == [("a/0.jpg", 0), ("a/1.jfif", 0), ("a/2.JFIF", 0), ("b/0.JPE", 1), ("b/1.JPG", 1)]


def test_debris_is_skipped_and_named(tiny, tmp_path):
    """Hidden files and folders, copies in them, and what Windows and macOS leave: one line a folder, no error."""
    train = make_images(tmp_path / "train")
    copies = [f"class_0/.ipynb_checkpoints/{i}-checkpoint.png" for i in range(4)]
    write(
        train, *copies, ".ipynb_checkpoints/0.png", "class_1/._0.png", "class_1/.DS_Store", "__MACOSX/class_0/._0.png"
    )
    write(train, "class_2/Thumbs.db", "class_2/desktop.ini", "class_2/notes.txt", ".DS_Store")
    images = open_folder(train, "--train-dir")
    assert len(images.samples) == 12
    assert images.classes == ["class_0", "class_1", "class_2"]
    result = run(train_FKD_parallel, *tiny.flags(tmp_path / "run", train_dir=train, dry_run=True))
    assert result.code == 0, result.err
    lines = [line for line in result.out.splitlines() if line.startswith("skipped")]
    assert lines == [
        f"skipped 9 files or folders that are no images in --train-dir {train}: .DS_Store, .ipynb_checkpoints, "
        "__MACOSX and 6 more"
    ]


def test_images_of_other_types_are_warned_of(tmp_path, caplog, monkeypatch):
    """They may be a part of the set, which nobody would miss otherwise."""
    monkeypatch.setattr("utils.views.folders.log.propagate", True)
    write(tmp_path, "a/0.png", "a/1.gif", "a/2.avif")
    assert len(open_folder(tmp_path, "--val-dir").samples) == 1
    assert "WARNING: skipped 2 images of types that are not read in --val-dir" in caplog.text
    assert "a/1.gif, a/2.avif; convert them to PNG" in caplog.text


def test_classes_without_images(tmp_path):
    """One sentence, which names a few of a thousand; the stop of no other library in its middle."""
    write(tmp_path, "a/0.png", *(f"class_{n:03}/notes.txt" for n in range(999)))
    with pytest.raises(InputError) as caught:
        open_folder(tmp_path, "--train-dir")
    text = str(caught.value)
    assert "class_000, class_001, class_002, class_003, class_004 and 994 more hold no images" in text
    assert ". " not in text.removeprefix(f"--train-dir {tmp_path}")
    write(tmp_path, *(f"class_{n:03}/0.png" for n in range(998)))
    with pytest.raises(InputError, match="class_998 holds no images"):
        open_folder(tmp_path, "--train-dir")


def test_links_in_a_circle(tmp_path):
    """A link to a folder above it adds nothing; a class folder that is a link is a class."""
    write(tmp_path, "real/0.png", "real/in/1.png")
    (tmp_path / "real" / "in" / "up").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "self").symlink_to(tmp_path / "real")
    (tmp_path / "twin").symlink_to(tmp_path / "real" / "in")
    names = [name for name, _ in names_of(open_folder(tmp_path, "--train-dir"))]
    assert names == ["real/0.png", "real/in/1.png", "twin/1.png", "twin/up/0.png"]


def test_a_link_to_nothing(tmp_path):
    """An image that is gone is refused when it is read, not left out in silence."""
    write(tmp_path, "a/0.png")
    (tmp_path / "a" / "1.png").symlink_to(tmp_path / "gone.png")
    assert len(open_folder(tmp_path, "--train-dir").samples) == 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_is_no_image(tmp_path):
    """Opening it would wait for ever."""
    write(tmp_path, "a/0.png")
    os.mkfifo(tmp_path / "a" / "1.png")
    assert len(open_folder(tmp_path, "--train-dir").samples) == 1


def test_folders_that_cannot_be_used(tmp_path):
    """A file, nothing at all, images without class folders."""
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--train-dir .*file is not a folder"):
        open_folder(tmp_path / "file", "--train-dir")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"--train-dir .*empty holds no sub-folders; give"):
        open_folder(tmp_path / "empty", "--train-dir")
    write(tmp_path / "loose", "0.png")
    with pytest.raises(InputError, match=r"--train-dir .*loose holds images, but no sub-folders; give"):
        open_folder(tmp_path / "loose", "--train-dir")
