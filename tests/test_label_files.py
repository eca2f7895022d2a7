"""Label files are read and written: their items are checked, their order is the reference's, and gaps are named."""

import json
import shutil
import signal
import zipfile

import pytest
import torch
from helpers import REFERENCE, make_labels, read_run, run, signal_in_step
from hypothesis import given, settings
from hypothesis import strategies as st
from label_folders import make_hald
from torch.utils.data import RandomSampler

import train_FKD_parallel
from utils.labels import command
from utils.labels.batch_items import parse_items
from utils.labels.digests import ImageDigests, digest_of_archive, write_image_digests
from utils.labels.formats import open_labels
from utils.labels.sre2l import TarStore, TarWriter
from utils.labels.store import epochs_without_gap, find_gap
from utils.labels.types import BatchLabels, Mix
from utils.labels.views import ReferenceOrder
from utils.report.groups import group_runs
from utils.report.runs import find_runs
from utils.system.errors import InputError
from utils.system.files import digest_of
from utils.system.safe_load import load_archive


@pytest.mark.parametrize(
    ("name", "dialect", "mix_type"),
    [
        ("sre2l_cutmix", "sre2l", "cutmix"),
        ("sre2l_mixup", "sre2l", "mixup"),
        ("sre2l_none", "sre2l", "none"),
        ("prism_cutmix", "prism", "cutmix"),
    ],
)
def test_reference_labels_are_recognised(name, dialect, mix_type):
    """The format of the reference code's files follows from their content; the last batch is short."""
    store = open_labels(REFERENCE / name)
    assert (store.dialect, store.mix_type) == (dialect, mix_type)
    sizes = (store.epochs, store.batches_per_epoch, store.batch_size, store.num_images, store.num_classes)
    assert sizes == (2, 3, 8, 20, 1000)
    for epoch in range(2):
        batches = [store.read(epoch, batch) for batch in range(3)]
        assert [len(labels) for labels in batches] == [8, 8, 4]
        assert sorted(torch.cat([labels.index for labels in batches]).tolist()) == list(range(20))


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_numpy_1_and_2_pickles(module, tmp_path):
    """The numpy integers of the box are read under the module names of numpy 1 and numpy 2."""
    source = REFERENCE / "sre2l_cutmix" / "epoch_0" / "batch_0.tar"
    expected = load_archive(source)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(tmp_path / "f", "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("data.pkl"):
                data = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
                data = data.replace(b"numpy.core.multiarray", module.encode())
                assert module.encode() in data
            new.writestr(name, data)
    labels = parse_items(load_archive(tmp_path / "f"), "f")
    assert labels.mix.box == tuple(expected[4])
    assert all(type(n) is int for n in labels.mix.box)
    assert torch.equal(labels.logits, expected[5])


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(0, 2**40), st.lists(st.integers(0, 6), min_size=1, max_size=8))
def test_reference_order_is_the_sampler_iterated(num_images, seed, epochs):
    """Epoch e is the (e+1)-th pass of one RandomSampler, in whatever order epochs are read."""
    sampler = RandomSampler(range(num_images), generator=torch.Generator().manual_seed(seed))
    passes = [list(sampler) for _ in range(7)]
    order = ReferenceOrder(num_images, seed)
    for epoch in epochs:
        assert order(epoch).tolist() == passes[epoch]


def usable(**changed):
    """Return the items of a valid cutmix batch of 3 rows and 4 classes; `changed` replaces some."""
    items = {
        "coords": torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 3),
        "flip": torch.tensor([True, False, True]),
        "mix_index": torch.tensor([2, 1, 0]),
        "mix_lam": 0.5,
        "mix_bbox": [0, 0, 4, 4],
        "logits": torch.zeros(3, 4, dtype=torch.float16),
        "index": torch.tensor([0, 1, 2]),
    } | changed
    return list(items.values())


def row(*values):
    """Return coords of 3 rows with the given second row."""
    return torch.tensor([[0.0, 0.0, 1.0, 1.0], list(values), [0.0, 0.0, 1.0, 1.0]])


