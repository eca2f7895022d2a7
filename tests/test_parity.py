"""The metrics of the SRe2L reference code are reproduced from label files that it wrote."""

import json

import pytest
import torch
from helpers import REFERENCE, read_run, run

import train_FKD_parallel
from utils.data.folders import open_folder
from utils.data.workers import ViewDataset
from utils.labels.formats import open_labels

EXPECTED = json.loads((REFERENCE / "expected.json").read_text())


def train(output, labels, *flags):
    result = run(
        train_FKD_parallel,
        *("--train-dir", REFERENCE / "train", "--val-dir", REFERENCE / "val", "--fkd-path", REFERENCE / labels),
        *"--device cpu --precision fp32 --seed 0 --batch-size 8 --cos -T 1 --loss-type kl --eval-every 1 -j 0".split(),
        *("--output-dir", output, *flags),
    )
    assert result.code == 0, result.err
    return read_run(output)


@pytest.mark.parametrize("mix_type", ["cutmix", "mixup"])
def test_figures_are_those_of_the_reference(mix_type, tmp_path):
    """Epoch 0 is the same computation; later epochs drift with the order of floating-point sums."""
    rows = train(tmp_path / "run", f"sre2l_{mix_type}", "--epochs", 2, "--mix-type", mix_type).rows
    expected = EXPECTED[f"sre2l_{mix_type}"]
    assert rows[0]["train_loss"] == pytest.approx(expected["train_loss"][0], rel=1e-4)
    assert rows[1]["train_loss"] == pytest.approx(expected["train_loss"][1], rel=0.02)
    assert rows[0]["val_loss"] == pytest.approx(expected["val_loss"][0], rel=0.01)


@pytest.mark.parametrize(
    ("labels", "size", "dialect", "mix_type"),
    [("prism_cutmix", 224, "prism", "cutmix"), ("sre2l_none", 64, "sre2l", "none")],
)
def test_other_reference_labels_train(labels, size, dialect, mix_type, tmp_path):
    """7-item labels and labels without mixing train, and the summary names their format."""
    run = train(tmp_path / "run", labels, "--epochs", 1, "--input-size", size)
    assert (run.summary["labels"]["dialect"], run.summary["labels"]["mix_type"]) == (dialect, mix_type)
    assert run.summary["labels"]["num_images"] == 20
    assert 0 < run.rows[0]["train_loss"] < 1
    assert run.summary["epochs_done"] == 1


def test_a_view_does_not_depend_on_the_format(tmp_path):
    """Labels converted from 6 to 7 items with the same coords replay to the same tensors and targets."""
    six = open_labels(REFERENCE / "sre2l_cutmix")
    for batch in range(six.batches_per_epoch):
        for epoch in range(six.epochs):
            labels = six.read(epoch, batch)
            items = [labels.coords, labels.flip, labels.mix.partner, labels.mix.lam, list(labels.mix.box)]
            (tmp_path / f"epoch_{epoch}").mkdir(exist_ok=True)
            torch.save([*items, labels.logits, labels.index], tmp_path / f"epoch_{epoch}" / f"batch_{batch}.tar")
    seven = open_labels(tmp_path, fkd_seed=7)  # the stored index overrides the seed
    assert (six.dialect, seven.dialect) == ("sre2l", "prism")

    samples = open_folder(REFERENCE / "train", "--train-dir").samples
    views = [ViewDataset(samples, store, 64) for store in (six, seven)]
    for first in (0, 8, 40):  # a batch, the next one, and the short one of epoch 1
        configs = [dataset.load_batch_config(first) for dataset in views]
        assert torch.equal(configs[0][3], configs[1][3])
        for position in range(first, first + 4):
            (view, target, _, flip, index), (other, other_target, _, other_flip, other_index) = (
                dataset[position] for dataset in views
            )
            assert torch.equal(view, other)
            assert (target, flip, index) == (other_target, other_flip, other_index)


def test_the_reference_formats_name_the_same_images():
    """The image order of six items is the index that PRISM's code stored for the same seed."""
    six, seven = open_labels(REFERENCE / "sre2l_cutmix"), open_labels(REFERENCE / "prism_cutmix")
    for epoch in (1, 0):
        for batch in range(3):
            assert torch.equal(six.read(epoch, batch).index, seven.read(epoch, batch).index)
