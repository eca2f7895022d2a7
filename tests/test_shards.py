"""Webdataset shards are read with their classes; damaged archives, and archives of other things, get one sentence."""

import io
import json
import pickle
import tarfile

import numpy as np
import pytest
import torch
from helpers import make_labels
from image_layouts import Loaded, numbered_file, numbered_pixels, write_tar
from PIL import Image
from torch.utils.data import DataLoader

from utils.data.image_sets import open_images
from utils.data.images import image_bytes, image_name, image_size, load_image, read_image
from utils.data.readers.shards import recognise
from utils.system.errors import InputError

CLASSES = [1, 0, 2, 1, 0]


def samples(first=0, kind="png", label="cls"):
    """Return the files of five samples."""
    files = []
    for number, target in enumerate(CLASSES, first):
        content = str(target) if label == "cls" else json.dumps({"caption": "noise", label: target})
        files.append((f"sample{number:05}.{kind}", numbered_file(number, kind)))
        files.append((f"sample{number:05}.{'cls' if label == 'cls' else 'json'}", content.encode()))
    return files


def opened(path, part="train"):
    assert recognise(path)
    return open_images(path, "--train-dir", part)


@pytest.mark.parametrize("kind", ["png", "webp"])
@pytest.mark.parametrize("label", ["cls", "label", "class", "class_id"])
def test_a_shard(kind, label, tmp_path):
    path = write_tar(tmp_path / "shard.tar", samples(kind=kind, label=label))
    images = opened(path)
    assert (images.targets, images.classes, images.named, images.values) == (CLASSES, ["0", "1", "2"], False, "bytes")
    for number, (image, _) in enumerate(images.samples):
        assert np.array_equal(load_image(image), numbered_pixels(number))
        assert read_image(image) == numbered_file(number, kind)
        assert image_bytes(image) == len(numbered_file(number, kind))
        assert image_size(image) == (9, 7)
        assert image_name(image, images.root) == f"shard/sample{number:05}.{kind}"
    assert str(images.samples[1][0]) == f"{path}: shard/sample00001.{kind}"


def test_the_class_of_a_sample_that_gives_several(tmp_path):
    """`.cls` comes before `.cls.txt` and JSON; `label` before `class`, `cls` and `class_id`."""
    files = [
        *[("a.png", numbered_file(0)), ("a.json", b'{"label": 3}'), ("a.cls.txt", b"2"), ("a.cls", b"0")],
        *[("b.png", numbered_file(1)), ("b.json", b'{"label": 3}'), ("b.cls.txt", b"1")],
        *[("c.png", numbered_file(2)), ("c.json", b'{"class_id": 6, "cls": 5, "class": 4, "label": 2}')],
        *[("d.png", numbered_file(3)), ("d.json", b'{"class_id": 6, "cls": 5, "class": 3}')],
        *[("e.png", numbered_file(4)), ("e.json", b'{"class_id": 6, "cls": 4}')],
    ]
    images = opened(write_tar(tmp_path / "shard.tar", files))
    assert (images.classes, images.targets) == (["0", "1", "2", "3", "4"], [0, 1, 2, 3, 4])


def test_grey_images(tmp_path):
    """One image with colours makes the set one of three channels."""
    out = io.BytesIO()
    Image.fromarray(numbered_pixels(0)[:, :, 0]).save(out, "PNG")
    grey = [("a.png", out.getvalue()), ("a.cls", b"0")]
    images = opened(write_tar(tmp_path / "shard.tar", grey))
    assert images.channels == 1
    assert np.array_equal(load_image(images.samples[0][0], 1), numbered_pixels(0)[:, :, 0])
    assert opened(write_tar(tmp_path / "shard.tar", [*grey, *samples()])).channels == 3


