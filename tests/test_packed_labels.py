"""Packed labels hold the tensors of the files that they came from, or smaller forms; damage is noticed."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from helpers import IMAGE_SIZE, REFERENCE, SIDE, make_labels, read_run, run, tool
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from label_folders import IMAGES, make_flat, make_hald
from safetensors.torch import load_file, save_file

import train_FKD_parallel
from utils.labels.digests import ImageDigests, write_image_digests
from utils.labels.formats import open_labels
from utils.labels.packed import PackedStore, PackedWriter
from utils.labels.packed_codec import Codec, keep_largest
from utils.labels.packed_manifest import make_manifest
from utils.labels.packed_tensors import Shape, expand, expected_tensors, pack_nibbles, shrink, unpack_nibbles
from utils.labels.sre2l import TarWriter
from utils.labels.training_views import REUSED, TrainingViews
from utils.labels.types import BatchLabels
from utils.labels.views import DrawnViews, ReferenceOrder, ViewPolicy
from utils.system.errors import InputError
from utils.training.losses import as_logits

VERSION_2 = Path(__file__).parent / "data" / "packed_v2"
TENSORS = ("coords", "flip", "logits", "index", "weights", "augment")


def assert_same(a, b):
    """Assert that two `BatchLabels` have bit-identical tensors of the same dtypes."""
    pairs = {name: (getattr(a, name), getattr(b, name)) for name in TENSORS} | {"mix": (a.mix.partner, b.mix.partner)}
    for name, (left, right) in pairs.items():
        assert (left is None) == (right is None), name
        assert left is None or (left.dtype == right.dtype and torch.equal(left, right)), name
    assert a.mix[1:] == b.mix[1:]


def assert_same_stores(a, b):
    """Assert that two stores hold the same batches."""
    assert (a.epochs, a.batches_per_epoch) == (b.epochs, b.batches_per_epoch)
    for epoch in range(a.epochs):
        for batch in range(a.batches_per_epoch):
            assert_same(a.read(epoch, batch), b.read(epoch, batch))


def drawn_epoch(views, epoch, classes, dtype=torch.float16):
    """Draw one epoch of labels with random logits: a list of `BatchLabels`."""
    generator = torch.Generator().manual_seed(epoch)
    batches = [views.read(epoch, batch) for batch in range(views.batches_per_epoch)]
    return [
        drawn.labelled(
            (4 * torch.randn(len(drawn.index), classes, generator=generator)).to(dtype), [IMAGE_SIZE] * len(drawn.index)
        )
        for drawn in batches
    ]


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    images=st.integers(1, 13),
    batch_size=st.integers(1, 6),
    classes=st.integers(1, 9),
    mix_type=st.sampled_from(["cutmix", "mixup", "none"]),
    with_index=st.booleans(),
    dtype=st.sampled_from([torch.float16, torch.float32]),
)
def test_tar_packed_tar_gives_equal_tensors(images, batch_size, classes, mix_type, with_index, dtype, tmp_path_factory):
    root = tmp_path_factory.mktemp("round")
    views = DrawnViews(ViewPolicy(42, SIDE, 0.08, 1.0, mix_type, 0.8, 1.0), images, batch_size)
    writer = TarWriter(root / "tar", dtype, with_index)
    for epoch in range(2):
        writer.write(epoch, drawn_epoch(views, epoch, classes, dtype))
    assert tool("pack", root / "tar", root / "packed") == 0
    assert tool("unpack", root / "packed", root / "again") == 0
    tar, packed, again = (open_labels(root / name) for name in ("tar", "packed", "again"))
    assert (packed.dialect, again.dialect) == ("packed", tar.dialect)
    assert_same_stores(tar, packed)
    assert_same_stores(tar, again)


@pytest.mark.parametrize("name", ["sre2l_cutmix", "sre2l_mixup", "prism_cutmix", "sre2l_none"])
def test_reference_labels_round_trip(name, tmp_path):
    assert tool("pack", REFERENCE / name, tmp_path / "packed") == 0
    assert tool("unpack", tmp_path / "packed", tmp_path / "tar") == 0
    assert_same_stores(open_labels(REFERENCE / name), open_labels(tmp_path / "packed"))
    assert_same_stores(open_labels(REFERENCE / name), open_labels(tmp_path / "tar"))


@pytest.mark.parametrize("name", ["sre2l_cutmix", "prism_cutmix"])
def test_training_on_packed_reference_labels_gives_the_same_losses_to_the_bit(name, tmp_path):
    tool("pack", REFERENCE / name, tmp_path / "packed")
    losses = []
    for number, labels in enumerate((REFERENCE / name, tmp_path / "packed")):
        words = f"--train-dir {REFERENCE}/train --val-dir {REFERENCE}/val --fkd-path {labels} --input-size 224"
        words += f" --batch-size 8 --epochs 2 -j 0 --precision fp32 --device cpu --output-dir {tmp_path}/run{number}"
        words += " --model shufflenet_v2_x0_5"
        assert run(train_FKD_parallel, *words.split()).code == 0
        losses.append([row["train_loss"] for row in read_run(tmp_path / f"run{number}").rows])
    assert losses[0] == losses[1]


def test_unpacked_six_items_have_the_order_of_the_reference_sampler(tiny, tmp_path):
    """Rows in another order cannot become six-item files."""
    assert tool("pack", tiny.labels, tmp_path / "packed") == 0
    assert tool("unpack", tmp_path / "packed", tmp_path / "six", "--items", 6) == 0
    six = open_labels(tmp_path / "six")
    assert six.dialect == "sre2l"
    generator = torch.Generator().manual_seed(42)
    sampler = torch.utils.data.RandomSampler(range(six.num_images), generator=generator)
    for epoch in range(six.epochs):
        index = torch.cat([six.read(epoch, batch).index for batch in range(six.batches_per_epoch)])
        stored = [open_labels(tiny.labels).read(epoch, batch).index for batch in range(six.batches_per_epoch)]
        assert index.tolist() == list(sampler) == torch.cat(stored).tolist()
    assert tool("unpack", tmp_path / "packed", tmp_path / "other", "--items", 6, "--fkd-seed", 7) == 2


def test_the_largest_logits_alone_do_not_become_tar_files(tmp_path, capsys):
    make_store(tmp_path / "packed", Codec(keep_topk=3))
    assert tool("unpack", tmp_path / "packed", tmp_path / "tar") == 2
    assert "keeps the 3 largest logits" in capsys.readouterr().err
    assert not (tmp_path / "tar").exists()


def make_store(path, codec, classes=12, images=10, epochs=2, mix_type="cutmix"):
    """Write a packed store of random labels; return (store, labels by epoch before packing)."""
    policy = ViewPolicy(3, SIDE, 0.08, 1.0, mix_type, 0.8, 1.0)
    views = DrawnViews(policy, images, 4)
    manifest = make_manifest(codec, images, classes, 4, epochs, mix_type, codec.views == "stored", {}, policy)
    sizes = torch.tensor([IMAGE_SIZE] * images) if codec.views == "drawn" else None
    writer = PackedWriter(path, manifest, sizes)
    written = [drawn_epoch(views, epoch, classes, torch.float32) for epoch in range(epochs)]
    for epoch, batches in enumerate(written):
        writer.write(epoch, batches)
    return PackedStore(path), written


@pytest.mark.parametrize("mix_type", ["cutmix", "mixup", "none"])
def test_drawn_views_are_the_stored_ones(mix_type, tmp_path):
    store, written = make_store(tmp_path / "drawn", Codec(32, None, "drawn"), mix_type=mix_type)
    for epoch, batches in enumerate(written):
        for batch, labels in enumerate(batches):
            assert_same(store.read(epoch, batch), labels)


def test_a_library_that_draws_other_views_is_noticed(tmp_path):
    make_store(tmp_path / "drawn", Codec(16, None, "drawn"))
    manifest = json.loads((tmp_path / "drawn/manifest.json").read_text())
    (tmp_path / "drawn/manifest.json").write_text(json.dumps(manifest | {"draws": "0" * 32}))
    with pytest.raises(InputError, match="draws others"):
        PackedStore(tmp_path / "drawn")


@pytest.mark.parametrize("sizes", [[(9, 7)] * 5, [(9, 7), (7, 9), (8, 8), (9, 7), (5, 6)]])
def test_drawn_views_know_each_image_size_and_store_equal_ones_once(sizes, tmp_path):
    codec, policy = Codec(16, None, "drawn"), ViewPolicy(42, SIDE, 0.5, 1.0, "cutmix", 0.8, 1.0)
    views = DrawnViews(policy, len(sizes), 3)
    manifest = make_manifest(codec, len(sizes), 4, 3, 1, "cutmix", False, {}, policy)
    writer = PackedWriter(tmp_path / "drawn", manifest, torch.tensor(sizes))
    drawn = [views.read(0, batch) for batch in range(2)]
    wanted = [one.labelled(torch.zeros(len(one.index), 4).half(), [sizes[i] for i in one.index]) for one in drawn]
    writer.write(0, wanted)
    store = PackedStore(tmp_path / "drawn")
    assert load_file(tmp_path / "drawn/images.safetensors")["sizes"].shape == (1 if len(set(sizes)) == 1 else 5, 2)
    for batch, labels in enumerate(wanted):
        assert_same(store.read(0, batch), labels)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("keep_topk", [None, 5])
def test_quantised_values_are_within_half_a_step(bits, keep_topk, tmp_path):
    store, written = make_store(tmp_path / "small", Codec(bits, keep_topk))
    for epoch, batches in enumerate(written):
        tensors = store.open(epoch)
        half = (tensors["spans"][:, 1] if keep_topk else tensors["range"][1]).max().item() / 2
        for batch, labels in enumerate(batches):
            got = as_logits(store.read(epoch, batch).logits, 12, 1.0)
            rows = labels.logits.topk(keep_topk or 12, dim=1)
            assert (got.gather(1, rows.indices) - rows.values).abs().max() <= half + 1e-5


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_classes_that_were_not_kept_share_about_their_mass(temperature, tmp_path):
    """The total mass of the absent classes is right to second order, at any temperature."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 400, generator=generator)
    codec = Codec(32, 20)
    restored = codec.decode(codec.encode(logits), slice(0, 6)).dense(400, temperature, renormalise=False)
    kept = logits.topk(20, dim=1).indices
    absent = torch.ones_like(logits, dtype=torch.bool).scatter(1, kept, False)
    true = (torch.softmax(logits / temperature, dim=1) * absent).sum(dim=1)
    got = (torch.softmax(restored / temperature, dim=1) * absent).sum(dim=1)
    torch.testing.assert_close(got, true, rtol=0.06, atol=0)
    assert all(len(row[mask].unique()) == 1 for row, mask in zip(restored, absent, strict=True))