@pytest.mark.parametrize(
    ("item", "value", "named"),
    [
        ("coords", None, "coords"),
        ("coords", torch.zeros(3, 4), "coords"),  # empty crops
        ("coords", torch.zeros(3, 3), "coords"),
        ("coords", torch.zeros(2, 4), "coords"),
        ("coords", torch.zeros(3, 4, dtype=torch.float64), "coords"),
        ("coords", row(-0.1, 0, 0.5, 0.5), "coords"),
        ("coords", row(0, 0, 1.5, 0.5), "coords"),
        ("coords", row(0, 0, float("nan"), 0.5), "coords"),
        ("coords", row(0.6, 0, 0.5, 0.5), "crop reaches outside"),
        ("flip", torch.ones(3), "flip"),
        ("flip", torch.ones(0, dtype=torch.bool), "no rows"),
        ("flip", [True] * 3, "flip"),
        ("mix_index", torch.tensor([0, 1, 3]), "mix_index"),
        ("mix_index", torch.tensor([0, -1, 2]), "mix_index"),
        ("mix_index", torch.tensor([0.0, 1.0, 2.0]), "mix_index"),
        ("mix_index", torch.tensor([0, 1]), "mix_index"),
        ("mix_index", None, "mix_index"),
        ("mix_lam", 1.5, "mix_lam"),
        ("mix_lam", -0.1, "mix_lam"),
        ("mix_lam", float("nan"), "mix_lam"),
        ("mix_lam", "0.5", "mix_lam"),
        ("mix_lam", None, "mix_lam"),
        ("mix_bbox", [0, 0, 4], "mix_bbox"),
        ("mix_bbox", [0, 0, 4.0, 4], "mix_bbox"),
        ("mix_bbox", [-1, 0, 4, 4], "mix_bbox"),
        ("mix_bbox", [5, 0, 4, 4], "mix_bbox"),
        ("mix_bbox", 7, "mix_bbox"),
        ("logits", torch.zeros(2, 4), "logits"),
        ("logits", torch.zeros(3), "logits"),
        ("logits", torch.zeros(3, 0), "logits"),
        ("logits", torch.zeros(3, 4, dtype=torch.int64), "logits"),
        ("logits", torch.full((3, 4), float("nan")), "logits"),
        ("logits", torch.full((3, 4), float("inf")), "logits"),
        ("index", torch.tensor([0, -1, 2]), "index"),
        ("index", torch.tensor([0, 1]), "index"),
        ("index", torch.tensor([0, 1, 2], dtype=torch.int32), "index"),
    ],
)
def test_an_unusable_item_is_named(item, value, named):
    """One sentence names the file and the wrong item."""
    parse_items(usable(), "FILE")
    with pytest.raises(InputError, match=r"^FILE is not a usable label file: .*" + named):
        parse_items(usable(**{item: value}), "FILE")


@pytest.mark.parametrize("items", [{}, [], usable()[:5], [*usable(), 1, 2], None, torch.zeros(6)])
def test_other_content_is_refused(items):
    """Lists of another length and other objects are refused."""
    with pytest.raises(InputError, match=r"FILE .* not a list of 6 to 8"):
        parse_items(items, "FILE")


def patches(rows=3, dtype=torch.int32):
    """Return EDC's 8th item if no patch was shuffled."""
    return torch.zeros(rows, 2, 2, dtype=dtype)


def test_the_eight_items_of_edc():
    """The file is accepted if no patch was moved; otherwise the item is named."""
    parse_items([*usable(), patches()], "FILE")
    shuffled = patches()
    shuffled[1, 0, 1] = 1
    with pytest.raises(InputError, match=r"^FILE is a label file of EDC .* patches were shuffled"):
        parse_items([*usable(), shuffled], "FILE")
    for wrong in (1, None, patches(2), patches(dtype=torch.float32), torch.zeros(3, 2, dtype=torch.int32)):
        with pytest.raises(InputError, match="not a usable label file: indices_status"):
            parse_items([*usable(), wrong], "FILE")
    with pytest.raises(InputError, match="the 7th is not an index"):
        parse_items([*usable(index=None), patches()], "FILE")


