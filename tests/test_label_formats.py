"""Every label format works with every tool and in training; wrong pairings are refused in one sentence."""

import json
import pickle
import shutil
from types import SimpleNamespace

import kill_runs
import pytest
import rank_jobs
import torch
from helpers import BATCH, CLASSES, Tiny, losses, read_run, run, stop_and_resume, tool
from label_folders import IMAGES, MAKERS
from rank_jobs import launch

import train_FKD_parallel
from utils.config import LABEL_ORDERS
from utils.labels.formats import open_labels
from utils.labels.store import SAMPLED, SHUFFLED
from utils.labels.training_views import REUSED, TrainingViews, draw_batches
from utils.labels.types import TopK, each
from utils.run.label_checks import check_images_of_labels
from utils.system.distributed import Share
from utils.system.errors import InputError
from utils.training.losses import build_loss

FLAGS = {"reuse_labels": True, "epochs": 3}
TOP = {name: {"num_classes": CLASSES} for name in ("lpqld", "lpqld_21k")}


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Write one folder of each format; no test may write to them."""
    root = tmp_path_factory.mktemp("dialects")
    for name, make in MAKERS.items():
        make(root / name)
    return root


@pytest.mark.parametrize("dialect", MAKERS)
def test_tools_and_training_take_every_format(dialect, folders, tiny, tmp_path, capsys):
    """Info, verify, pack, unpack and a dry run work; training on packed labels gives bit-identical losses."""
    source = folders / dialect
    assert tool("info", source) == 0
    described = capsys.readouterr().out
    project, _, cutouts = dialect.partition("_")
    assert project in described
    assert ("has cutouts" in described) == bool(cutouts)
    assert ("has weights" in described) == (project == "wmdd")
    assert tool("verify", source) == 0
    assert tool("pack", source, tmp_path / "packed") == 0
    assert tool("verify", tmp_path / "packed") == 0
    assert tool("unpack", tmp_path / "packed", tmp_path / "again") == 0
    assert open_labels(tmp_path / "again").dialect == project
    flags = FLAGS | TOP.get(dialect, {})
    stores = source, tmp_path / "packed", tmp_path / "again"
    runs = [tiny.train_run(tmp_path / f"run{n}", fkd_path=store, **flags) for n, store in enumerate(stores)]
    assert losses(runs[0]) == losses(runs[1]) == losses(runs[2])
    dry = run(train_FKD_parallel, *tiny.flags(tmp_path / "dry", fkd_path=source, dry_run=True, **flags))
    assert dry.code == 0, dry.err
    assert (tmp_path / "dry" / "views.png").exists()


@pytest.mark.parametrize("dialect", ["lpqld", "hald", "wmdd", "lpqld_21k"])
def test_workers_and_resident_images_give_the_same_losses(dialect, folders, tiny, tmp_path):
    """Sparse labels, probabilities, weights and cutouts pass through worker processes unchanged."""
    flags = FLAGS | TOP.get(dialect, {}) | {"fkd_path": folders / dialect}
    runs = [tiny.train_run(tmp_path / name, loader=name, workers=2, **flags) for name in ("workers", "resident")]
    assert losses(runs[0]) == losses(runs[1])


@pytest.mark.parametrize("order", [SAMPLED, SHUFFLED])
def test_folders_with_epochs_may_be_drawn_from(order, folders, tiny, tmp_path):
    """--label-order gives another order than the stored one, and the same one in every run."""
    flags = FLAGS | {"fkd_path": folders / "sre2l"}
    stored = tiny.train_run(tmp_path / "stored", **flags)
    drawn = [tiny.train_run(tmp_path / f"{n}", label_order=order, **flags) for n in range(2)]
    assert losses(drawn[0]) == losses(drawn[1]) != losses(stored)


def test_drawing_is_a_pure_function():
    """Sampled: no batch twice in an epoch, and epochs differ. Shuffled: each batch once before any comes again."""
    for epoch in range(5):
        drawn = draw_batches(SAMPLED, 7, epoch, 10, 4)
        assert len(set(drawn)) == 4
        assert set(drawn) <= set(range(10))
        assert drawn == draw_batches(SAMPLED, 7, epoch, 10, 4)
    assert len({tuple(draw_batches(SAMPLED, 7, epoch, 10, 4)) for epoch in range(5)}) > 1
    pool = [batch for epoch in range(5) for batch in draw_batches(SHUFFLED, 7, epoch, 10, 4)]
    assert sorted(pool[:10]) == sorted(pool[10:]) == list(range(10))
    assert (
        list(draw_batches(SHUFFLED, 7, 0, 8, 8))
        == torch.randperm(8, generator=torch.Generator().manual_seed(7)).tolist()
    )


@pytest.mark.parametrize("dialect", MAKERS)
def test_stored_batches_are_those_of_the_files(dialect, folders):
    """A pool reads each stored batch, with the stated number of rows."""
    store = open_labels(folders / dialect)
    assert store.stored_batches() == (4 if dialect.startswith("lp") else 6)
    pooled = TrainingViews(store, SHUFFLED, 0, store.stored_batches())
    files = {pooled.file(0, batch) for batch in range(store.stored_batches())}
    assert len(files) == (2 if dialect == "hald" else store.stored_batches())
    for batch in range(store.stored_batches()):
        assert len(pooled.read(0, batch)) == pooled.rows(0, batch)


@pytest.mark.parametrize("order", [*LABEL_ORDERS, REUSED])
def test_a_worker_looks_up_the_same_batches(order, folders):
    """`TrainingViews` survive pickling, as they must to reach a worker, with every order and with a share."""
    store = open_labels(folders / "hald")
    views = TrainingViews(store, order, 3, batches_drawn=2, share=Share(1, 2, 2))
    copies = pickle.loads(pickle.dumps(views))
    for epoch in range(2 if order == "stored" else 5):
        for batch in range(2):
            one, other = views.read(epoch, batch), copies.read(epoch, batch)
            assert torch.equal(one.index, other.index)
            assert torch.equal(one.logits, other.logits)
            assert views.place(epoch, batch) == copies.place(epoch, batch)
            assert views.parts(epoch, batch) == copies.parts(epoch, batch)


def test_kl_takes_probabilities_at_their_own_temperature(folders):
    """The loss is recomputed from the file: only the student's logits are divided by T."""
    labels = open_labels(folders / "hald").read(1, 0)
    stored = torch.load(folders / "hald" / "epoch_1.tar", weights_only=False)[0][5].float()
    outputs = torch.randn(BATCH, CLASSES, generator=torch.Generator().manual_seed(0))
    loss = build_loss("kl", 2.0, answers="probabilities")(outputs, labels.logits, None)
    student = torch.log_softmax(outputs / 2, dim=1)
    expected = (stored * (stored.log() - student)).sum(dim=1).mean()
    torch.testing.assert_close(loss, expected, rtol=2e-3, atol=1e-5)


