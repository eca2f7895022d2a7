"""Parquet tables of images, as the Hugging Face hub has them, are read with their classes. Needs pyarrow."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import ROOT, run
from image_layouts import Loaded, image_column, numbered_file, numbered_pixels, write_parquet
from torch.utils.data import DataLoader

from utils import images as images_command
from utils.data.identity import identify, pixel_digest
from utils.data.image_sets import open_images
from utils.data.images import image_bytes, image_name, image_size, load_image, read_image
from utils.data.readers import parquet
from utils.data.readers.parquet import recognise
from utils.system.errors import InputError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

CLASSES = [1, 0, 2, 1, 0, 2, 2]
NAMES = ["tench", "cock", "hen"]


def opened(path, part="train"):
    assert recognise(path)
    return open_images(path, "--train-dir", part)


def same_pixels(images, first=0):
    """Return whether the images are the numbered ones, in order."""
    return all(
        np.array_equal(load_image(image), numbered_pixels(first + n)) for n, (image, _) in enumerate(images.samples)
    )


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("group", [1, 2, 100])
def test_a_table_of_the_hub(compression, group, tmp_path):
    path = write_parquet(
        tmp_path / "data.parquet",
        {"image": image_column(), "label": CLASSES},
        NAMES,
        group=group,
        compression=compression,
    )
    images = opened(path)
    assert (images.classes, images.targets, images.named, images.values) == (NAMES, CLASSES, True, "bytes")
    assert images.channels == 3
    assert same_pixels(images)
    for number in (6, 0, 3):
        image = images.samples[number][0]
        assert read_image(image) == numbered_file(number)
        assert image_bytes(image) == len(numbered_file(number))
        assert image_size(image) == (9, 7)
        assert image_name(image, images.root) == f"data/{number:07}"


def test_classes_without_names(tmp_path):
    images = opened(write_parquet(tmp_path / "data.parquet", {"image": image_column(), "label": CLASSES}))
    assert (images.classes, images.named) == (["0", "1", "2"], False)


def test_classes_as_texts(tmp_path):
    """Names are sorted; a column with a dictionary is read like a plain one."""
    texts = [NAMES[target] for target in CLASSES]
    for column in (pa.array(texts), pa.array(texts).dictionary_encode()):
        images = opened(write_parquet(tmp_path / "data.parquet", {"image": image_column(), "label": column}))
        assert (images.classes, images.named) == (["cock", "hen", "tench"], True)
        assert [images.classes[target] for target in images.targets] == texts


def test_grey_images(tmp_path):
    images = opened(write_parquet(tmp_path / "data.parquet", {"image": image_column(grey=True), "label": CLASSES}))
    assert images.channels == 1
    assert np.array_equal(load_image(images.samples[3][0], 1), numbered_pixels(3, True))


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
@pytest.mark.parametrize("label", ["label", "labels", "fine_label"])
def test_bytes_without_a_struct(kind, label, tmp_path):
    columns = {
        "img": pa.array([numbered_file(n) for n in range(len(CLASSES))], kind),
        label: pa.array(CLASSES, pa.int8()),
        "coarse_label": [0] * len(CLASSES),
    }
    images = opened(write_parquet(tmp_path / "data.parquet", columns))
    assert images.targets == CLASSES
    assert same_pixels(images)


def test_columns_of_other_names(tmp_path):
    """The only column of bytes, and the column that the metadata call one of classes."""
    columns = {"photo": image_column(), "species": CLASSES, "label": [0] * len(CLASSES)}
    images = opened(write_parquet(tmp_path / "data.parquet", columns, NAMES, "species"))
    assert (images.targets, images.classes) == (CLASSES, NAMES)


@pytest.mark.parametrize("folder", ["", "data", "plain_text"])
def test_a_folder_with_two_parts(folder, tmp_path, program_log):
    for number, first in ((1, 7), (0, 0)):
        name = f"train-{number:05}-of-00002-0a1b2c.parquet"
        write_parquet(tmp_path / folder / name, {"image": image_column(first), "label": CLASSES}, NAMES)
    write_parquet(
        tmp_path / folder / "validation-00000-of-00001.parquet",
        {"image": image_column(50), "label": CLASSES[::-1]},
        NAMES,
    )
    write_parquet(
        tmp_path / folder / "test-00000-of-00001.parquet", {"image": image_column(70), "label": [-1] * 7}, NAMES
    )
    (tmp_path / "README.md").write_text("")
    train, val = opened(tmp_path), opened(tmp_path, "val")
    assert (train.targets, val.targets) == (CLASSES * 2, CLASSES[::-1])
    assert same_pixels(train)
    assert same_pixels(val, 50)
    assert len({image_name(image, "") for image, _ in train.samples}) == 14
    assert "holds the parts test, train, val: --train-dir takes val" in program_log.text
    for path in (tmp_path / folder).glob("[tv]*[tn]-*"):
        if not path.name.startswith("train"):
            path.unlink()
    with pytest.raises(InputError, match="holds no val part, only train-00000"):
        opened(tmp_path, "val")


def test_several_sets_in_a_folder(tmp_path):
    for name in ("cropped", "full"):
        write_parquet(tmp_path / name / "train-0.parquet", {"image": image_column(), "label": CLASSES})
    with pytest.raises(InputError, match=r"several sets; give one of the folders .*cropped"):
        opened(tmp_path)


def test_few_groups_stay_in_memory(tmp_path, monkeypatch):
    """Groups are read again when they are needed again, and the images are still right."""
    path = write_parquet(tmp_path / "data.parquet", {"image": image_column(), "label": CLASSES})
    images = opened(path)
    container = images.samples[0][0].container
    monkeypatch.setattr(parquet, "CACHE_BYTES", 2 * len(numbered_file(0)) + 200)
    for number in (0, 6, 1, 5, 2, 4, 3):
        assert np.array_equal(load_image(images.samples[number][0]), numbered_pixels(number))
        assert len(container.groups.columns) == 1
    monkeypatch.setattr(parquet, "CACHE_BYTES", 2**20)
    assert same_pixels(images)
    assert len(container.groups.columns) == 4


@pytest.mark.parametrize(
    ("columns", "names", "problem"),
    [
        ({"image": image_column()}, None, "has no column of classes"),
        ({"label": CLASSES}, None, "has no column of images as bytes"),
        ({"image": ["a.png"] * 7, "label": CLASSES}, None, "has no column of images as bytes"),
        (
            {"a": image_column(), "b": image_column(), "label": CLASSES},
            None,
            "several columns of images as bytes, a, b",
        ),
        ({"image": image_column(), "label": [0.5] * 7}, None, "a row has no class in the column label"),
        ({"image": image_column(), "label": [None, *CLASSES[1:]]}, None, "a row has no class in the column label"),
        ({"image": image_column(), "label": [-1, *CLASSES[1:]]}, NAMES, "has the class -1"),
        ({"image": image_column(), "label": [3, *CLASSES[1:]]}, NAMES, "has the class 3"),
        ({"image": image_column(), "label": [2**40, *CLASSES[1:]]}, None, "has the class 1099511627776"),
        ({"image": image_column(), "label": ["cow", *["hen"] * 6]}, NAMES, "has the class cow, which its list lacks"),
        ({"image": image_column(), "label": CLASSES}, ["a", "b", "a"], "names a class twice"),
        ({"image": image_column(count=0), "label": pa.array([], pa.int64())}, None, "column of images|holds no images"),
    ],
)
def test_other_tables_are_refused(columns, names, problem, tmp_path):
    with pytest.raises(InputError, match=rf"data\.parquet.*({problem})"):
        opened(write_parquet(tmp_path / "data.parquet", columns, names))


def test_files_that_do_not_belong_together(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"image": image_column(), "label": CLASSES}, NAMES)
    write_parquet(tmp_path / "b.parquet", {"image": image_column(), "label": CLASSES}, NAMES[::-1])
    with pytest.raises(InputError, match=r"b\.parquet has other columns or classes than .*a\.parquet"):
        opened(tmp_path)


def test_rows_without_an_image(tmp_path):
    """The image is named when it is read."""
    images = [*image_column()[:2], {"bytes": None, "path": "elsewhere.png"}, None, *image_column()[4:]]
    opened_set = opened(write_parquet(tmp_path / "data.parquet", {"image": images, "label": CLASSES}))
    for number in (2, 3):
        with pytest.raises(InputError, match=rf"data/000000{number} cannot be read \(its row holds no image"):
            read_image(opened_set.samples[number][0])
        with pytest.raises(InputError, match=rf"data/000000{number} cannot be read \(its row holds no image"):
            image_bytes(opened_set.samples[number][0])


@pytest.mark.parametrize(
    "metadata", [b"", b"[]", b"{", b'{"info": {"features": {"label": 3}}}', b"[" * 100_000, b"\xff"]
)
def test_metadata_that_cannot_be_read(metadata, tmp_path):
    """The classes have no names then."""
    table = pa.table({"image": image_column(), "label": CLASSES}).replace_schema_metadata({"huggingface": metadata})
    pq.write_table(table, tmp_path / "data.parquet")
    images = opened(tmp_path)
    assert (images.classes, images.targets) == (["0", "1", "2"], CLASSES)


def test_damaged_files(tmp_path):
    path = write_parquet(tmp_path / "data.parquet", {"image": image_column(), "label": CLASSES})
    content = path.read_bytes()
    for length in (0, 3, 100, len(content) - 3):
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match=r"data\.parquet is damaged or cannot be read.*copy it again"):
            opened(path)


def test_a_file_that_is_cut_after_it_was_opened(tmp_path):
    path = write_parquet(tmp_path / "data.parquet", {"image": image_column(), "label": CLASSES})
    images = opened(path)
    fresh = pickle.loads(pickle.dumps(images.samples[3][0]))  # as a worker process gets it
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"data/0000003 cannot be decoded \(.*data\.parquet is damaged"):
        load_image(fresh)


@pytest.fixture
def groups_read(tmp_path, monkeypatch):
    """Return a list of the groups that are read from files, of one row each; a process keeps one group in memory."""
    read, numbers = pq.ParquetFile.read_row_group, []

    def note(self, number, *args, **kwargs):
        numbers.append(number)
        return read(self, number, *args, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", note)
    monkeypatch.setattr(parquet, "CACHE_BYTES", 0)
    write_parquet(tmp_path / "data.parquet", {"image": image_column(), "label": CLASSES}, NAMES, group=1)
    return numbers


def test_sizes_of_files_are_kept(tmp_path, groups_read):
    """They are known from the first reading of a group, however often it is asked and also in a worker process."""
    images = [image for image, _ in opened(tmp_path / "data.parquet").samples]
    sizes = [len(read_image(image)) for image in images]
    for known in (images, images, pickle.loads(pickle.dumps(images))):
        assert [image_bytes(image) for image in known] == sizes == [len(numbered_file(n)) for n in range(len(CLASSES))]
    assert groups_read == [*range(len(CLASSES))]


def test_sizes_of_files_need_one_reading(tmp_path, groups_read):
    images = [image for image, _ in opened(tmp_path / "data.parquet").samples]
    assert [image_bytes(image) for image in images * 2] == [len(numbered_file(n)) for n in range(len(CLASSES))] * 2
    assert groups_read == [*range(len(CLASSES))]


def test_digests_read_an_image_once(tmp_path, monkeypatch):
    """The bytes that give the digest of the file are decoded for the digest of the pixels."""
    path = write_parquet(tmp_path / "data.parquet", {"image": image_column(), "label": CLASSES})
    samples = opened(path).samples
    read, numbers = parquet.Tables.read, []

    def note(self, number):
        numbers.append(number)
        return read(self, number)

    monkeypatch.setattr(parquet.Tables, "read", note)
    digests = identify(samples)
    assert sorted(numbers) == [*range(len(CLASSES))]
    assert [pixels.tobytes() for pixels in digests.pixels.numpy()] == [
        pixel_digest(load_image(image)) for image, _ in samples
    ]


def test_conversion_reads_an_image_once(tmp_path, groups_read):
    """Its suffix and the written file come from the same reading."""
    result = run(images_command, "convert", tmp_path / "data.parquet", tmp_path / "folders")
    assert result.code == 0, result.err
    assert groups_read == [*range(len(CLASSES))]
    for number, target in enumerate(CLASSES):
        assert (tmp_path / "folders" / NAMES[target] / f"{number}.png").read_bytes() == numbered_file(number)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_read_the_same_images(context, tmp_path):
    """Also if the parent process has read images before."""
    images = opened(write_parquet(tmp_path / "data.parquet", {"image": image_column(), "label": CLASSES}))
    load_image(images.samples[0][0])
    loader = DataLoader(Loaded(images), 2, num_workers=2, multiprocessing_context=context)
    expected = torch.stack([torch.from_numpy(numbered_pixels(n)) for n in range(len(CLASSES))])
    assert torch.equal(torch.cat(list(loader)), expected)


def test_a_reference_can_be_pickled(tmp_path):
    images = opened(write_parquet(tmp_path / "data.parquet", {"image": image_column(), "label": CLASSES}))
    load_image(images.samples[0][0])
    pickled = pickle.dumps(images.samples[3][0])
    assert numbered_file(0) not in pickled
    assert np.array_equal(load_image(pickle.loads(pickled)), numbered_pixels(3))


@pytest.mark.parametrize(("version", "problem"), [(None, "which cannot be imported"), ("14.0.0", "may run code")])
def test_pyarrow_that_is_missing_or_too_old(version, problem, tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "data.parquet", {"image": image_column(), "label": CLASSES})
    if version is None:
        monkeypatch.setitem(sys.modules, "pyarrow", None)
    else:
        monkeypatch.setattr(pa, "__version__", version)
    with pytest.raises(InputError, match=rf"data\.parquet needs pyarrow.*{problem}.*pip install 'pyarrow>=14\.0\.1'"):
        opened(path)


def test_pyarrow_is_imported_for_tables_only():
    """Without a table, the optional package is not needed."""
    code = "import sys; from utils.data.readers import parquet; parquet.recognise('.'); print('pyarrow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"


def test_other_places_are_not_tables(tmp_path):
    assert not recognise(tmp_path)
    assert not recognise(tmp_path / "absent")
