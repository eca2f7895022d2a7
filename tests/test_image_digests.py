"""Digests of images: the same pixels in another file are the same image, and every other difference is named."""

import shutil

import numpy as np
import pytest
import torch
from helpers import make_images
from PIL import Image

from utils.data.folders import open_folder
from utils.data.identity import file_digest, identify, pixel_digest
from utils.labels.digests import ImageDigests, find_differences, read_image_digests


@pytest.fixture
def folder(tmp_path):
    """A folder of 3 classes x 4 images of noise."""
    return make_images(tmp_path / "images")


def digests_of(folder, known=None):
    """Identify all images of a folder."""
    return identify(open_folder(folder, "--data").samples, known)


def differences(before, folder):
    """Compare the digests `before` with the folder's current images."""
    samples = open_folder(folder, "--data").samples
    return find_differences(before, identify(samples), [path.removeprefix(f"{folder}/") for path, _ in samples])


def test_digests_are_those_of_docs(folder):
    """Digests are blake2b with 8 bytes: one of size and RGB bytes, one of the file."""
    path = folder / "class_0" / "0.png"
    digests = digests_of(folder)
    assert digests.files[0].numpy().tobytes() == file_digest(path.read_bytes())
    assert digests.pixels[0].numpy().tobytes() == pixel_digest(Image.open(path))
    assert digests.pixels.shape == digests.files.shape == (12, 8)
    assert digests.pixels.dtype == torch.uint8
    assert len(set(map(bytes, digests.pixels.numpy()))) == 12


def test_a_rewritten_png_is_the_same_image(folder):
    """The file's bytes differ, but its pixels are the same."""
    before = digests_of(folder)
    for path in folder.rglob("*.png"):
        Image.open(path).save(path, compress_level=1)
    after = digests_of(folder)
    assert not torch.equal(before.files, after.files)
    assert torch.equal(before.pixels, after.pixels)
    assert differences(before, folder) is None
    assert before.digest() == after.digest()


def test_renamed_files_in_the_same_order_are_the_same_images(folder):
    """Names do not matter."""
    before = digests_of(folder)
    for path in folder.rglob("*.png"):
        path.rename(path.with_name(f"image_{path.name}"))
    assert differences(before, folder) is None


def test_a_known_file_is_not_decoded(folder, monkeypatch):
    """A file that the labels were made for is only read."""
    before = digests_of(folder)
    monkeypatch.setattr(Image, "open", None)
    after = digests_of(folder, known=before)
    assert torch.equal(before.pixels, after.pixels)


def test_swapped_files_are_named(folder):
    """Image 0 of the labels is now at the place of image 2."""
    before = digests_of(folder)
    first, third = folder / "class_0" / "0.png", folder / "class_0" / "2.png"
    shutil.move(first, folder / "x")
    shutil.move(third, first)
    shutil.move(folder / "x", third)
    assert differences(before, folder) == (
        "2 images have another number: image 0 of the labels is now image 2, class_0/2.png"
    )


def test_another_set_is_named(folder, tmp_path):
    """Not one image is in common."""
    other = make_images(tmp_path / "other", seed=1)
    assert differences(digests_of(folder), other) == "none of its images is one of those that the labels were made for"


def test_a_replaced_image_is_named(folder):
    """One image of twelve is another."""
    before = digests_of(folder)
    Image.fromarray(np.zeros((36, 44, 3), np.uint8)).save(folder / "class_1" / "0.png")
    assert differences(before, folder) == "1 of the labels' 12 images are not in it (image 4)"


def test_an_image_more_shifts_the_others(folder):
    """An image was added at the start of the set."""
    before = digests_of(folder)
    Image.fromarray(np.zeros((36, 44, 3), np.uint8)).save(folder / "class_0" / "00.png")
    assert differences(before, folder) == (
        "it holds 13 images and the labels were made for 12 and "
        "11 images have another number: image 1 of the labels is now image 2, class_0/1.png"
    )


def test_an_image_that_stands_for_two(folder):
    """The labels were made with two copies of an image; the folder has one copy and another image."""
    before = digests_of(folder)
    doubled = ImageDigests(before.pixels.clone(), before.files.clone())
    doubled.pixels[1], doubled.files[1] = doubled.pixels[0], doubled.files[0]
    samples = open_folder(folder, "--data").samples
    text = find_differences(doubled, before, [path for path, _ in samples])
    assert text == f"{samples[0][0]} stands for 2 of the labels' images"


def test_copies_that_are_swapped_are_named_as_moved():
    """Of images a, b, a, b the last two change places: none of them is missing, and none stands for two."""
    rows = torch.arange(2 * 16, dtype=torch.uint8).view(2, 16)
    before, after = (ImageDigests(rows[order], rows[order] + 100) for order in ([0, 1, 0, 1], [0, 1, 1, 0]))
    assert find_differences(before, after, ["a", "b", "c", "d"]) == (
        "2 images have another number: image 2 of the labels is now image 3, d"
    )


def test_labels_of_others_have_no_digests(tmp_path):
    """Labels of other projects have None, and this is not an error."""
    assert read_image_digests(tmp_path) is None