def test_jpeg(tmp_path):
    image = opened(write_tar(tmp_path / "shard.tar", samples(kind="jpg"))).samples[2][0]
    assert np.array_equal(load_image(image), Image.open(io.BytesIO(numbered_file(2, "jpg"))))


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_of_tar_and_long_names(kind, tmp_path):
    """Names of up to 200 characters, in folders, with accents; other members are skipped."""
    folder = "a" * 60 + "/" + "b" * 60
    files = [
        (f"{folder}/{'c' * 60}é{number}.{suffix}", content)
        for number in range(3)
        for suffix, content in (("cls", b"0\n"), ("png", numbered_file(number)))
    ]
    path = write_tar(tmp_path / "shard.tar", files, kind)
    with tarfile.open(path, "a", format=kind) as archive:
        for name, type_ in (("folder.png", tarfile.DIRTYPE), ("link.png", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = type_, "x" * 150 if kind != tarfile.USTAR_FORMAT else "x"
            archive.addfile(info)
        info = tarfile.TarInfo("__info__.json")
        archive.addfile(info)
    images = opened(path)
    assert [str(image.container.name(image.number)) for image, _ in images.samples] == [
        f"shard/{folder}/{'c' * 60}é{number}.png" for number in range(3)
    ]
    for number, (image, _) in enumerate(images.samples):
        assert np.array_equal(load_image(image), numbered_pixels(number))


def test_names_of_classes(tmp_path):
    """Names are sorted."""
    names = ["tench", "cock", "hen"]
    files = [
        (f"{n}.{suffix}", content)
        for n in range(3)
        for suffix, content in (("json", json.dumps({"label": names[n]}).encode()), ("png", numbered_file(n)))
    ]
    images = opened(write_tar(tmp_path / "shard.tar", files))
    assert (images.classes, images.targets, images.named) == (["cock", "hen", "tench"], [2, 0, 1], True)
    with pytest.raises(InputError, match=r"shard\.tar gives some classes as numbers and some as names"):
        opened(write_tar(tmp_path / "shard.tar", [*files, ("9.cls", b"1"), ("9.png", numbered_file(9))]))


def test_a_folder_of_shards_with_two_parts(tmp_path, program_log):
    """Shards are in the order of their names; equal names in two shards are two samples."""
    write_tar(tmp_path / "imagenet-train-000001.tar", samples(5))
    write_tar(tmp_path / "imagenet-train-000000.tar", samples(0))
    write_tar(tmp_path / "imagenet-val-{000000..000001}.tar", samples(0)[2:])
    (tmp_path / "sizes.json").write_text("{}")
    train, val = opened(tmp_path), opened(tmp_path, "val")
    assert (train.targets, val.targets) == (CLASSES * 2, CLASSES[1:])
    assert len({image_name(image, "") for image, _ in train.samples}) == 10
    for number, (image, _) in enumerate(train.samples):
        assert np.array_equal(load_image(image), numbered_pixels(number))
    assert "holds the parts train, val: --train-dir takes val" in program_log.text
    (tmp_path / "imagenet-val-{000000..000001}.tar").unlink()
    with pytest.raises(InputError, match="holds no val part"):
        opened(tmp_path, "val")


def test_the_validation_set_is_the_test_part_without_another(tmp_path):
    write_tar(tmp_path / "train-0.tar", samples())
    write_tar(tmp_path / "test-0.tar", samples()[4:])
    assert opened(tmp_path, "val").targets == CLASSES[2:]


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ([], "holds no images"),
        ([("a.txt", b"caption")], "holds no images"),
        ([("a.png", numbered_file(0))], "the sample a has no class"),
        ([("a.cls", b"1")], "the sample a has no image"),
        ([("a.png", numbered_file(0)), ("a.cls", b"")], "the sample a has no class"),
        ([("a.png", numbered_file(0)), ("a.cls", b"\xff\xfe")], "the sample a has no class"),
        ([("a.png", numbered_file(0)), ("a.json", b"{")], "the sample a has no class"),
        ([("a.png", numbered_file(0)), ("a.json", b"[3]")], "the sample a has no class"),
        ([("a.png", numbered_file(0)), ("a.json", b"[" * 100_000)], "the sample a has no class"),
        ([("a.png", numbered_file(0)), ("a.json", b'{"label": true}')], "the sample a has no class"),
        ([("a.png", numbered_file(0)), ("a.cls", b"-1")], "has the class -1"),
        ([("a.png", numbered_file(0)), ("a.json", b'{"label": 1' + b"0" * 4000 + b"}")], "has the class 1000"),
        ([("a.png", numbered_file(0)), ("a.cls", b"100000")], "has the class 100000"),
        ([("a.png", numbered_file(0)), ("a.png", numbered_file(0)), ("a.cls", b"1")], r"holds a\.png twice"),
        ([("a.png", numbered_file(0)), ("a.jpg", numbered_file(0)), ("a.cls", b"1")], r"several images \(png, jpg\)"),
        ([("a.png", numbered_file(0)), ("a.json", b" " * (2**20 + 1))], r"a\.json is too long"),
    ],
)
def test_other_contents_are_refused(files, problem, tmp_path):
    with pytest.raises(InputError, match=rf"shard\.tar.*{problem}") as caught:
        opened(write_tar(tmp_path / "shard.tar", files))
    assert len(str(caught.value)) < 400


