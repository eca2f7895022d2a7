"""Image folders give the right files in the right order with the right pixels."""

import os
from pathlib import Path

import numpy as np
import pytest
from helpers import make_images, run
from PIL import Image
from torchvision.datasets import ImageFolder

import train_FKD_parallel
from utils.data.folders import open_folder
from utils.data.images import ImageSet, file_status, image_bytes, load_image, read_image
from utils.system.errors import InputError


def names_of(images: ImageSet):
    """Return the paths below the root, with their classes."""
    return [(os.path.relpath(path, images.root), target) for path, target in images.samples]


def write(folder, *names):
    """Write small images by these names: JPEG or PNG by suffix; any other suffix gets text."""
    for name in names:
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = {".jfif": "JPEG", ".jpe": "JPEG", ".jpg": "JPEG", ".png": "PNG"}.get(path.suffix.lower())
        if kind is None:
            path.write_text("no image")
        else:
            Image.new("RGB", (8, 8)).save(path, kind)


def test_the_order_is_that_of_torchvision(tmp_path):
    """Upper and lower case, nested folders, names around the slash and links give the samples of ImageFolder."""
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
    """Hidden files and folders, and files that Windows and macOS leave, give one log line per folder and no error."""
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


def test_images_of_other_types_are_warned_of(tmp_path, program_log):
    """They may belong to the set, and nobody would miss them otherwise."""
    write(tmp_path, "a/0.png", "a/1.gif", "a/2.avif")
    assert len(open_folder(tmp_path, "--val-dir").samples) == 1
    assert "WARNING: skipped 2 images of types that are not read in --val-dir" in program_log.text
    assert "a/1.gif, a/2.avif; convert them to PNG" in program_log.text


def test_classes_without_images(tmp_path):
    """One sentence names a few of a thousand classes, without another library's full stop in its middle."""
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
    """A link to a parent folder adds nothing; a class folder may be a link."""
    write(tmp_path, "real/0.png", "real/in/1.png")
    (tmp_path / "real" / "in" / "up").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "self").symlink_to(tmp_path / "real")
    (tmp_path / "twin").symlink_to(tmp_path / "real" / "in")
    names = [name for name, _ in names_of(open_folder(tmp_path, "--train-dir"))]
    assert names == ["real/0.png", "real/in/1.png", "twin/1.png", "twin/up/0.png"]
    (tmp_path / "real" / "root").symlink_to(tmp_path)
    (tmp_path / "real" / "to_itself").symlink_to("to_itself")
    (tmp_path / "to_itself").symlink_to("to_itself")
    assert [name for name, _ in names_of(open_folder(tmp_path, "--train-dir"))] == names


def test_a_link_to_nothing(tmp_path):
    """A missing image is refused when it is read, not skipped silently."""
    write(tmp_path, "a/0.png")
    (tmp_path / "a" / "1.png").symlink_to(tmp_path / "gone.png")
    samples = open_folder(tmp_path, "--train-dir").samples
    assert len(samples) == 2
    for ask in (image_bytes, file_status, read_image, load_image):
        with pytest.raises(InputError, match=r"1\.png cannot be"):
            ask(samples[1][0])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_is_no_image(tmp_path):
    """A pipe is skipped; opening it would block for ever."""
    write(tmp_path, "a/0.png")
    os.mkfifo(tmp_path / "a" / "1.png")
    assert len(open_folder(tmp_path, "--train-dir").samples) == 1


def test_folders_that_cannot_be_used(tmp_path):
    """A file, a missing folder and images without class folders are refused."""
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--train-dir .*file is not a folder"):
        open_folder(tmp_path / "file", "--train-dir")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"--train-dir .*empty holds no sub-folders; give"):
        open_folder(tmp_path / "empty", "--train-dir")
    write(tmp_path / "loose", "0.png")
    with pytest.raises(InputError, match=r"--train-dir .*loose holds images, but no sub-folders; give"):
        open_folder(tmp_path / "loose", "--train-dir")


GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)


def rgb_of(image, path, **options):
    """Save an image, read it again and return its pixels: uint8 [H, W, 3]."""
    image.save(path, **options)
    return np.asarray(load_image(path))


@pytest.mark.parametrize("scale", [257, 256])
@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "grey.pgm"])
def test_grey_images_of_16_bits(name, scale, tmp_path):
    """16-bit grey images give the pixels of 8 bits, however they were scaled; they do not become black and white."""
    wide = Image.fromarray(GREY.astype(np.uint16) * scale)
    assert wide.mode == "I;16"
    pixels = rgb_of(wide.convert("I") if name.endswith("pgm") else wide, tmp_path / name)
    assert (pixels == GREY[:, :, None]).all()


