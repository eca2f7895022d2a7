"""Damaged files of every kind are read or refused. The mutators are in fuzz.py; `make fuzz` runs more cases."""

import json

import pytest
import torch
from fuzz import Corpus, fuzz
from helpers import make_images, make_labels

from utils.data.images import load_image
from utils.labels.formats import open_labels
from utils.system.errors import InputError
from utils.training.models import load_weights


def test_damaged_files_are_read_or_refused(tmp_path):
    """Each file is read or refused in one sentence, without traceback, hang or much memory."""
    refused, findings = fuzz(600, 0, tmp_path)
    assert not findings
    assert refused > 300


@pytest.fixture
def packed(tmp_path):
    """Return a function that changes keys of a valid packed store's manifest and opens the store."""
    corpus = Corpus(tmp_path)

    def changed(kind, **changes):
        path = tmp_path / kind / "manifest.json"
        manifest = json.loads(corpus.sound[f"{kind}/manifest.json"]) | changes
        path.write_text(json.dumps({key: value for key, value in manifest.items() if value is not ...}))
        return lambda: corpus.read_packed(path)

    return changed


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("packed", {"num_classes": 2**31 - 1, "codec": {"bits": 8, "keep_topk": 2**40, "views": "stored"}}),
        ("packed", {"num_images": 10**30}),
        ("packed", {"num_images": 2**31 - 1}),
        ("packed", {"settings": ...}),
        ("packed", {"settings": []}),
        ("packed", {"digests": {"../../epoch_0000.safetensors": ""}}),
        ("drawn", {"num_images": 2**31 - 1}),
        ("drawn", {"draws": ...}),
        ("drawn", {"has_weights": True}),
        ("held", {"has_cutouts": 1}),
        ("held", {"has_cutouts": ...}),
        ("drawn", {"policy": ...}),
        ("drawn", {"policy": {"seed": -1}}),
    ],
)
def test_impossible_manifests_are_refused(kind, changes, packed):
    """The key is named at once, and the memory that it asks for is not allocated."""
    with pytest.raises(InputError, match=r"manifest\.json|epoch_0000|images\.safetensors|drawn again"):
        packed(kind, **changes)()


def test_deeply_nested_and_overlong_manifests(packed, tmp_path, monkeypatch):
    """Neither exhausts the stack or the memory."""
    read = packed("packed")
    path = tmp_path / "packed" / "manifest.json"
    path.write_text("[" * 10**6)
    with pytest.raises(InputError, match=r"manifest\.json"):
        read()
    monkeypatch.setattr("utils.labels.packed_manifest.MAX_MANIFEST_BYTES", 1000)  # a small file does
    path.write_text(" " * 1001)
    with pytest.raises(InputError, match="absurdly long"):
        read()


def test_a_gap_before_a_batch_of_absurd_number(tmp_path):
    """A number in a file name does not decide how much memory is allocated."""
    labels = make_labels(tmp_path / "labels", epochs=1)
    (labels / "epoch_0" / "batch_99999999999.tar").write_bytes(b"")
    with pytest.raises(InputError, match=r"batch_3\.tar is missing"):
        open_labels(labels)


def test_an_epoch_that_is_a_file_is_named(tmp_path):
    """A file where a folder is expected is named, without traceback."""
    labels = make_labels(tmp_path / "labels", epochs=1)
    (labels / "epoch_1").write_text("")
    with pytest.raises(InputError, match="epoch_1 cannot be read"):
        open_labels(labels).check_complete(range(2))


def test_an_image_of_absurd_size_is_refused(tmp_path, monkeypatch):
    """The header is enough to refuse it; its pixels are not decoded."""
    path = make_images(tmp_path / "images", 1, 1) / "class_0" / "0.png"
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 44 * 36 - 1)
    with pytest.raises(InputError, match=r"0\.png .*44 x 36 pixels"):
        load_image(path)


def test_weights_from_before_pytorch_1_6(tmp_path):
    """Old files load; old files that could run code are refused."""
    weights = {"module.fc.weight": torch.randn(3, 2)}
    torch.save(weights, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    loaded = load_weights(tmp_path / "old.pth")
    assert torch.equal(loaded["fc.weight"], weights["module.fc.weight"])
    torch.save({"a": torch.nn.Linear(1, 1)}, tmp_path / "evil.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match=r"evil\.pth"):
        load_weights(tmp_path / "evil.pth")
