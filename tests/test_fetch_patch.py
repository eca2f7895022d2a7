"""The patched fetcher is applied once, can be reverted, leaves other datasets alone and works in workers."""

import gc
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from helpers import CPU, SIDE
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data._utils import fetch

from patches import fetch_patch
from utils.config import IMAGENET_MEAN, IMAGENET_STD
from utils.data.folders import open_folder
from utils.data.replay import Normalise
from utils.data.workers import ViewDataset, WorkerBatches
from utils.labels.formats import open_labels


@pytest.fixture(autouse=True)
def _unpatched():
    """Start and end each test with PyTorch's own fetcher."""
    fetch_patch.revert()
    yield
    fetch_patch.revert()


class Labelled(TensorDataset):
    """A dataset whose batches have labels; it records the order of calls."""

    def __init__(self):
        super().__init__(torch.arange(6))
        self.calls = []

    def load_batch_config(self, position):
        self.calls.append(("config", position))
        return None, 0.5, None, torch.tensor([position])

    def __getitem__(self, position):
        self.calls.append(("image", position))
        return position


def test_labels_are_loaded_before_the_images():
    """Labels are loaded once per batch, with its first position; the batch has all four items."""
    fetch_patch.apply()
    dataset = Labelled()
    batches = list(DataLoader(dataset, batch_size=4))
    assert dataset.calls[:2] == [("config", 0), ("image", 0)]
    assert [position for kind, position in dataset.calls if kind == "config"] == [0, 4]
    images, mix_index, mix_lam, mix_bbox, labels = batches[1]
    assert (images.tolist(), mix_index, mix_lam, mix_bbox, labels.tolist()) == ([4, 5], None, 0.5, None, [4])


def test_idempotent_and_revertible():
    """Applying the patch twice patches once, and one revert restores the original function."""
    own = fetch._MapDatasetFetcher.fetch
    fetch_patch.apply()
    patched = fetch._MapDatasetFetcher.fetch
    fetch_patch.apply()
    assert fetch._MapDatasetFetcher.fetch is patched is not own
    assert fetch_patch.is_applied()
    fetch_patch.revert()
    assert fetch._MapDatasetFetcher.fetch is own
    assert not fetch_patch.is_applied()
    fetch_patch.revert()
    assert fetch._MapDatasetFetcher.fetch is own


@pytest.mark.parametrize("batch_size", [2, None])
def test_other_datasets_are_fetched_as_before(batch_size):
    """Other datasets work with and without automatic batching."""
    fetched = []
    for prepare in (fetch_patch.revert, fetch_patch.apply):
        prepare()
        loader = DataLoader(TensorDataset(torch.arange(5.0)), batch_size=batch_size)
        fetched.append([item[0].tolist() for item in loader])
    assert fetched[0] == fetched[1]


class HandEditedFetcher(fetch._BaseDatasetFetcher):
    """A fetcher that was edited as the reference's README asks."""

    def fetch(self, possibly_batched_index):
        if getattr(self.dataset, "mode", None) == "fkd_load":
            config = self.dataset.load_batch_config(possibly_batched_index[0])
            return (self.collate_fn([self.dataset[i] for i in possibly_batched_index]), *config)
        return self.collate_fn([self.dataset[i] for i in possibly_batched_index])


def test_a_hand_edited_pytorch_is_left_alone(monkeypatch, tiny, capsys):
    """The patch does nothing, and the edited fetcher gives `ViewDataset` the same batches."""
    patched = batches_of(tiny, 0)
    fetch_patch.revert()
    monkeypatch.setattr(fetch, "_MapDatasetFetcher", HandEditedFetcher)
    assert fetch_patch.is_hand_edited()
    edited = batches_of(tiny, 0)
    assert not fetch_patch.is_applied()
    assert_same(patched, edited)
    assert fetch_patch.main() == 0
    assert "edited by hand" in capsys.readouterr().out


@pytest.mark.parametrize("method", [None, lambda self, index, more: None])
def test_an_unknown_pytorch_is_refused(method, monkeypatch, capsys):
    """A missing fetcher, or one with another signature, is not patched; the command says so and fails."""
    monkeypatch.setattr(fetch, "_MapDatasetFetcher", type("_MapDatasetFetcher", (), {"fetch": method}))
    with pytest.raises(fetch_patch.UnsupportedPyTorch, match=torch.__version__.replace("+", r"\+")):
        fetch_patch.apply()
    assert fetch_patch.main() == 2
    assert capsys.readouterr().err.startswith("error: PyTorch")


def test_the_command_says_that_this_pytorch_is_supported():
    """`python -m patches.fetch_patch` exits with 0."""
    command = [sys.executable, "-m", "patches.fetch_patch"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(fetch_patch.__file__).parents[1])
    assert done.returncode == 0, done.stderr
    assert "supported" in done.stdout


def batches_of(tiny, workers, context=None):
    """Return all batches of two epochs of the tiny set."""
    dataset = ViewDataset(open_folder(tiny.train, "--train-dir").samples, open_labels(tiny.labels), SIDE)
    normalise = Normalise(IMAGENET_MEAN, IMAGENET_STD, CPU)
    source = WorkerBatches(dataset, range(2), normalise, workers, CPU, context)
    return [batch for epoch in range(2) for batch in source.epoch(epoch)]


def assert_same(first, second):
    """Assert that two lists of batches are bit-identical."""
    assert [len(batch) for batch in first] == [len(batch) for batch in second] == [5, 5, 2] * 2
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.soft_labels, other.soft_labels)
        assert torch.equal(one.targets, other.targets)


def test_start_methods_give_the_same_batches(tiny):
    """Two workers under fork, spawn and forkserver give the batches of no workers."""
    alone = batches_of(tiny, 0)
    assert not torch.equal(alone[0].images, alone[3].images)  # the epochs differ
    for context in ("fork", "spawn", "forkserver"):
        assert_same(alone, batches_of(tiny, 2, context))


def test_workers_end_at_once(tiny):
    """A source that is dropped early ends its workers at once, without waiting for the garbage collector."""
    gc.disable()
    try:
        dataset = ViewDataset(open_folder(tiny.train, "--train-dir").samples, open_labels(tiny.labels), SIDE)
        source = WorkerBatches(dataset, range(2), Normalise(IMAGENET_MEAN, IMAGENET_STD, CPU), 0, CPU)
        next(source.epoch(0))
        freed = weakref.ref(source)
        del source
        assert freed() is None
    finally:
        gc.enable()