def test_grey_images_of_16_bits_in_the_other_byte_order(tmp_path):
    """The mode is I;16B, as PIL reads a big-endian TIFF."""
    data = (GREY.astype(">u2") * 257).tobytes()
    image = Image.frombytes("I;16B", (16, 16), data)
    image.save(tmp_path / "grey.tif")
    with Image.open(tmp_path / "grey.tif") as read:
        assert read.mode == "I;16B"
    assert (np.asarray(load_image(tmp_path / "grey.tif")) == GREY[:, :, None]).all()


def test_values_between_those_of_8_bits(tmp_path):
    """0x12FF is as bright as 0x12, as in PIL's 16-bit colours."""
    values = np.array([[0, 255, 256, 0x12FF, 65535]], dtype=np.uint16)
    assert rgb_of(Image.fromarray(values), tmp_path / "a.png")[0, :, 0].tolist() == [0, 0, 1, 0x12, 255]


def test_a_black_image_of_16_bits(tmp_path):
    """A black image stays black in any range."""
    assert (rgb_of(Image.fromarray(np.zeros((2, 2), np.uint16)), tmp_path / "a.png") == 0).all()


@pytest.mark.parametrize(
    ("array", "name", "words"),
    [
        (GREY.astype(np.uint16), "a.png", "16-bit grey values are all below 256"),
        (GREY.astype(np.float32), "a.tif", "floating-point numbers"),
        (GREY.astype(np.int32) << 20, "a.tif", "32-bit integers"),
    ],
)
def test_pixels_of_unknown_range(array, name, words, tmp_path):
    """One sentence names the file and the remedy."""
    Image.fromarray(array).save(tmp_path / name)
    with pytest.raises(InputError, match=f"{name} cannot be decoded .*{words}.*; save it in 8 bits"):
        load_image(tmp_path / name)


def test_other_modes_are_what_pil_makes_of_them(tmp_path):
    """Palettes (with transparency), alpha, CMYK and black and white give PIL's values, not only its shapes."""
    rgb = np.stack([GREY, GREY.T, 255 - GREY], axis=2)
    alpha = Image.fromarray(GREY.T.copy())
    colour = Image.fromarray(rgb)
    with_alpha = colour.copy()
    with_alpha.putalpha(alpha)
    assert (rgb_of(with_alpha, tmp_path / "rgba.png") == rgb).all()  # alpha is left out, not blended
    grey_alpha = Image.fromarray(GREY)
    grey_alpha.putalpha(alpha)
    assert (rgb_of(grey_alpha, tmp_path / "la.png") == GREY[:, :, None]).all()
    palette = Image.fromarray(GREY).convert("P")
    assert (rgb_of(palette, tmp_path / "p.png", transparency=7) == GREY[:, :, None]).all()
    bits = Image.fromarray(GREY).point(lambda value: 255 * (value > 99), mode="1")
    assert (rgb_of(bits, tmp_path / "bits.png") == 255 * (GREY > 99)[:, :, None]).all()
    assert (rgb_of(colour.convert("CMYK"), tmp_path / "cmyk.tif") == rgb).all()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty, or of a type that PIL does not know"),
        (b"GIF", "it is empty, or of a type that PIL does not know"),
        (None, "No such file or directory"),
        (b"P6 100000 100000 255\n", "its header states 100000 x 100000 pixels|exceeds limit"),
    ],
)
@pytest.mark.parametrize("from_memory", [False, True])
def test_files_that_are_no_images(content, words, from_memory, tmp_path):
    """The error names the file once and shows no Python object."""
    path = tmp_path / "a.png"
    if content is not None:
        path.write_bytes(content)
    elif from_memory:
        return
    with pytest.raises(InputError, match=rf"a\.png cannot be decoded \(.*({words}).*\); replace the image") as caught:
        load_image(path, content=content if from_memory else None)
    assert "0x" not in str(caught.value)
    assert str(caught.value).count("a.png") == 1


@pytest.mark.parametrize("flag", ["train_dir", "val_dir"])
def test_a_run_does_not_write_between_images(flag, tiny, tmp_path):
    """An output folder among the class folders would become a class of the next run."""
    images = make_images(tmp_path / "images")
    result = run(train_FKD_parallel, *tiny.flags(images / "run", **{flag: images}, dry_run=True))
    assert result.code == 2
    assert f"--output-dir {images}/run is in the image folder --{flag.replace('_', '-')} {images}" in result.err
    assert not (images / "run").exists()
    result = run(train_FKD_parallel, *tiny.flags(tmp_path / "images2", **{flag: images}, dry_run=True))
    assert result.code == 0, result.err