def test_labels_of_edc_are_read_as_prism_s(labels, tmp_path, capsys):
    """The files have eight items; the packed store has seven."""
    before = [TarStore(labels).read(1, batch) for batch in range(3)]
    for path in labels.glob("epoch_*/batch_*.tar"):
        items = load_archive(path)
        torch.save([*items, patches(len(items[1]))], path)
    store = open_labels(labels)
    assert store.dialect == "edc"
    for batch, expected in enumerate(before):
        assert torch.equal(store.read(1, batch).index, expected.index)
        assert torch.equal(store.read(1, batch).logits, expected.logits)
    assert command.main(["info", str(labels)]) == command.main(["verify", str(labels)]) == 0
    assert "format  edc" in capsys.readouterr().out
    assert command.main(["pack", str(labels), str(tmp_path / "packed")]) == 0
    assert command.main(["unpack", str(tmp_path / "packed"), str(tmp_path / "again")]) == 0
    assert open_labels(tmp_path / "again").dialect == "prism"
    torch.save(load_archive(store.file(1, 1))[:7], store.file(1, 1))
    with pytest.raises(InputError, match=r"batch_1\.tar disagrees .*'prism'"):
        store.read(1, 1)


OTHERS = {
    "FKD": [torch.rand(500, 4), torch.ones(500, dtype=torch.bool), torch.rand(500, 2, 5)],
    "LPLD or LPQLD with RandAugment": [*usable()[:2], [[torch.zeros(3)] * 3] * 2, *usable()[2:6]],
    "FD2": [*usable()[:5], torch.zeros(2, 3, 4)],
}


@pytest.mark.parametrize("project", OTHERS)
def test_labels_that_cannot_be_replayed_are_named(project):
    """The error names the project, the missing item and the remedy."""
    with pytest.raises(InputError, match=f"^FILE looks like a label file of {project}.*; use that project's own code"):
        parse_items(OTHERS[project], "FILE")


def test_operations_of_randaugment_as_a_tensor_are_named():
    """The item of RandAugment may also be one tensor [B, n, 3]."""
    with pytest.raises(InputError, match="RandAugment"):
        parse_items([*usable()[:2], torch.zeros(3, 2, 3), *usable()[2:6]], "FILE")


def test_mix_type_is_in_the_data():
    """A box means cutmix, a ratio without a box mixup, and neither means none."""
    assert parse_items(usable(), "").mix.type == "cutmix"
    assert parse_items(usable(mix_bbox=None), "").mix.type == "mixup"
    assert parse_items(usable(mix_bbox=None, mix_lam=None, mix_index=None), "").mix.type == "none"


@pytest.mark.parametrize("coords", [(0.5, 0.5, 1e-6, 1e-6), (1.0, 1.0, 1e-6, 1e-6)])
def test_a_tiny_crop_is_still_a_crop(coords):
    """A crop that rounds to zero pixels is enlarged to one."""
    (top, left, height, width), _ = parse_items(usable(coords=row(*coords)), "").view(1, (36, 44))
    assert height > 0 < width
    assert 0 <= top <= 36 - height
    assert 0 <= left <= 44 - width


@pytest.fixture
def labels(tmp_path):
    """A folder of labels that a test may break: 12 images, batches of 5, 5 and 2, 2 epochs."""
    return make_labels(tmp_path / "labels", epochs=2)


def rewrite(path, **changed):
    """Replace items of one batch file."""
    names = "coords flip mix_index mix_lam mix_bbox logits index".split()
    items = dict(zip(names, load_archive(path), strict=True)) | changed
    torch.save(list(items.values()), path)


def test_mixed_label_sets_are_refused(labels):
    """A batch that disagrees with the first one is refused and named."""
    store = TarStore(labels)
    path = store.file(1, 1)
    good = path.read_bytes()
    rows_of_4 = {name: value[:4] for name, value in zip("abc", load_archive(path)[:3], strict=True)}
    for changed in (
        {"logits": torch.zeros(5, 4)},
        {"mix_bbox": None},
        {"coords": rows_of_4["a"], "flip": rows_of_4["b"], "mix_index": torch.arange(4)}
        | {"logits": torch.zeros(4, 3), "index": torch.arange(4)},
    ):
        rewrite(path, **changed)
        with pytest.raises(InputError, match=r"epoch_1.batch_1\.tar disagrees"):
            store.read(1, 1)
        path.write_bytes(good)
    rewrite(path, index=torch.tensor([0, 1, 2, 3, 12]))
    with pytest.raises(InputError, match=r"batch_1\.tar names image 12, but the labels cover 12"):
        store.read(1, 1)