@pytest.mark.parametrize("store", sorted(VERSION_2.iterdir()), ids=lambda path: path.name)
def test_stores_of_version_2_are_read_as_version_2_read_them(store):
    """`expected.safetensors` holds the logits that that release's reader returned at temperature 4."""
    expected, packed = load_file(store / "expected.safetensors"), open_labels(store)
    for batch in range(2):
        labels = packed.read(0, batch)
        for name in ("coords", "flip", "index"):
            assert torch.equal(getattr(labels, name), expected[f"{name}_{batch}"]), name
        assert torch.equal(labels.mix.partner, expected[f"mix_index_{batch}"])
        assert torch.equal(as_logits(labels.logits, 7, 4.0), expected[f"logits_{batch}"])
        assert [labels.mix.lam, *labels.mix.box] == expected[f"mix_{batch}"].tolist()
    packed.check(0)


def test_a_started_store_of_version_2_is_not_continued(tmp_path):
    shutil.copytree(VERSION_2 / "all_32", tmp_path / "old")
    manifest = make_manifest(Codec(32), 5, 7, 3, 1, "cutmix", True, {"class_names": None})
    with pytest.raises(InputError, match="version is 2, not 4"):
        PackedWriter(tmp_path / "old", manifest)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 20),
    images=st.sampled_from([1, 2, 256, 257, 65536, 65537, 2**24 + 1]),
    batch_size=st.sampled_from([1, 3, 256, 257]),
    classes=st.integers(2, 40),
    bits=st.sampled_from([32, 16, 8, 4]),
    halves=st.booleans(),
    has_rest=st.booleans(),
    data=st.data(),
)
def test_small_forms_lose_nothing(rows, images, batch_size, classes, bits, halves, has_rest, data):
    kept = data.draw(st.integers(1, classes - 1))
    shape = Shape(rows, images, classes, kept, batch_size, bits, "cutmix", True, True, has_rest)
    generator = torch.Generator().manual_seed(rows)
    coords, slots = torch.rand(rows, 4, generator=generator), torch.arange(rows) % batch_size
    boxes = torch.ones(-(-rows // batch_size), 4, dtype=torch.int32)
    whole = {
        "coords": coords.half().float() if halves else coords,
        "flip": torch.rand(rows, generator=generator) < 0.5,
        "index": torch.randint(images, (rows,), generator=generator),
        "mix_index": slots,
        "mix_lam": torch.rand(len(boxes), dtype=torch.float64),
        "mix_bbox": boxes,
    } | Codec(bits, kept).encode(keep_largest(torch.randn(rows, classes, generator=generator).half().float(), kept))
    if not has_rest:
        del whole["rest"]
    small = shrink(whole, shape)
    expected = expected_tensors(shape)
    assert {name: tuple(tensor.shape) for name, tensor in small.items()} == {n: s for n, (_, s) in expected.items()}
    assert all(tensor.dtype in expected[name][0] for name, tensor in small.items())
    again = expand(small, shape)
    assert again.keys() == whole.keys()
    assert small["coords"].dtype == (torch.float16 if halves else torch.float32)
    for name in whole:
        lost = 2e-3 if name == "rest" and bits < 32 else 0  # the only value that is rounded
        torch.testing.assert_close(again[name].double(), whole[name].double(), rtol=lost, atol=lost, msg=name)


def test_a_row_of_50_of_1000_classes_takes_104_bytes_with_its_view():
    """LPQLD needs 210 bytes, without its share of the zip overhead and of the image order."""
    shape = Shape(1024, 10_000, 1000, 50, 128, 8, "cutmix", True, True, has_rest=False)
    wanted = expected_tensors(shape).values()
    sizes = [torch.empty(0, dtype=dtypes[0]).element_size() * math.prod(size) for dtypes, size in wanted]
    assert sum(sizes) / 1024 == pytest.approx(104.3, abs=0.05)


def digests_of(images, seed=0):
    """Return random digests of `images` images."""
    generator = torch.Generator().manual_seed(seed)
    pixels, files = torch.randint(256, (2, images, 8), dtype=torch.uint8, generator=generator)
    return ImageDigests(pixels, files)


def same_digests(one, other):
    """Return whether two stores hold the same digests of images."""
    return torch.equal(one.pixels, other.pixels) and torch.equal(one.files, other.files)


def test_labels_know_their_images_through_pack_and_unpack(tiny, tmp_path, capsys):
    """Digests survive tar, packed with stored or drawn views, and tar again; labels without digests say so."""
    digests, store = digests_of(12), open_labels(tiny.labels)
    writer = TarWriter(tmp_path / "tar", image_digests=digests)
    for epoch in range(store.epochs):
        writer.write(epoch, [store.read(epoch, batch) for batch in range(store.batches_per_epoch)])
    assert tool("pack", tmp_path / "tar", tmp_path / "packed") == 0
    assert tool("unpack", tmp_path / "packed", tmp_path / "again") == 0
    assert set(load_file(tmp_path / "packed" / "images.safetensors")) == {"pixel_digests", "file_digests"}
    for name in ("tar", "packed", "again"):
        assert same_digests(open_labels(tmp_path / name).image_digests, digests)
        assert same_digests(open_labels(tmp_path / name).image_digests, digests)
    assert (tmp_path / "tar/images.safetensors").read_bytes() == (tmp_path / "again/images.safetensors").read_bytes()
    capsys.readouterr()
    assert tool("info", tmp_path / "packed") == 0
    assert f"known by their digests, {digests.digest()}" in capsys.readouterr().out
    assert open_labels(tiny.labels).image_digests is None
    assert tool("info", tiny.labels) == 0
    assert "not known" in capsys.readouterr().out


def test_labels_of_other_projects_keep_digests_too(tmp_path):
    """An images.safetensors in LPLD's or HALD's folder survives packing and unpacking."""
    for name, make in (("flat", make_flat), ("hald", make_hald)):
        make(tmp_path / name)
        images = open_labels(tmp_path / name).num_images
        assert images == IMAGES
        write_image_digests(tmp_path / name, digests_of(images))
        assert tool("pack", tmp_path / name, tmp_path / f"{name}_packed") == 0
        assert tool("unpack", tmp_path / f"{name}_packed", tmp_path / f"{name}_again") == 0
        assert same_digests(open_labels(tmp_path / f"{name}_again").image_digests, digests_of(images))


def known_store(path, codec=None, digests=None, images=5, seed=1, sizes=None, names=None):
    """Open a writer for 3 epochs of a store that knows its images."""
    codec = codec or Codec()
    policy = ViewPolicy(3, SIDE, 0.08, 1.0, "none", 0.8, 1.0)
    manifest = make_manifest(codec, images, 3, 2, 3, "none", codec.views == "stored", {"seed": seed}, policy)
    return PackedWriter(path, manifest, sizes, image_digests=digests, names=names)


def write_epochs(writer, *epochs):
    """Write random labels of 5 images."""
    views = DrawnViews(ViewPolicy(3, SIDE, 0.08, 1.0, "none", 0.8, 1.0), 5, 2)
    for epoch in epochs:
        writer.write(epoch, drawn_epoch(views, epoch, 3))


@pytest.mark.parametrize("views", ["stored", "drawn"])
def test_a_started_store_is_not_continued_on_other_images(views, tmp_path):
    """Nothing is written before the images are compared; the right images continue."""
    sizes = torch.tensor([[9, 7]] * 4 + [[8, 8]]) if views == "drawn" else None
    codec, digests = Codec(16, None, views), digests_of(5)
    write_epochs(known_store(tmp_path, codec, digests, sizes=sizes), 0)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other = digests.rows([0, 1, 3, 2, 4])
    with pytest.raises(InputError, match=r"other images: 2 images have another number.*now image 3, b/3\.png;"):
        known_store(tmp_path, codec, other, sizes=sizes, names=[f"b/{n}.png" for n in range(5)])
    with pytest.raises(InputError, match="none of its images is one of those"):
        known_store(tmp_path, codec, digests_of(5, seed=1), sizes=sizes)
    with pytest.raises(InputError, match="are not known"):
        known_store(tmp_path, codec, None, sizes=sizes)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    writer = known_store(tmp_path, codec, digests, sizes=sizes)
    assert writer.missing(3) == [1, 2]
    write_epochs(writer, 1, 2)
    assert tool("verify", tmp_path) == 0
    assert same_digests(PackedStore(tmp_path).image_digests, digests)


def test_a_store_of_drawn_views_from_before_is_not_continued_on_images_of_other_sizes(tmp_path):
    codec, sizes = Codec(16, None, "drawn"), torch.tensor([[9, 7]] * 5)
    write_epochs(known_store(tmp_path, codec, sizes=sizes), 0)
    with pytest.raises(InputError, match="whose sizes in pixels are not those of these"):
        known_store(tmp_path, codec, sizes=sizes + 1)
    assert known_store(tmp_path, codec, sizes=sizes).missing(3) == [1, 2]


def make_version_3(path):
    """Turn a store into version 3, which had no digests of images and no list of classes."""
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["has_image_digests"]
    (path / "manifest.json").write_text(json.dumps(manifest | {"version": 3}))


def test_a_started_store_of_version_3_goes_on_without_digests(tmp_path, caplog):
    """It is read as before, new epoch files have the current version, and the log says so."""
    write_epochs(known_store(tmp_path), 0)
    make_version_3(tmp_path)
    assert PackedStore(tmp_path).image_digests is None
    manifest = make_manifest(Codec(), 5, 3, 2, 3, "none", True, {"seed": 1, "classes": ["a"]}, None)
    policy = json.loads((tmp_path / "manifest.json").read_text())["policy"]
    with caplog.at_level("INFO"):
        writer = PackedWriter(tmp_path, manifest | {"policy": policy}, image_digests=digests_of(5))
    assert "it is continued without them" in caplog.text
    write_epochs(writer, 1, 2)
    assert tool("verify", tmp_path) == 0
    store = PackedStore(tmp_path)
    assert (store.manifest["version"], store.image_digests, store.class_list) == (3, None, None)
    assert not (tmp_path / "images.safetensors").exists()
    with pytest.raises(InputError, match="seed is 1, not 2"):
        known_store(tmp_path, digests=digests_of(5), seed=2)


def test_a_kill_before_the_manifest_leaves_a_folder_that_can_be_used(tmp_path):
    """A lone images.safetensors of any images is overwritten."""
    write_image_digests(tmp_path, digests_of(5, seed=3))
    write_epochs(known_store(tmp_path, digests=digests_of(5)), 0)
    assert same_digests(PackedStore(tmp_path).image_digests, digests_of(5))
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(InputError, match="is not empty"):
        known_store(tmp_path, digests=digests_of(5))


@pytest.mark.parametrize("form", ["tar", "packed"])
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "is missing"),
        (b"no tensors", "is damaged"),
        ({"pixel_digests": (12, 8)}, "holds"),
        ({"pixel_digests": (12, 8), "file_digests": (12, 8), "sizes": (12, 2)}, "holds"),
        ({"pixel_digests": (11, 8), "file_digests": (11, 8)}, "digests of 12 images"),
        ({"pixel_digests": (12, 8), "file_digests": (12, 4)}, "digests of 12 images"),
        ({"pixel_digests": (), "file_digests": ()}, "digests of 12 images"),
    ],
)
def test_damaged_digests_of_images_are_refused(form, content, problem, tiny, tmp_path):
    """They must be present if a manifest states them; beside tar labels they are optional."""
    folder = shutil.copytree(tiny.labels, tmp_path / "tar")
    write_image_digests(folder, digests_of(12))
    if form == "packed":
        tool("pack", folder, tmp_path / "packed")
        folder = tmp_path / "packed"
    file = folder / "images.safetensors"
    if content is None:
        file.unlink()
        if form == "tar":
            assert open_labels(folder).image_digests is None
            return
    elif isinstance(content, bytes):
        file.write_bytes(content)
    else:
        save_file({name: torch.zeros(shape, dtype=torch.uint8) for name, shape in content.items()}, file)
    with pytest.raises(
        InputError, match=rf"images\.safetensors {problem}|images\.safetensors does not hold the {problem}"
    ):
        open_labels(folder)


