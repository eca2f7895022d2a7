"""WMDD's labels weigh the loss of each image, by its weight divided by the mean weight of the whole batch."""

from dataclasses import replace

import pytest
import rank_jobs
import torch
from helpers import BATCH, CLASSES, CPU, SIDE, losses, run, tool
from label_folders import make_wmdd
from view_batches import normalise_on

import train_FKD_parallel
from utils.data.batch import Batch
from utils.data.device import DeviceBatches
from utils.data.folders import open_folder
from utils.data.resident import ResidentBatches
from utils.data.workers import ViewDataset
from utils.labels.batch_items import parse_items
from utils.labels.formats import open_labels
from utils.labels.packed import PackedWriter
from utils.labels.packed_codec import Codec
from utils.labels.packed_manifest import make_manifest
from utils.labels.sre2l import TarWriter
from utils.labels.training_views import TrainingViews
from utils.labels.types import TopK, Weighted, answers_of, tensors_of
from utils.labels.views import ReferenceOrder
from utils.run.teacher_check import states_index
from utils.system.distributed import Share
from utils.system.errors import InputError
from utils.system.safe_load import load_archive
from utils.training.losses import build_loss


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    """Write WMDD's labels; no test may write to them. Return the folder and the weight of each image."""
    folder = tmp_path_factory.mktemp("wmdd") / "labels"
    return folder, make_wmdd(folder)


def by_hand(path, outputs, temperature, kept=None):
    """Return the mean of KL · w / mean(w) over the rows of a label file."""
    *_, logits, weights = load_archive(path)
    teacher = (logits.float() / temperature).softmax(dim=1)
    if kept is not None:
        values, classes = teacher.topk(kept, dim=1)
        rest = (1 - values.sum(dim=1, keepdim=True)) / (teacher.shape[1] - kept)
        teacher = rest.expand_as(teacher).scatter(1, classes, values)
    rows = (teacher * (teacher.log() - (outputs / temperature).log_softmax(dim=1))).sum(dim=1)
    return (rows * weights / weights.mean()).mean().float()


@pytest.mark.parametrize("keep_topk", [None, 2])
@pytest.mark.parametrize("batch", [0, 2])  # the last batch is short
def test_the_loss_is_weighted_as_by_hand(labels, batch, keep_topk):
    """In one micro-batch, in several uneven ones, and on the rows of two ranks, the loss is the same."""
    folder, weights = labels
    views = TrainingViews(open_labels(folder))
    read = views.read(1, batch)
    start = batch * BATCH
    assert torch.equal(read.index, ReferenceOrder(12, 42)(1)[start : start + BATCH])
    assert torch.equal(open_labels(folder).read(1, batch).weights, weights[read.index])
    assert not states_index(open_labels(folder))
    outputs = torch.randn(len(read), CLASSES, generator=torch.Generator().manual_seed(0))
    loss = build_loss("kl", 4.0, keep_topk=keep_topk)
    expected = by_hand(folder / f"epoch_1/batch_{batch}.tar", outputs, 4.0, keep_topk)
    torch.testing.assert_close(loss(outputs, read.logits, None), expected)

    whole = Batch(torch.arange(len(read))[:, None], read.logits, torch.zeros(len(read)))
    parts = [(part, len(part) / len(read)) for part in whole.split(2)]
    summed = sum(share * loss(outputs[part.images[:, 0]], part.soft_labels, None) for part, share in parts)
    torch.testing.assert_close(summed, expected)

    ranks = [replace(views, share=Share(rank, 2, BATCH)) for rank in range(2)]
    shares = [(rank.read(1, batch), rank.share.rows(len(read))) for rank in ranks]
    summed = sum(len(rows) / len(read) * loss(outputs[rows], own.logits, None) for own, rows in shares)
    torch.testing.assert_close(summed, expected)


def test_weights_pass_with_every_kind_of_logits():
    """`answers_of` undoes `tensors_of`, also for top-k logits with and without their rest."""
    logits, weights = torch.ones(2, 3), torch.ones(2)
    top = TopK(logits, logits.long(), None)
    for answers in (logits, top, top._replace(rest=weights), Weighted(logits, weights), Weighted(top, weights), None):
        again = answers_of(tensors_of(answers))
        assert type(again) is type(answers)
        assert all(a is b for a, b in zip(tensors_of(again), tensors_of(answers), strict=True))