def test_coords_in_half_precision_are_rounded_at_the_edges(folders):
    """Top, left, bottom and right are rounded separately, like PIL does."""
    labels = open_labels(folders / "lpld").read(0, 0)
    for slot in range(BATCH):
        top, left, height, width = labels.coords[slot].tolist()
        (i, j, h, w), _ = labels.view(slot, (36, 44))
        edges = round(top * 36), round(left * 44), round(top * 36 + height * 36), round(left * 44 + width * 44)
        assert (i, j, i + h, j + w) == edges


def damage(folder, kind):
    """Damage a label folder in one way."""
    if kind == "missing batch":
        (folder / "batch_2.tar").unlink()
    elif kind == "more files":
        shutil.copy(folder / "batch_2.tar", folder / "batch_9.tar")
    elif kind == "other rows":
        images = json.loads((folder / "sampler_indices_batch.json").read_text())
        images["1"] = images["1"][:-1]
        (folder / "sampler_indices_batch.json").write_text(json.dumps(images))
    elif kind == "other images":
        images = json.loads((folder / "sampler_indices_batch.json").read_text())
        images["1"][0] = 99
        (folder / "sampler_indices_batch.json").write_text(json.dumps(images))
    elif kind == "no list":
        (folder / "sampler_indices_batch.json").unlink()
    elif kind == "bad list":
        (folder / "sampler_indices_batch.json").write_text('{"0": [true]}')
    elif kind == "missing epoch":
        (folder / "epoch_1.tar").unlink()
    elif kind == "logits in it":
        epoch = torch.load(folder / "epoch_0.tar", weights_only=False)
        torch.save([[*items[:5], items[5] + 1] for items in epoch], folder / "epoch_0.tar")


WRONG = [
    ("lpld", "missing batch", {}, "batch_2.tar is missing"),
    ("lpld", "more files", {}, "lists no images for batch_9.tar"),
    ("lpld", "other rows", {}, "batch_1.tar disagrees"),
    ("lpld", "other images", {}, "they belong to another image set"),
    ("lpld", "no list", {}, "sampler_indices_batch.json cannot be read"),
    ("lpld", "bad list", {}, "does not list images"),
    ("lpld", None, {"label_order": "stored"}, "--label-order stored needs epochs"),
    ("lpld", None, {"reuse_labels": None}, "--reuse-labels"),
    ("lpld", None, {"num_classes": 9}, "--num-classes 9 disagrees"),
    ("lpqld", None, {"num_classes": 2}, "--num-classes is 2"),
    ("lpqld", None, {"keep_topk": 9}, "--keep-topk 9 is more than the 3 classes"),
    ("hald", "missing epoch", {}, "epoch 1 is in one of them only"),
    ("hald", "logits in it", {}, "not probabilities"),
    ("hald", None, {"loss_type": "mse_gt"}, "--loss-type mse_gt compares logits"),
    ("hald", None, {"loss_type": "mae_gt"}, "--loss-type mae_gt compares logits"),
    ("hald", None, {"loss_type": "gift"}, "--loss-type gift compares logits"),
    ("hald", None, {"loss_type": "cosine"}, "--loss-type cosine compares logits"),
    ("sre2l", None, {"label_order": "sampled", "reuse_labels": None}, "--reuse-labels"),
]