def test_a_second_image_of_another_kind(tmp_path):
    """An image such as a segmentation, whose suffix has two parts, is not taken."""
    files = [("a.seg.png", numbered_file(1)), ("a.png", numbered_file(0)), ("a.cls", b"0")]
    assert np.array_equal(
        load_image(opened(write_tar(tmp_path / "shard.tar", files)).samples[0][0]), numbered_pixels(0)
    )


def test_damaged_archives(tmp_path):
    """Wherever an archive ends or is damaged, images are not lost silently."""
    path = write_tar(tmp_path / "shard.tar", samples())
    content = path.read_bytes()
    with tarfile.open(path) as archive:
        end = max(member.offset_data + 512 * -(-member.size // 512) for member in archive)
        third = archive.getmembers()[2].offset
    for length in (1, 100, 512, third, third + 3, third + 600, end - 600, end, end + 100):
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match=r"shard\.tar is no archive of images.*copy it again"):
            opened(path)
    path.write_bytes(content[: third + 5] + b"\xff" + content[third + 6 :])
    with pytest.raises(InputError, match=rf"header at byte {third} is damaged"):
        opened(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"shard\.tar is no archive"):
        opened(path)


def changed_header(content, place, field, value):
    """Return an archive with another value in the first header, and the checksum that belongs to it."""
    header = bytearray(content[:512])
    header[place : place + field] = value
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + content[512:]


@pytest.mark.parametrize("size", [b"\xff" * 12, b"\x80" + b"\xff" * 11, b"7" * 11 + b"\0", b"-0000000012\0"])
def test_sizes_that_are_negative_or_absurd(size, tmp_path):
    """A negative size would make a reader that believes it run in circles."""
    path = write_tar(tmp_path / "shard.tar", samples())
    path.write_bytes(changed_header(path.read_bytes(), 124, 12, size))
    with pytest.raises(InputError, match=r"shard\.tar is no archive"):
        opened(path)


def test_soft_labels_are_told_apart(tmp_path):
    """Label files have the same suffix; the sentence names the flag for them."""
    labels = make_labels(tmp_path / "labels", epochs=1)
    for place in (labels / "epoch_0" / "batch_0.tar", labels / "epoch_0"):
        with pytest.raises(InputError, match=r"batch_0\.tar .*torch\.save; soft labels belong to --fkd-path"):
            opened(place)
    with pytest.raises(InputError, match="holds soft labels, not images"):
        opened(labels)
    torch.save([1], labels / "old.tar", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match=r"old\.tar .*torch\.save"):
        opened(labels / "old.tar")


def test_an_archive_that_is_cut_after_it_was_opened(tmp_path):
    path = write_tar(tmp_path / "shard.tar", samples())
    images = opened(path)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(InputError, match=r"shard\.tar: shard/sample00003\.png cannot be (read|decoded).*ends early"):
        load_image(images.samples[3][0])
    path.unlink()
    with pytest.raises(InputError, match=r"sample00003\.png cannot be read \(No such file"):
        read_image(images.samples[3][0])


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_read_the_same_images(context, tmp_path):
    images = opened(write_tar(tmp_path / "shard.tar", samples()))
    load_image(images.samples[0][0])
    loader = DataLoader(Loaded(images), 2, num_workers=2, multiprocessing_context=context)
    assert torch.equal(torch.cat(list(loader)), torch.stack([torch.from_numpy(numbered_pixels(n)) for n in range(5)]))


def test_a_reference_can_be_pickled(tmp_path):
    images = opened(write_tar(tmp_path / "shard.tar", samples()))
    image = pickle.loads(pickle.dumps(images.samples[3][0]))
    assert np.array_equal(load_image(image), numbered_pixels(3))


def test_other_places_are_not_shards(tmp_path):
    assert not recognise(tmp_path)
    assert not recognise(tmp_path / "absent")
    (tmp_path / "notes.txt").write_text("")
    assert not recognise(tmp_path / "notes.txt")