def test_weights_reach_a_captured_step(labels, tiny):
    """Images on the device come with weighted labels, and `like`, which a CUDA graph uses, keeps them together."""
    store = open_labels(labels[0])
    samples = open_folder(tiny.train, "--train-dir").samples
    dataset = ViewDataset(samples, store, SIDE)
    for number, batch in enumerate(DeviceBatches(dataset, range(1), normalise_on(CPU), 0, CPU).epoch(0)):
        expected = TrainingViews(store).read(0, number).logits
        for found in (batch.soft_labels, batch.like(batch.tensors()).soft_labels, batch.ready().soft_labels):
            assert isinstance(found, Weighted)
            assert torch.equal(found.weights, expected.weights)
            assert torch.equal(found.answers, expected.answers)


def test_a_run_has_the_loss_computed_by_hand(labels, tiny, tmp_path, small_student):
    """At a rate of almost zero, the training loss of an epoch is that of the initial student, weighted by hand."""
    folder, _ = labels
    done = tiny.train_run(tmp_path / "run", fkd_path=folder, epochs=1, temperature=4, adamw_lr=1e-12)
    student = rank_jobs.small_student(None, CLASSES, 0, None)
    dataset = ViewDataset(open_folder(tiny.train, "--train-dir").samples, open_labels(folder), SIDE)
    batches = ResidentBatches(dataset, range(1), normalise_on(CPU), 0, CPU).epoch(0)
    with torch.no_grad():
        rows = [
            len(batch) * by_hand(folder / f"epoch_0/batch_{number}.tar", student(batch.images), 4.0)
            for number, batch in enumerate(batches)
        ]
    assert losses(done) == [pytest.approx(sum(rows).item() / 12, rel=1e-5)]


def test_weights_change_the_run_unless_they_are_equal(labels, tiny, tmp_path, small_student):
    """Runs on the labels without weights, and with the same weight for all, are alike; the weighted run differs."""
    folder, _ = labels
    store = open_labels(folder)
    for name, weights in (("none", None), ("equal", 0.25)):
        writer = TarWriter(tmp_path / name, with_index=weights is not None)
        for epoch in range(store.epochs):
            batches = [store.read(epoch, batch) for batch in range(store.batches_per_epoch)]
            constant = [None if weights is None else torch.full((len(one),), weights).double() for one in batches]
            writer.write(epoch, [replace(b, weights=w) for b, w in zip(batches, constant, strict=True)])
    folders = {"weighted": folder, "none": tmp_path / "none", "equal": tmp_path / "equal"}
    runs = {
        name: losses(tiny.train_run(tmp_path / f"run_{name}", fkd_path=path, epochs=2))
        for name, path in folders.items()
    }
    assert runs["equal"] == pytest.approx(runs["none"], rel=1e-6)
    assert all(abs(one - other) > 1e-3 * other for one, other in zip(runs["weighted"], runs["none"], strict=True))


@pytest.mark.parametrize("loss", ["mse_gt", "dist", "ce"])
def test_only_kl_weighs(labels, tiny, tmp_path, loss):
    """Another loss is refused in one sentence, which names the remedies."""
    done = run(train_FKD_parallel, *tiny.flags(tmp_path / "run", fkd_path=labels[0], epochs=2, loss_type=loss))
    assert done.code == 2
    assert len(done.err.splitlines()) == 1
    assert f"--loss-type is {loss}; use kl, or pack and unpack the labels with --items 6" in done.err


def test_tools_keep_the_weights(labels, tiny, tmp_path, capsys):
    """Packed and unpacked, weights have the same bits; --items 6 leaves them out, and any loss goes."""
    folder, _ = labels
    packed, again, plain = (tmp_path / name for name in ("packed", "again", "plain"))
    assert tool("pack", folder, packed, "--keep-topk", 2) == 0
    assert open_labels(packed).read(1, 1).logits.values.shape == (BATCH, 2)
    assert torch.equal(open_labels(packed).read(1, 1).weights, open_labels(folder).read(1, 1).weights)
    read = TrainingViews(open_labels(packed)).read(1, 1).logits
    assert isinstance(read, Weighted)
    assert isinstance(read.answers, TopK)
    assert tool("pack", folder, tmp_path / "whole") == tool("verify", tmp_path / "whole") == 0
    assert tool("unpack", tmp_path / "whole", again) == tool("unpack", tmp_path / "whole", plain, "--items", 6) == 0
    first, second = (load_archive(path / "epoch_1/batch_0.tar") for path in (folder, again))
    assert second[6].dtype == torch.float64
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True) if isinstance(a, torch.Tensor))
    assert open_labels(plain).dialect == "sre2l"
    assert open_labels(plain).read(0, 0).weights is None
    capsys.readouterr()
    assert tool("info", packed) == 0
    assert "has weights  yes" in capsys.readouterr().out
    flags = {"fkd_path": plain, "epochs": 1, "loss_type": "mse_gt", "dry_run": True}
    assert run(train_FKD_parallel, *tiny.flags(tmp_path / "run", **flags)).code == 0