@pytest.mark.parametrize(("dialect", "kind", "flags", "problem"), WRONG)
def test_wrong_pairings_are_refused(dialect, kind, flags, problem, folders, tiny, tmp_path):
    """One sentence names the file or the flag; the exit code is 2, without traceback."""
    shutil.copytree(folders / dialect, tmp_path / "labels")
    damage(tmp_path / "labels", kind)
    result = run(train_FKD_parallel, *tiny.flags(tmp_path / "run", fkd_path=tmp_path / "labels", **(FLAGS | flags)))
    assert result.code == 2
    assert len(result.err.splitlines()) == 1
    assert problem in result.err


def test_labels_of_fewer_images_are_noticed(folders, tmp_path):
    """A pool that never names the folder's last images belongs to another folder."""
    args = SimpleNamespace(fkd_path=folders / "lpld", train_dir="images", subset=None)
    store = open_labels(folders / "lpld")
    classes = ["a"] * CLASSES
    check_images_of_labels(args, SimpleNamespace(samples=[0] * (IMAGES + 1), classes=classes), store)
    store.images = store.images * 100
    store.epochs *= 100
    with pytest.raises(InputError, match="another image set"):
        check_images_of_labels(args, SimpleNamespace(samples=[0] * (IMAGES + 12), classes=classes), store)


def test_a_sparse_batch_keeps_its_form():
    """`each` applies a function to every tensor of a `TopK`."""
    labels = TopK(torch.ones(3, 2), torch.zeros(3, 2, dtype=torch.int64), None)
    assert each(labels, lambda tensor: tensor[:1]).values.shape == (1, 2)
    assert set(LABEL_ORDERS) == {"stored", SAMPLED, SHUFFLED}


@pytest.mark.parametrize("dialect", ["wmdd", "lpqld_21k"])
def test_interrupted_runs_go_on_with_the_same_batches(dialect, folders, tiny, tmp_path, small_student):
    """A run on stored or drawn batches that is stopped in its second epoch and resumed ends with the same losses."""
    flags = FLAGS | {"fkd_path": folders / dialect} | TOP.get(dialect, {})
    whole = tiny.train_run(tmp_path / "whole", **flags)
    words = tiny.flags(tmp_path / "part", **flags)
    assert losses(stop_and_resume(words, tmp_path / "part", [3])) == losses(whole)


NEW = ["lpld", "lpqld", "hald", "sre2l", "wmdd", "lpqld_21k"]


def test_two_processes_do_what_one_does(folders, tiny, tmp_path, monkeypatch):
    """Drawn batches and labels of every kind are sharded; the students agree up to rounding."""

    def words(target, name):
        order = {"label_order": "sampled"} if name == "sre2l" else TOP.get(name, {})
        more = {"sgd": True, "learning_rate": 0.1, "sync_bn": True, "model": "resnet18"}
        return tiny.flags(target / name, fkd_path=folders / name, **(FLAGS | order | more))

    jobs = [["train_FKD_parallel", *words(tmp_path / "two", name)] for name in NEW]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    done = launch(2, tmp_path / "jobs.json")
    assert done.returncode == 0, done.stderr[-2000:]
    rank_jobs.use_small_student(monkeypatch.setattr)
    for name in NEW:
        result = run(train_FKD_parallel, *words(tmp_path / "one", name))
        assert result.code == 0, result.err
        one, two = read_run(tmp_path / "one" / name), read_run(tmp_path / "two" / name)
        assert losses(two) == pytest.approx(losses(one), rel=1e-4)
        weights = two.weights()
        for key, value in one.weights().items():
            torch.testing.assert_close(weights[key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dialect", ["prism", "sre2l", "lpld", "lpqld", "hald"])  # the others have the same readers
def test_a_killed_run_goes_on(dialect, folders, tiny, tmp_path):
    """After SIGKILL at a random moment and a resume, weights and metrics are those of an uninterrupted run."""
    set_of_labels = Tiny(tiny.train, tiny.val, folders / dialect)
    _, killed, whole = kill_runs.kill_and_resume(set_of_labels, tmp_path, 1, 4, seed=3)
    kill_runs.check(killed, whole)


def test_mass_that_was_not_stored_cannot_be_kept(folders, tiny, tmp_path):
    """--topk-mass kept needs the mass of the dropped classes, which LPQLD does not store."""
    more = FLAGS | TOP["lpqld"] | {"topk_mass": "kept"}
    result = run(train_FKD_parallel, *tiny.flags(tmp_path / "run", fkd_path=folders / "lpqld", **more))
    assert result.code == 2
    assert "--topk-mass kept" in result.err
    assert not (tmp_path / "run").exists()