def test_a_list_of_classes_in_the_settings(tmp_path):
    """It must have the right length; the error quotes only a part of it."""
    classes = [f"class {number}" for number in range(1000)]
    manifest = make_manifest(Codec(), 5, 3, 2, 3, "none", True, {"classes": classes})
    write_epochs(PackedWriter(tmp_path, manifest), 0)
    assert PackedStore(tmp_path).class_list == classes
    with pytest.raises(InputError, match=r"classes is \[class 0, .* and 995 more\], not \[class 999, ") as error:
        PackedWriter(tmp_path, manifest | {"settings": {"classes": classes[::-1]}})
    assert len(str(error.value)) < 400
    stored = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(stored | {"settings": {"classes": "abc"}}))
    with pytest.raises(InputError, match="impossible figures"):
        PackedStore(tmp_path)


@given(rows=st.integers(1, 5), columns=st.integers(1, 9), data=st.data())
def test_nibbles_round_trip(rows, columns, data):
    flat = data.draw(st.lists(st.integers(0, 15), min_size=rows * columns, max_size=rows * columns))
    levels = torch.tensor(flat, dtype=torch.uint8).view(rows, columns)
    packed = pack_nibbles(levels)
    assert packed.shape == (rows, (columns + 1) // 2)
    assert torch.equal(unpack_nibbles(packed, columns), levels)


def test_a_started_store_goes_on_and_other_settings_are_named(tmp_path):
    policy = ViewPolicy(3, SIDE, 0.08, 1.0, "none", 0.8, 1.0)
    views = DrawnViews(policy, 5, 2)

    def writer(codec=None, seed=1):
        return PackedWriter(tmp_path, make_manifest(codec or Codec(), 5, 3, 2, 3, "none", True, {"seed": seed}))

    writer().write(0, drawn_epoch(views, 0, 3))
    again = writer()
    assert again.missing(3) == [1, 2]
    with pytest.raises(InputError, match="seed is 1, not 2"):
        writer(seed=2)
    with pytest.raises(InputError, match="bits is 16, not 8"):
        writer(Codec(8))
    for epoch in (1, 2):
        again.write(epoch, drawn_epoch(views, epoch, 3))
    assert tool("verify", tmp_path) == 0


def test_a_flipped_bit_anywhere_is_caught_by_verify(tmp_path):
    make_store(tmp_path / "store", Codec(8), epochs=1)
    file = tmp_path / "store/epoch_0000.safetensors"
    whole = file.read_bytes()
    assert tool("verify", tmp_path / "store") == 0
    for position in range(0, len(whole), max(1, len(whole) // 60)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        file.write_bytes(damaged)
        assert tool("verify", tmp_path / "store") == 2, position
    file.write_bytes(whole)
    assert tool("verify", tmp_path / "store") == 0


def damage(store, name, value):
    """Overwrite the first value of a tensor in the first epoch file, as a flipped bit would."""
    from safetensors.torch import load_file, save_file

    file = store / "epoch_0000.safetensors"
    tensors = load_file(file)
    tensors[name].view(-1)[0] = value
    save_file(tensors, file)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("logits", float("nan"), "non-finite"),
        ("index", 99, "image index"),
        ("index", -1, "image index"),
        ("mix_index", 99, "mix"),
        ("mix_index", -1, "mix"),
        ("mix_bbox", -5, "box"),
        ("mix_lam", 1.5, "mixing ratios"),
        ("coords", float("inf"), "non-finite"),
        ("coords", 1.5, "coords"),
    ],
)
def test_impossible_values_name_the_file(name, value, problem, tmp_path):
    store, _ = make_store(tmp_path / "store", Codec(16))
    damage(store.path, name, value)
    with pytest.raises(InputError, match=problem) as error:
        PackedStore(store.path).read(0, 0)
    assert "epoch_0000.safetensors" in str(error.value)


def test_undetectable_damage_is_found_with_verify_labels(tiny, tmp_path):
    tool("pack", tiny.labels, tmp_path / "packed")
    damage(tmp_path / "packed", "logits", 0.125)
    flags = tiny.flags(tmp_path / "run", fkd_path=tmp_path / "packed", verify_labels=True)
    result = run(train_FKD_parallel, *flags)
    assert result.code == 2
    assert "epoch_0000.safetensors does not match its digest" in result.err
    assert len(result.err.splitlines()) == 1


def test_truncated_and_missing_files_are_named(tmp_path):
    store, _ = make_store(tmp_path / "store", Codec(16))
    file = tmp_path / "store/epoch_0001.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"epoch_0001\.safetensors is damaged"):
        store.read(1, 0)
    file.unlink()
    with pytest.raises(InputError, match=r"epoch_0001\.safetensors is missing"):
        store.check_complete(range(2))
    assert tool("verify", tmp_path / "store") == 2


def test_kept_logits_limit_the_loss(tiny, tmp_path):
    """With 2 of 3 logits stored, mse_gt averages over 2, like --keep-topk 2 on full labels."""
    tool("pack", tiny.labels, tmp_path / "top2", "--keep-topk", 2)
    stored = tiny.train_run(tmp_path / "stored", fkd_path=tmp_path / "top2", loss_type="mse_gt")
    asked = tiny.train_run(tmp_path / "asked", keep_topk=2, loss_type="mse_gt")
    full = tiny.train_run(tmp_path / "full", loss_type="mse_gt")
    assert [row["train_loss"] for row in stored.rows] == [row["train_loss"] for row in asked.rows]
    assert stored.rows[0]["train_loss"] != full.rows[0]["train_loss"]


def test_the_digest_covers_what_a_run_needs_of_packed_labels(tmp_path):
    """Later epochs do not change the digest; each needed epoch does."""
    write_epochs(known_store(tmp_path, digests=digests_of(5)), 0, 1)
    before = PackedStore(tmp_path).digest()
    assert before == PackedStore(tmp_path).digest([0, 1]) != PackedStore(tmp_path).digest([0])
    write_epochs(known_store(tmp_path, digests=digests_of(5)), 2)
    store = PackedStore(tmp_path)
    assert store.digest([0, 1]) == before != store.digest()
    store.manifest["digests"].pop("epoch_0001.safetensors")  # written, but not yet in the manifest
    assert store.digest([0, 1]) == before
    store.manifest["digests"]["epoch_0001.safetensors"] = "0" * 32
    assert store.digest([0, 1]) != before
    store = PackedStore(tmp_path)
    (tmp_path / "images.safetensors").unlink()
    write_image_digests(tmp_path, digests_of(5, seed=1))
    assert store.digest([0, 1]) != before
    (tmp_path / "epoch_0001.safetensors").unlink()
    store.manifest["digests"].clear()
    with pytest.raises(InputError, match=r"epoch_0001\.safetensors cannot be read"):
        store.digest([0, 1])


def test_relabelling_by_several_ranks_may_leave_gaps_and_goes_on(tiny, tmp_path, caplog):
    """Ranks share epochs: a stopped store may hold 0 and 2 of 4, and the writer fills the gap."""
    write_epochs(known_store(tmp_path / "store"), 0, 2)
    assert PackedStore(tmp_path / "store").gap == "epoch_0001.safetensors"
    writer = known_store(tmp_path / "store")
    assert writer.missing(3) == [1]
    write_epochs(writer, 1)
    assert PackedStore(tmp_path / "store").gap is None
    assert tool("verify", tmp_path / "store") == 0


def test_unfinished_labels_are_not_reused_without_a_word(tiny, tmp_path):
    """Two of three epochs exist, without a gap."""
    tool("pack", tiny.labels, tmp_path / "packed")
    (tmp_path / "packed/epoch_0002.safetensors").unlink()
    manifest = json.loads((tmp_path / "packed/manifest.json").read_text())
    entered = manifest["digests"].pop("epoch_0002.safetensors")
    (tmp_path / "packed/manifest.json").write_text(json.dumps(manifest))
    words = tiny.flags(tmp_path / "run", fkd_path=tmp_path / "packed", dry_run=True, reuse_labels=True)
    result = run(train_FKD_parallel, *words)
    assert result.code == 0, result.err
    assert "are unfinished: 2 of 3 epochs are stored" in result.out + result.err
    manifest["digests"]["epoch_0002.safetensors"] = entered
    (tmp_path / "packed/manifest.json").write_text(json.dumps(manifest))
    result = run(train_FKD_parallel, *words)
    assert (result.code, "lacks epoch_0002.safetensors" in result.err) == (2, True)


class Counting:
    """A store of `epochs` epochs whose `read` returns its arguments."""

    def __init__(self, epochs):
        self.epochs = epochs

    def read(self, epoch, batch):
        return epoch, batch


@given(stored=st.integers(1, 12), seed=st.integers(0, 99))
def test_reused_labels_visit_every_stored_epoch_once_a_pass(stored, seed):
    reused = TrainingViews(Counting(stored), REUSED, seed)
    for turn in range(3):
        visited = [reused.read(turn * stored + place, 7) for place in range(stored)]
        assert sorted(visited) == [(epoch, 7) for epoch in range(stored)]
        assert turn > 0 or visited == [(epoch, 7) for epoch in range(stored)]


def test_more_epochs_than_stored_need_reuse_labels(tiny, tmp_path):
    result = run(train_FKD_parallel, *tiny.flags(tmp_path / "no", epochs=5))
    assert result.code == 2
    assert "--reuse-labels" in result.err
    assert len(tiny.train_run(tmp_path / "yes", epochs=5, reuse_labels=True).rows) == 5


def test_provenance_is_in_the_summary(tiny, tmp_path):
    tool("pack", tiny.labels, tmp_path / "packed")
    labels = tiny.train_run(tmp_path / "run", fkd_path=tmp_path / "packed", epochs=1).summary["labels"]
    assert labels["dialect"] == "packed"
    assert labels["settings"] == {"packed_from": "prism"}
    assert labels["digest"] == PackedStore(tmp_path / "packed").digest([0])


def test_reference_order_is_needed_for_labels_without_index(tmp_path):
    """Packed six-item labels have no index; their order still follows --fkd-seed."""
    tool("pack", REFERENCE / "sre2l_cutmix", tmp_path / "packed")
    store = open_labels(tmp_path / "packed", fkd_seed=9)
    assert store.read(1, 0).index.tolist() == ReferenceOrder(20, 9)(1)[:8].tolist()


def test_info_describes_the_store(tiny, capsys, tmp_path):
    assert tool("info", make_labels(tmp_path / "labels", epochs=1)) == 0
    assert "prism" in capsys.readouterr().out


def test_labels_are_plain_batches():
    assert set(BatchLabels.__dataclass_fields__) == {*TENSORS, "mix"}