def test_digests_cover_the_weights(labels, tmp_path):
    """Another weight changes the digest of the label files and of packed labels; damage to it is noticed."""
    folder, _ = labels
    store = open_labels(folder)
    writer = TarWriter(tmp_path / "other")
    for epoch in range(store.epochs):
        batches = [store.read(epoch, batch) for batch in range(store.batches_per_epoch)]
        writer.write(epoch, [replace(one, weights=one.weights * 2) for one in batches])
    digests = set()
    for number, path in enumerate((folder, tmp_path / "other")):
        assert tool("pack", path, tmp_path / f"packed{number}") == 0
        digests |= {open_labels(path).digest(), open_labels(tmp_path / f"packed{number}").digest()}
    assert len(digests) == 4
    file = tmp_path / "packed0" / "epoch_0000.safetensors"
    stored = open_labels(tmp_path / "packed0").open(0)["weights"].numpy().tobytes()
    file.write_bytes(file.read_bytes().replace(stored, b"\xff" * len(stored)))
    with pytest.raises(InputError, match="impossible non-finite values"):
        open_labels(tmp_path / "packed0").read(0, 0)


@pytest.mark.parametrize("name", ["weights", "cutouts"])
def test_impossible_numbers_in_packed_labels_are_refused(labels, tmp_path, name):
    """A packed file with negative weights, or with a centre outside the view, is refused when it is opened."""
    batches = [open_labels(labels[0]).read(0, batch) for batch in range(3)]
    changes = [
        {"weights": -one.weights} if name == "weights" else {"augment": torch.ones(len(one), 7) * 2} for one in batches
    ]
    manifest = make_manifest(Codec(16), 12, CLASSES, BATCH, 1, "cutmix", False, {}, **{f"has_{name}": True})
    PackedWriter(tmp_path / "packed", manifest).write(
        0, [replace(one, **change) for one, change in zip(batches, changes, strict=True)]
    )
    with pytest.raises(InputError, match=f"impossible {name}"):
        open_labels(tmp_path / "packed").read(0, 0)


def items_with(weights):
    """Return seven items of a batch of three rows with these weights."""
    coords, flip = torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 3), torch.zeros(3, dtype=torch.bool)
    return [coords, flip, None, None, None, torch.zeros(3, 4), torch.as_tensor(weights, dtype=torch.float64)]


@pytest.mark.parametrize(
    "weights",
    [[1.0, -0.1, 1.0], [1.0, float("nan"), 1.0], [1.0, float("inf"), 1.0], [0.0, 0.0, 0.0], [1.0, 1.0], [1e308] * 3],
)
def test_impossible_weights_are_refused(weights):
    """A weight is a finite number that is not negative, there is one for each row, and one of them is above zero."""
    with pytest.raises(InputError, match="weights"):
        parse_items(items_with(weights), "FILE")


def test_an_image_may_have_no_weight():
    """Weights of WMDD add up to 1 in each class, and one of them may be 0."""
    parsed = parse_items(items_with([0.0, 1.0, 2.0]), "FILE").weighted()
    assert parsed.logits.weights.tolist() == [0, 1, 2]


def test_a_folder_does_not_mix_files_with_and_without_weights(labels, tmp_path):
    """A batch without weights among others with weights is refused."""
    writer = TarWriter(tmp_path / "mixed")
    store = open_labels(labels[0])
    batches = [store.read(0, batch) for batch in range(store.batches_per_epoch)]
    writer.write(0, [batches[0], replace(batches[1], weights=None), batches[2]])
    with pytest.raises(InputError, match=r"'prism'.*expected.*'wmdd'"):
        open_labels(tmp_path / "mixed").read(0, 1)
