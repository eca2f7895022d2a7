"""Several processes give the weights, metrics and labels of one process, and they end together."""

import itertools
import json
import random

import pytest
import rank_jobs
import torch
from helpers import LIGHT, SIDE, make_images, make_labels, read_run, relabel_flags, run, save_teacher, threads
from hypothesis import given
from hypothesis import strategies as st
from rank_jobs import launch

import train_FKD_parallel
from utils.data.batch import Batch
from utils.data.workers import guarded
from utils.labels import command
from utils.labels.formats import open_labels
from utils.labels.store import SAMPLED
from utils.labels.training_views import TrainingViews, keep_rows
from utils.labels.views import DrawnViews, ViewPolicy
from utils.run import folder
from utils.run.checkpoint import Progress, load_checkpoint, save_checkpoint
from utils.system import distributed
from utils.system.distributed import Share, World, from_environment, share
from utils.system.errors import InputError
from utils.training.data_parallel import SyncBatchNorm
from utils.training.optimizer import build_optimizer
from utils.training.precision import Precision

CLASSES, PER_CLASS, ROWS = 3, 6, 8  # batches of 8, 8 and 2; in halves, 3 ranks leave one without rows in the last
MIXES = ("cutmix", "mixup", "none")
EPOCHS = 2


class Files:
    """Images, a teacher, and random labels of every mix type in both formats."""

    def __init__(self, root):
        self.root, self.teacher = root, root / "teacher.pth"
        self.train = make_images(root / "train", CLASSES, PER_CLASS)
        self.val = make_images(root / "val", CLASSES, 5, seed=1)
        self.second = save_teacher(root / "second.pth", seed=6)
        save_teacher(self.teacher, seed=5)
        for mix in MIXES:
            make_labels(root / f"{mix}-tar", mix, EPOCHS, ROWS, CLASSES * PER_CLASS)
            assert command.main(["pack", str(root / f"{mix}-tar"), str(root / f"{mix}-packed")]) == 0

    def relabel(self, target, *more, epochs=EPOCHS):
        """Return the command line of relabel_FKD.py."""
        options = {"arch": LIGHT, "epochs": epochs, "batch_size": ROWS}
        return relabel_flags(self.train, self.teacher, target, *more, **options)

    def training(self, target, *more, mix="cutmix", form="packed", epochs=EPOCHS):
        """Return the command line of train_FKD_parallel.py."""
        words = ["--train-dir", self.train, "--val-dir", self.val, "--fkd-path", self.root / f"{mix}-{form}"]
        words += ["--input-size", SIDE, "--batch-size", ROWS, "--epochs", epochs, "--eval-every", 1, "-j", 0]
        words += ["--device", "cpu", "--precision", "fp32", "--sync-bn", "--output-dir", target]
        return [str(word) for word in [*words, *more]]


SGD = ["--sgd", "-lr", "0.1"]
GRID = {  # name -> (mix type, format, flags)
    f"{mix}-{form}-{loader}-{steps}": (mix, form, [*SGD, "--loader", loader, "--gradient-accumulation-steps", steps])
    for mix, form, loader, steps in itertools.product(MIXES, ("tar", "packed"), ("workers", "resident"), (1, 2))
}
OTHERS = {
    "processes": ("cutmix", "packed", [*SGD, "-j", 2, "--loader", "workers"]),
    "adamw": ("cutmix", "packed", ["--gradient-accumulation-steps", 2]),
    "mse_gt": ("mixup", "packed", [*SGD, "--loss-type", "mse_gt", "--keep-topk", 2]),
    "gift": ("cutmix", "packed", [*SGD, "--loss-type", "gift", "--keep-topk", 2, "--warmup-epochs", 1]),
    "dist": ("cutmix", "packed", ["--sgd", "-lr", "0.001", "--loss-type", "dist", "--gradient-accumulation-steps", 2]),
}
CASES = GRID | OTHERS


def kd_words(files, target):
    """Return the command line of train_KD_parallel.py, with two live teachers."""
    words = files.training(target, *SGD, "--mix-type", "cutmix", "--gradient-accumulation-steps", 2)
    at = words.index("--fkd-path")
    committee = ["--teacher-model", LIGHT, LIGHT, "--teacher-checkpoint", str(files.teacher), str(files.second)]
    return words[:at] + words[at + 2 :] + [*committee, "--ensemble-weights", "1", "3"]