def test_incomplete_stores(labels):
    """A gap ends the stored epochs, a missing batch is named, and an empty folder is not a store."""
    store = TarStore(labels)
    store.check_complete(range(2))
    store.file(1, 1).unlink()
    store.check_complete(range(1))
    with pytest.raises(InputError, match=r"epoch_1.batch_1\.tar is missing \(1 of 3"):
        store.check_complete(range(2))
    (labels / "epoch_1").rename(labels / "epoch_2")
    assert (TarStore(labels).epochs, TarStore(labels).gap) == (1, "epoch_1")
    shutil.rmtree(labels / "epoch_0")
    for path, problem in ((labels, "holds no epoch_0/batch_0.tar"), (labels / "none", "is not a folder")):
        with pytest.raises(InputError, match=problem):
            open_labels(path)


def without_checksums(content, file):
    """Save like PyTorch with CRC-32 switched off."""
    torch.save(content, file)
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
    data = bytearray(file.read_bytes())
    for info in infos:
        place = data.index(info.CRC.to_bytes(4, "little"), data.index(b"PK\1\2")) if info.CRC else None
        if place is not None:
            data[place : place + 4] = bytes(4)
    file.write_bytes(data)


def before_1_6(content, file):
    """Save like PyTorch before 1.6, without a zip file."""
    torch.save(content, file, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("save", [torch.save, without_checksums, before_1_6])
@pytest.mark.parametrize("rows", [1, 3000])
def test_the_digest_of_a_file_tells_any_change(save, rows, tmp_path, monkeypatch):
    """If the zip directory has no checksums, the whole file is hashed. A large directory is read completely."""
    first, other = torch.zeros(rows, 2), torch.zeros(rows, 2)
    other[-1, -1] = 1
    found, whole = [], []
    # counts the files that are hashed completely
    monkeypatch.setattr("utils.labels.digests.digest_of", lambda path: whole.append(path) or digest_of(path))
    for content in (first, other):
        save([content, *[torch.ones(1) for _ in range(100)]], tmp_path / "batch_0.tar")
        found += [digest_of_archive(tmp_path / "batch_0.tar"), digest_of_archive(tmp_path / "batch_0.tar")]
    assert found[0] == found[1] != found[2] == found[3]
    assert len(whole) == (0 if save is torch.save else 4)


def test_the_digest_covers_all_files_that_a_run_needs(labels):
    """It covers all needed files and no others, and the names and digests of the images."""
    store = TarStore(labels)
    before, first, legacy = store.digest(), store.digest([0]), store.legacy_digest()
    assert before == store.digest(range(2)) != first
    assert before.startswith("v2:")
    rewrite(store.file(1, 2), logits=torch.zeros(2, 3, dtype=torch.float16))
    assert (store.digest([0]), store.legacy_digest()) == (first, legacy)
    assert store.digest() != before
    write_image_digests(labels, ImageDigests(*torch.zeros(2, 12, 8, dtype=torch.uint8)))
    assert store.digest([0]) != first
    store.file(1, 2).unlink()
    with pytest.raises(InputError, match=r"batch_2\.tar cannot be read \(No such file"):
        store.digest()


def test_other_labels_with_the_same_first_file_are_not_resumed(tiny, tmp_path, monkeypatch):
    """A checkpoint of an earlier release, which has only the first file's digest, is resumed."""
    labels = shutil.copytree(tiny.labels, tmp_path / "labels")
    words = tiny.flags(tmp_path / "run", fkd_path=labels)
    signal_in_step(monkeypatch, signal.SIGTERM, 4)
    assert run(train_FKD_parallel, *words).code == 128 + signal.SIGTERM
    monkeypatch.undo()
    file, path = labels / "epoch_2" / "batch_1.tar", tmp_path / "run" / "checkpoint.pth.tar"
    good, checkpoint = file.read_bytes(), path.read_bytes()
    rewrite(file, logits=torch.zeros(5, 3, dtype=torch.float16))
    result = run(train_FKD_parallel, *words, "--resume")
    assert (result.code, "digest of the labels was v2:" in result.err) == (2, True)
    state = torch.load(path, weights_only=True)
    state["arguments"]["labels"] = "0" * 32
    torch.save(state, path)
    result = run(train_FKD_parallel, *words, "--resume")
    assert (result.code, f"digest of the labels was {'0' * 32} and is " in result.err) == (2, True)
    file.write_bytes(good)
    path.write_bytes(checkpoint)
    state["arguments"]["labels"] = TarStore(labels).legacy_digest()
    torch.save(state, path)
    assert run(train_FKD_parallel, *words, "--resume").code == 0
    summary = read_run(tmp_path / "run").summary
    assert summary["args"]["labels"] == summary["labels"]["digest"] == TarStore(labels).digest()
    assert "earlier_labels" not in summary["args"]


def test_other_labels_with_the_same_first_file_are_another_group(tiny, tmp_path):
    """Two seeds on two label sets are not two runs of one group."""
    labels = shutil.copytree(tiny.labels, tmp_path / "labels")
    rewrite(labels / "epoch_2" / "batch_1.tar", logits=torch.zeros(5, 3, dtype=torch.float16))
    for seed, folder in enumerate((tiny.labels, labels)):
        tiny.train_run(tmp_path / "runs" / str(seed), fkd_path=folder, seed=seed)
    groups, _ = group_runs(find_runs([str(tmp_path / "runs")]).finished)
    assert [len(group.runs) for group in groups] == [1, 1]


@pytest.mark.parametrize(
    ("stored", "stated", "epochs", "gap"),
    [
        ({0, 1, 2}, (), 3, None),
        (set(), (), 0, None),
        ({0, 2}, (), 1, "e1"),
        ({0, 1, 5}, (), 2, "e2, e3, e4"),
        ({0, 10}, (), 1, "e1, e2, e3 and 6 more"),
        ({0, 10**12}, (), 1, f"e1, e2, e3 and {10**12 - 4} more"),
        ({0, 1}, [0, 1, 2], 2, "e2"),
        ({0, 1}, [0], 2, None),
    ],
)
def test_gaps_are_found(stored, stated, epochs, gap):
    """Epochs are missing before later ones, or although the manifest states them."""
    assert (epochs_without_gap(stored), find_gap(stored, "e{}".format, stated)) == (epochs, gap)


def make_gap(folder, dialect):
    """Remove epoch 1, from HALD's list as well; return its name."""
    if dialect == "prism":
        shutil.rmtree(folder / "epoch_1")
        return "epoch_1"
    if dialect == "hald":
        indices = torch.load(folder / "sampler_indices_dict.pt", weights_only=True)
        del indices["1"]
        torch.save(indices, folder / "sampler_indices_dict.pt")
        (folder / "epoch_1.tar").unlink()
        return "epoch_1.tar"
    (folder / "epoch_0001.safetensors").unlink()
    return "epoch_0001.safetensors"


@pytest.mark.parametrize("dialect", ["prism", "hald", "packed"])
def test_a_gap_is_named_and_not_trained_around(dialect, tiny, tmp_path, capsys):
    """Epochs beyond a gap cannot be used, reused or drawn; epochs before it can."""
    folder = tmp_path / dialect
    if dialect == "hald":
        make_hald(folder, 3)
    elif dialect == "packed":
        assert command.main(["pack", str(tiny.labels), str(folder)]) == 0
    else:
        shutil.copytree(tiny.labels, folder)
    name = make_gap(folder, dialect)
    flags = {"label_order": "stored"} if dialect == "hald" else {}
    for more in ({"reuse_labels": True}, {"label_order": "sampled", "epochs": 1}, {}, {"epochs": 1}):
        result = run(train_FKD_parallel, *tiny.flags(tmp_path / "run", fkd_path=folder, dry_run=True, **flags | more))
        if more == {"epochs": 1}:
            assert result.code == 0, result.err
        else:
            assert result.code == 2
            assert f"{folder} lacks {name} (epochs stored before that: 1)" in result.err
    capsys.readouterr()
    assert command.main(["info", str(folder)]) == 0
    assert f"missing  {name}" in capsys.readouterr().out
    words = (["verify"], ["unpack" if dialect == "packed" else "pack", str(tmp_path / "other")])
    for tool, *target in words:
        assert command.main([tool, str(folder), *target]) == 2
        assert f"lacks {name}" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_an_epoch_of_more_batches_than_the_first(labels):
    """The first epoch is incomplete, so the number of images derived from it is wrong."""
    (labels / "epoch_0" / "batch_2.tar").unlink()
    with pytest.raises(InputError, match=r"epoch_1.batch_2\.tar is one batch more than"):
        TarStore(labels).check_complete(range(2))


def test_the_order_that_lpld_writes_beside_its_epochs(labels, tmp_path):
    """The stored order overrides --fkd-seed; packed labels keep it; a wrong file is refused."""
    wanted = [[TarStore(labels).read(epoch, batch).index.tolist() for batch in range(3)] for epoch in range(2)]
    for path in labels.glob("epoch_*/batch_*.tar"):
        torch.save(load_archive(path)[:6], path)
    listed = {str(epoch): [image for batch in batches for image in batch] for epoch, batches in enumerate(wanted)}
    file = labels / "sampler_indices_epoch.json"
    before = TarStore(labels).digest()
    assert TarStore(labels, fkd_seed=7).read(1, 1).index.tolist() != wanted[1][1]
    file.write_text(json.dumps(listed))
    assert TarStore(labels).digest() != before
    assert command.main(["pack", str(labels), str(tmp_path / "packed"), "--fkd-seed", "7"]) == 0
    for store in (TarStore(labels, fkd_seed=7), open_labels(tmp_path / "packed", 8)):
        found = [[store.read(epoch, batch).index.tolist() for batch in range(3)] for epoch in range(2)]
        assert found == wanted
    for wrong in ({"0": listed["0"]}, listed | {"1": [*listed["1"][:-1], 0]}):
        file.write_text(json.dumps(wrong))
        with pytest.raises(InputError, match=r"sampler_indices_epoch\.json: epoch 1 does not visit each of 12 images"):
            TarStore(labels)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_logits_dtype(dtype, tmp_path):
    """Logits are stored in half or single precision and read back as they are."""
    assert TarStore(make_labels(tmp_path / "l", epochs=1, dtype=dtype)).logits_dtype == dtype


@settings(deadline=None, max_examples=20)
@given(st.data())
def test_written_labels_are_read_back(tmp_path_factory, data):
    """TarWriter and TarStore give every field back, whatever the sizes and the mix type."""
    batch_size, batches, classes = (data.draw(st.integers(1, 6)) for _ in range(3))
    images = batch_size * batches - data.draw(st.integers(0, batch_size - 1))
    mix_type = data.draw(st.sampled_from(["none", "mixup", "cutmix"]))
    seed = data.draw(st.integers(0, 2**30))
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(images, generator=generator)
    written = []
    for index in order.split(batch_size):
        rows = len(index)
        corner = torch.rand(rows, 2, generator=generator) * 0.5
        written.append(
            BatchLabels(
                coords=torch.cat([corner, corner / 2 + 0.1], dim=1),
                flip=torch.rand(rows, generator=generator) < 0.5,
                mix=Mix(
                    None if mix_type == "none" else torch.randperm(rows, generator=generator),
                    None if mix_type == "none" else data.draw(st.floats(0, 1)),
                    (1, 2, 30, 31) if mix_type == "cutmix" else None,
                ),
                logits=torch.randn(rows, classes, generator=generator),
                index=index,
            )
        )
    folder = tmp_path_factory.mktemp("round") / "labels"
    TarWriter(folder, torch.float32).write(0, written)
    store = open_labels(folder)
    assert (store.batches_per_epoch, store.batch_size, store.num_images) == (batches, min(batch_size, images), images)
    for batch, labels in enumerate(written):
        found = store.read(0, batch)
        for name in ("coords", "flip", "logits", "index"):
            assert torch.equal(getattr(found, name), getattr(labels, name)), name
        assert found.mix[1:] == labels.mix[1:]
        assert found.mix.partner is labels.mix.partner or torch.equal(found.mix.partner, labels.mix.partner)


def test_the_writer_refuses_a_folder_in_use(tmp_path):
    """Labels are never mixed with other files."""
    (tmp_path / "file").write_text("")
    for path, problem in ((tmp_path, "is not empty"), (tmp_path / "file", "cannot be made")):
        with pytest.raises(InputError, match=f"{path} {problem}"):
            TarWriter(path)