def jobs(files, target, names):
    """Return the jobs of the ranks: train every case, train naive KD, and relabel in both formats."""
    todo = []
    for name in names:
        mix, form, more = CASES[name]
        todo.append(["train_FKD_parallel", *files.training(target / name, *more, mix=mix, form=form)])
    todo.append(["train_KD_parallel", *kd_words(files, target / "kd")])
    for form in ("tar", "packed"):
        todo.append(["relabel_FKD", *files.relabel(target / form, "--mix-type", "cutmix", "--format", form, epochs=5)])
    return todo


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Use one thread, like the processes of `launch`."""
    with threads(1):
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return Files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def alone(files):
    """Run every job in one process; return the folder."""
    target = files.root / "alone"
    with pytest.MonkeyPatch.context() as patch:
        rank_jobs.use_small_student(patch.setattr)
        for script, *words in jobs(files, target, CASES):
            result = run(rank_jobs.SCRIPTS[script], *words)
            assert result.code == 0, result.err
    return target


@pytest.fixture(scope="module", params=[2, 3])
def together(request, files):
    """Run the jobs in several processes; return (processes, folder, names of the cases)."""
    target = files.root / f"ranks{request.param}"
    target.mkdir()
    names = list(CASES) if request.param == 2 else [n for n in CASES if n.endswith("packed-resident-2") or n in OTHERS]
    (target / "jobs.json").write_text(json.dumps(jobs(files, target, names)))
    done = launch(request.param, target / "jobs.json")
    assert done.returncode == 0, done.stderr
    return request.param, target, names


def difference(one, other):
    """Return the largest difference between two state dicts."""
    return max((one[name].double() - other[name].double()).abs().max().item() for name in one)


def test_weights_and_metrics_are_those_of_one_process(alone, together):
    """Weights differ by less than 1e-5; the numbers of right images are equal."""
    for name in [*together[2], "kd"]:
        one, several = read_run(alone / name), read_run(together[1] / name)
        assert difference(one.weights(), several.weights()) < 1e-5, name
        for ours, theirs in zip(several.rows, one.rows, strict=True):
            for column in ("val_top1", "val_top5", "train_top1", "train_top5", "lr"):
                assert ours[column] == theirs[column], (name, column)
            assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-5, abs=1e-6)
            assert ours["val_loss"] == pytest.approx(theirs["val_loss"], rel=1e-5)
        assert several.summary["args"]["processes"] == together[0]
        fresh = dict(rank_jobs.small_student("", CLASSES, 0, "").named_parameters())
        moved = difference(fresh, one.weights())
        assert moved > 1e-3, name


def test_one_process_writes(together):
    """Every file of a run is written once, and no temporary file is left."""
    for name in together[2]:
        log = (together[1] / name / "train.log").read_text()
        assert log.count("epoch   2/2") == 1
        assert not list((together[1] / name).glob(".*"))


def test_relabelling_gives_the_same_bytes(alone, together):
    for form in ("tar", "packed"):
        found, wanted = (
            {
                path.relative_to(folder / form): path.read_bytes()
                for path in (folder / form).rglob("*")
                if path.is_file()
            }
            for folder in (alone, together[1])
        )
        assert found == wanted
        assert len(found) == {"tar": 16, "packed": 7}[form]


def test_each_rank_decodes_its_share_and_partners(files, together):
    """Decoded images are counted during training; without mixing there are no partners."""
    processes, target, names = together
    counts = [json.loads((target / f"decoded.{rank}.json").read_text()) for rank in range(processes)]
    views = {mix: open_labels(files.root / f"{mix}-packed") for mix in MIXES}
    for number, name in enumerate(names):
        mix, _, more = CASES[name]
        if "workers" not in more or "-j" in more:
            continue
        share_of = [Share(rank, processes, ROWS // more[-1]) for rank in range(processes)]
        for rank in range(processes):
            validation = len(range(rank, CLASSES * 5, processes))
            wanted = 0
            for epoch, batch in itertools.product(range(EPOCHS), range(3)):
                labels = views[mix].read(epoch, batch)
                own = set(share_of[rank].rows(len(labels)).tolist())
                partners = set() if mix == "none" else {labels.mix.partner[row].item() for row in own}
                wanted += len(own | partners) or 1  # a rank without rows decodes one
            assert counts[rank][number] == wanted + validation, name
        total = sum(count[number] for count in counts)
        if mix == "none" and processes == 2:
            assert total == EPOCHS * CLASSES * PER_CLASS + CLASSES * 5


def test_a_killed_process_ends_the_others_and_resume_completes(files, tmp_path, monkeypatch):
    """The first line of stderr gives the reason; a run of another number of processes resumes."""
    words = files.training(tmp_path / "run", *SGD, epochs=2)
    (tmp_path / "jobs.json").write_text(json.dumps([["train_FKD_parallel", *words]]))
    done = launch(2, tmp_path / "jobs.json", DIE="1")
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "another process" in errors[0]
    assert done.stderr.index("error: ") <= done.stderr.find("Traceback") % len(done.stderr)
    assert "epoch   1/2" in done.stdout

    rank_jobs.use_small_student(monkeypatch.setattr)
    resumed = run(train_FKD_parallel, *words, "--resume")
    assert resumed.code == 0, resumed.err
    assert "resumed" in resumed.out
    assert run(train_FKD_parallel, *files.training(tmp_path / "whole", *SGD, epochs=2)).code == 0
    resumed, whole = read_run(tmp_path / "run"), read_run(tmp_path / "whole")
    assert difference(resumed.weights(), whole.weights()) < 1e-5


def test_only_one_process_looks_at_a_folder_that_is_to_be_overwritten(tmp_path):
    """The first process may already be deleting the files that the others would list."""
    (tmp_path / "metrics.csv").touch()
    assert folder.RunFolder(tmp_path, overwrite=True).previous == ["metrics.csv"]
    assert folder.RunFolder(tmp_path, writes=False).previous == []


def test_bad_input_is_reported_once(files, tmp_path):
    """Every process finds the error; one reports it, before the launcher's own lines."""
    words = files.training(tmp_path / "run", "--loss-type", "kl")
    words[words.index("--batch-size") + 1] = "9"
    (tmp_path / "jobs.json").write_text(json.dumps([["train_FKD_parallel", *words]]))
    done = launch(2, tmp_path / "jobs.json")
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "--batch-size 9" in errors[0]
    assert not (tmp_path / "run").exists()


def set_environment(monkeypatch, **values):
    for name in distributed.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)


COMPLETE = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


def test_the_environment_gives_rank_and_world_size(monkeypatch):
    """Without variables there is one process; a world size of one needs no connection."""
    set_environment(monkeypatch)
    assert from_environment() == World()
    set_environment(monkeypatch, MASTER_ADDR="localhost")
    assert from_environment() == World()
    set_environment(monkeypatch, **COMPLETE)
    assert from_environment() == World(1, 4, 1)
    set_environment(monkeypatch, **COMPLETE | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"})
    assert distributed.start("cpu") == World()


@pytest.mark.parametrize("missing", distributed.VARIABLES)
def test_a_half_set_environment_is_named(missing, monkeypatch, files, tmp_path):
    set_environment(monkeypatch, **{name: value for name, value in COMPLETE.items() if name != missing})
    with pytest.raises(InputError, match=f"but not {missing};"):
        from_environment()
    monkeypatch.setenv("RANK", "0") if missing != "RANK" else None
    result = run(train_FKD_parallel, *files.training(tmp_path / "run"))
    assert result.code == 2
    assert result.err.startswith("error: ")
    assert missing in result.err


@pytest.mark.parametrize("wrong", [{"RANK": "4"}, {"RANK": "x"}, {"LOCAL_RANK": "-1"}])
def test_impossible_ranks(wrong, monkeypatch):
    set_environment(monkeypatch, **COMPLETE | wrong)
    with pytest.raises(InputError, match="RANK"):
        from_environment()


@given(st.integers(0, 60), st.integers(1, 9), st.integers(1, 60))
def test_shares_cover_every_row_once(rows, size, micro):
    assert sorted(row for rank in range(size) for row in share(rows, rank, size)) == list(range(rows))
    shares = [Share(rank, size, micro) for rank in range(size)]
    owned = torch.cat([one.rows(rows) for one in shares])
    assert sorted(owned.tolist()) == list(range(rows))
    for one in shares:
        parts = one.parts(rows)
        assert sum(whole for _, whole in parts) == rows
        assert sum(own for own, _ in parts) == len(one.rows(rows))
        assert all(abs(own - whole / size) < 1 for own, whole in parts)


@given(st.integers(1, 20), st.integers(1, 4), st.randoms(use_true_random=False), st.sampled_from(MIXES))
def test_cut_down_batches_mix_as_the_whole(rows, size, rng, mix):
    """Own rows and their partners are the same images in every batch and for every rank."""
    views = DrawnViews(ViewPolicy(rng.randrange(99), SIDE, 0.08, 1.0, mix, 0.8, 1.0), rows, rows)
    drawn = views.read(0, 0)
    for rank in range(size):
        own = Share(rank, size, rng.randint(1, rows)).rows(rows)
        part = keep_rows(drawn, own)
        assert len(set(part.index.tolist())) == len(part.index) > 0
        assert torch.equal(part.index[: len(own)], drawn.index[own])
        for slot in range(len(own)):
            assert part.view(slot, (40, 50)) == drawn.view(own[slot], (40, 50))
        if mix != "none":
            partners = part.index[part.mix.partner[: len(own)]]
            assert torch.equal(partners, drawn.index[drawn.mix.partner[own]])


def test_split_follows_the_parts():
    """Micro-batches follow the stated parts, also if one of them has no rows on this rank."""
    numbers = torch.arange(4)
    batch = Batch(numbers, None, numbers, ((3, 6), (0, 1), (1, 2)))
    assert batch.whole == 9
    assert [(len(micro), micro.whole) for micro in batch.split(6)] == [(3, 6), (0, 1), (1, 2)]
    assert torch.equal(torch.cat([micro.targets for micro in batch.split(6)]), numbers)


def test_sync_bn_alone_is_batch_norm():
    """Outputs, gradients, running statistics and state dict equal those of PyTorch's layer."""
    torch.manual_seed(random.Random(0).randrange(99))
    x = torch.randn(6, 5, 3, 4) * 2 + 1
    theirs = torch.nn.BatchNorm2d(5)
    torch.nn.init.normal_(theirs.weight)
    ours = SyncBatchNorm(torch.nn.BatchNorm2d(5), World())
    ours.load_state_dict(theirs.state_dict())
    found = []
    for layer in (theirs, ours):
        leaf = x.clone().requires_grad_()
        (layer(leaf).square() * torch.arange(4)).sum().backward()
        found.append([leaf.grad, layer.weight.grad, layer.bias.grad, *layer.state_dict().values(), layer.eval()(x)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_workers_are_forked_while_the_group_rests(monkeypatch):
    """A fork right after a collective may hang in Python 3.11.7, in about one of 18,000 cases."""
    seen = []

    class Loader:
        def __iter__(self):
            seen.append("forked")
            return iter("ab")

    monkeypatch.setattr(distributed.time, "sleep", seen.append)
    assert list(guarded(Loader())) == ["a", "b"]
    assert seen == ["forked"]  # one process has no group
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    assert list(guarded(Loader())) == ["a", "b"]
    assert seen == ["forked", distributed.GROUP_THREADS_SECONDS, "forked"]


class Pool:
    """Two stored epochs with batches of 8 rows; the last batch has 3."""

    epochs, batches_per_epoch, num_images = 2, 2, 16

    def random_access(self):
        pass

    def batches(self, epoch):
        return 2

    def rows(self, epoch, batch):
        return 3 if (epoch, batch) == (1, 1) else 8


def test_the_smallest_batch_of_a_pool_is_found_by_several_processes():
    """Any stored batch may be drawn in any epoch, also if each process has its share."""
    assert TrainingViews(Pool(), SAMPLED, 0, 2).smallest_batch() == 3
    assert TrainingViews(Pool(), SAMPLED, 0, 2, Share(1, 2, 8)).smallest_batch() == 3


@pytest.mark.parametrize(
    ("before", "now", "refused"),
    [
        ((2, True), (2, False), True),
        ((2, False), (4, True), True),
        ((2, True), (4, True), False),
        ((1, True), (1, False), False),
        ((2, True), (1, False), False),
        ((1, False), (2, True), False),
    ],
)
def test_sync_bn_may_change_only_where_it_has_no_effect(before, now, refused, tmp_path):
    """Cases are (processes, --sync-bn) before and after a resume; one process always has the statistics of all rows."""
    model = torch.nn.Linear(2, 2)
    parts = model, build_optimizer(model, True, 0.1, 0.0), Precision("fp32", torch.device("cpu")).scaler
    first, second = ({"processes": processes, "sync_bn": sync_bn} for processes, sync_bn in (before, now))
    first |= {"temperature_schedule": "constant", "input_size": 224, "val_resize": 256}
    save_checkpoint(tmp_path / "c", Progress(), *parts, first)
    if refused:
        with pytest.raises(InputError, match=f"--sync-bn was {before[1]} and is {now[1]}; resume with the same"):
            load_checkpoint(tmp_path / "c", first | second)
    else:
        assert "state_dict" in load_checkpoint(tmp_path / "c", first | second)
