"""Several students in one process each equal a run of their own, and a failing one does not disturb the others."""

import contextlib
import csv
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import CPU, LIGHT, ROOT, read_run, run, save_teacher, signal_in_step
from small_network import BareStudent, train_epoch
from torch import nn

import train_FKD_parallel
import train_KD_parallel
from utils.config import FKDConfig
from utils.data import resident, validation
from utils.data.batch import Batch
from utils.data.device import DeviceBatch
from utils.labels.sre2l import TarStore
from utils.run.wandb_log import RunMetadata, start_tracker
from utils.system.distributed import World
from utils.system.errors import InputError
from utils.training import cuda_graph
from utils.training.losses import build_loss
from utils.training.optimizer import build_optimizer
from utils.training.precision import Precision
from utils.training.streams import MAX_BATCHES_IN_FLIGHT, RandomStream, Streams
from utils.training.teachers import Ensemble

NAMES = ["plain", "dropping"]
STUDENTS = [f"{model}-seed{seed}" for model in NAMES for seed in (0, 1)]
HOLD = """
import sys
from utils.system.files import FolderLock
lock = FolderLock(sys.argv[1])
print("locked", flush=True)
sys.stdin.read()
lock.release()
"""
TIMES = {"train_seconds", "train_images_per_second", "val_seconds", "seconds"}


def small_student(name, num_classes, seed, _stem="standard", _input_size=None, _in_channels=3):
    """Return a convolution with batch normalisation; `dropping` has dropout, `diverging` exceeds float32."""
    torch.manual_seed(seed)
    drop = nn.Dropout(0.5) if name == "dropping" else nn.Identity()
    head = nn.Linear(8, num_classes)
    if name == "diverging":
        nn.init.constant_(head.weight, 3e38)
    features = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    return nn.Sequential(features, nn.Flatten(), drop, head)


@pytest.fixture(scope="module", autouse=True)
def _small_students():
    """Train small networks in this module, and skip curves and git, which other tests cover."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("utils.run.student.build_student", small_student)
        patch.setattr("utils.run.folder.draw_curves", lambda *_: None)
        patch.setattr("utils.run.summary.git_commit", lambda: None)
        yield


def together(tiny, output, *words, models=NAMES, seeds=(0, 1), script=train_FKD_parallel, **changed):
    """Train all combinations of models and seeds side by side; return the result of the script."""
    flags = [*tiny.flags(output, model=None, **changed), "--model", *models, "--seeds", *seeds, *words]
    return run(script, *flags)


@pytest.fixture(scope="module")
def alone(tiny, tmp_path_factory):
    """Return a function that trains a student in a run of its own and returns its folder."""
    root, made = tmp_path_factory.mktemp("alone"), {}

    def get(name):
        if name not in made:
            model, seed = name.split("-seed")
            made[name] = tiny.train_run(root / name, model=model, seed=seed).path
        return made[name]

    return get


def plain(value):
    """Return a summary without times and without settings that depend on the folder and on other students."""
    dropped = TIMES | {"output_dir", "side_by_side", "resume", "loader"}
    return {k: plain(v) if isinstance(v, dict) else v for k, v in value.items() if k not in dropped}


def rows_of(folder):
    """Return the rows of metrics.csv as text, without times."""
    with open(folder / "metrics.csv") as file:
        return [{name: cell for name, cell in row.items() if name not in TIMES} for row in csv.DictReader(file)]


def assert_equal_runs(one, other):
    """Assert bit-equal weights, optimizer and random state, and equal metrics and summary."""
    ours, theirs = (torch.load(f / "checkpoint.pth.tar", weights_only=True) for f in (one, other))
    for name, value in theirs["state_dict"].items():
        assert torch.equal(ours["state_dict"][name], value), name
    assert repr(ours["optimizer"]) == repr(theirs["optimizer"])
    assert torch.equal(ours["rng"]["cpu"], theirs["rng"]["cpu"])
    assert rows_of(one) == rows_of(other)
    summaries = [plain(json.loads((folder / "summary.json").read_text())) for folder in (one, other)]
    assert summaries[0] == summaries[1]


@pytest.fixture
def counted(monkeypatch):
    """Count replayed views, batches of labels that were read, and decoded validation images."""
    counts = dict.fromkeys(("views", "labels", "validation"), 0)

    def count(target, name, what):
        function = getattr(target, name)

        def counting(*arguments, **more):
            counts[what] += 1
            return function(*arguments, **more)

        monkeypatch.setattr(target, name, counting)

    count(resident, "replay_view", "views")
    count(TarStore, "read", "labels")
    count(validation, "load_image", "validation")
    return counts


def test_each_student_equals_a_run_of_its_own(tiny, tmp_path, alone, counted):
    """Views are replayed once, labels read once and validation images decoded once for all students."""
    result = together(tiny, tmp_path / "run", "--dry-run")
    assert result.code == 0, result.err
    before = dict(counted)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["views.png"]
    result = together(tiny, tmp_path / "run")
    assert result.code == 0, result.err
    after = dict(counted)
    assert after["views"] == 3 * 12  # the dry run uses another function
    # the dry run reads all nine batches for its picture, beside those of preflight; training reads each once
    assert after["labels"] - 2 * before["labels"] <= 0
    assert after["validation"] - 2 * before["validation"] == 6
    for name in STUDENTS:
        assert_equal_runs(tmp_path / "run" / name, alone(name))
        summary = json.loads((tmp_path / "run" / name / "summary.json").read_text())
        assert (summary["args"]["side_by_side"], summary["args"]["seed"]) == (4, int(name[-1]))
        log = (tmp_path / "run" / name / "train.log").read_text()
        assert [other for other in STUDENTS if f"{other}  epoch" in log] == [name]
    assert len({tuple(row["train_loss"] for row in rows_of(alone(name))) for name in STUDENTS}) == len(STUDENTS)


def test_one_seed_needs_no_folder_of_its_own(tiny, tmp_path):
    """One --seeds equals --seed: the folder itself is used, and lines have no name before them."""
    result = together(tiny, tmp_path / "run", models=["plain"], seeds=[1], epochs=1)
    assert result.code == 0, result.err
    assert read_run(tmp_path / "run").summary["args"]["model"] == "plain"
    assert "\nepoch   1/1" in result.out
    flags = tiny.flags(None, output_dir=None, model=None)
    for words, folder in (([], "./save/resnet18-2"), (["--model", "a", "b"], "./save/a+b-2")):
        assert FKDConfig.parse([*flags, *words]).output_dir.startswith(folder)


def test_a_live_teacher_answers_once(tiny, tmp_path, monkeypatch):
    """The teacher computes logits once for all students, which equal runs of their own."""
    teacher = {"teacher_model": LIGHT, "teacher_checkpoint": save_teacher(tmp_path / "teacher.pth", seed=5)}
    flags = {"script": train_KD_parallel, "fkd_path": None, "epochs": 2, **teacher}
    answers, answer = [], Ensemble.__call__
    monkeypatch.setattr(Ensemble, "__call__", lambda self, images: answers.append(len(images)) or answer(self, images))
    counts = []
    for output, seeds in ((tmp_path / "run", (0, 1)), (tmp_path / "alone", (1,))):
        result = together(tiny, output, models=["dropping"], seeds=seeds, **flags)
        assert result.code == 0, result.err
        counts.append(len(answers))
    assert counts[1] == 2 * counts[0]
    assert_equal_runs(tmp_path / "run" / "dropping-seed1", tmp_path / "alone")


def stop(tiny, output, number, step, *words):
    """Train side by side until a signal comes in the middle of a step; steps are counted over all students."""
    with pytest.MonkeyPatch.context() as patch:
        signal_in_step(patch, number, step)
        return together(tiny, output, *words)


def test_all_are_stopped_and_resumed_together(tiny, tmp_path, alone):
    """All stop after the same batch: with four students, step 18 is in the second batch of the second epoch."""
    result = stop(tiny, tmp_path / "run", signal.SIGTERM, 18)
    assert result.code == 143
    assert result.err.startswith("stopped: SIGTERM in epoch 2 after 2 batches")
    assert not list((tmp_path / "run").glob("*/.lock"))
    refused = together(tiny, tmp_path / "run")
    assert refused.code == 2
    assert "plain-seed0 holds a run already" in refused.err
    result = together(tiny, tmp_path / "run", "--resume")
    assert result.code == 0, result.err
    for name in STUDENTS:
        assert_equal_runs(tmp_path / "run" / name, alone(name))


@pytest.mark.parametrize("loader", ["resident", "workers"])
def test_students_behind_catch_up(loader, tiny, tmp_path, alone):
    """One is at (0, 2), one at (1, 2), one has finished and one has no checkpoint, as after a kill."""
    output, words = tmp_path / "run", ["--loader", loader]
    assert stop(tiny, output, signal.SIGINT, 5, *words).code == 130
    shutil.copytree(output / STUDENTS[0], tmp_path / "early")
    assert stop(tiny, output, signal.SIGINT, 12, "--resume", *words).code == 130  # two batches later each
    shutil.rmtree(output / STUDENTS[0])
    shutil.move(tmp_path / "early", output / STUDENTS[0])
    shutil.rmtree(output / STUDENTS[2])
    shutil.rmtree(output / STUDENTS[3])
    shutil.copytree(alone(STUDENTS[2]), output / STUDENTS[2])
    result = together(tiny, output, "--resume", *words)
    assert result.code == 0, result.err
    assert "after 0 epochs and 2 batches" in result.out
    assert "after 1 epochs and 2 batches" in result.out
    assert "after 3 epochs and 0 batches" in result.out
    for name in STUDENTS:
        assert_equal_runs(output / name, alone(name))


def test_one_that_diverges_leaves_the_others_alone(tiny, tmp_path, alone):
    """It is named at once and at the end; the exit code is 2; its weights are never saved."""
    output = tmp_path / "run"
    result = together(tiny, output, models=["diverging", *NAMES], seeds=[0])
    assert result.code == 2
    assert result.err.startswith("error: 1 of 3 students failed (diverging-seed0: the loss is not finite after batch 0")
    assert len(result.err.splitlines()) == 1
    assert "diverging-seed0  FAILED: the loss is not finite" in result.out
    assert not (output / "diverging-seed0" / "checkpoint.pth.tar").exists()
    assert not (output / "diverging-seed0" / "summary.json").exists()
    for name in NAMES:
        assert_equal_runs(output / f"{name}-seed0", alone(f"{name}-seed0"))


def test_the_run_ends_if_all_diverge(tiny, tmp_path):
    """No student is left to train."""
    result = together(tiny, tmp_path / "run", models=["diverging"])
    assert result.code == 2
    assert "2 of 2 students failed" in result.err
    assert "epoch   2/3" not in result.out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--seeds", 0, 1, 0], ["--seed names 0 twice"]),
        (["--model", "plain", "plain"], ["--model names plain twice"]),
        (["--resume", "some.pth.tar"], ["--resume some.pth.tar is one student's checkpoint", "--resume alone"]),
        (["--resume"], ["--resume: no student in", "has a checkpoint"]),
        (["--seeds", 0, -1], ["--seed"]),
    ],
)
def test_contradicting_flags_are_refused(words, told, tiny, tmp_path):
    result = together(tiny, tmp_path / "run", *words)
    assert result.code == 2
    assert len(result.err.splitlines()) == 1
    for text in told:
        assert text in result.err
    assert not (tmp_path / "run").exists()


def test_several_processes_are_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.system.distributed.start", lambda _device: World(0, 2))  # a second process is not needed
    result = together(tiny, tmp_path / "run")
    assert result.code == 2
    assert "several --seeds or --model train side by side in one process, not in 2" in result.err


def test_a_folder_in_use_stops_all_before_training(tiny, tmp_path):
    """The locks of the free folders are released."""
    folder = tmp_path / "run" / STUDENTS[3]
    folder.mkdir(parents=True)
    command = [sys.executable, "-c", HOLD, str(folder)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert holder.stdout.readline() == "locked\n"
        result = together(tiny, tmp_path / "run")
    finally:
        holder.communicate("")
    assert result.code == 2
    assert f"{STUDENTS[3]} is in use by process {holder.pid}" in result.err
    assert not list((tmp_path / "run").glob("*/.lock"))
    again = together(tiny, tmp_path / "run", "--overwrite", epochs=1)
    assert again.code == 0, again.err


def test_every_student_has_a_wandb_run_of_its_own(tiny, tmp_path, monkeypatch):
    """The runs exist at once in one process; an old package that cannot do this is refused in one sentence."""
    logged = {}

    class Run:
        def __init__(self, name, reinit, **_):
            assert reinit == "create_new"
            self.id, self.rows = name, logged.setdefault(name, [])

        def log(self, values, step):
            if "train/loss" in values:
                self.rows.append((step, values["train/loss"]))

        def finish(self):
            self.rows.append("finished")

        config, summary = SimpleNamespace(update=lambda *_, **__: None), {}

    class Settings:
        model_fields = {"reinit": "Literal['create_new']"}  # noqa: RUF012

        def __init__(self, **_):
            pass

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=Run, Settings=Settings, Image=str))
    result = together(tiny, tmp_path / "run", "--wandb-project", "p", "--wandb-mode", "offline", models=["plain"])
    assert result.code == 0, result.err
    for name in STUDENTS[:2]:
        losses = [row["train_loss"] for row in read_run(tmp_path / "run" / name).rows]
        assert [step for step, _ in logged[name][:-1]] == [0, 1, 2]
        assert [loss for _, loss in logged[name][:-1]] == pytest.approx(losses, rel=1e-6)
        assert logged[name][-1] == "finished"
    Settings.model_fields = {}
    with pytest.raises(InputError, match="newer wandb"):
        start_tracker("p", "offline", None, tmp_path, {}, RunMetadata("a", "b", "train", several=True))


def test_a_random_stream_goes_on_where_it_was_left():
    """Draws by others in between do not matter."""
    torch.manual_seed(3)
    expected = torch.rand(6)
    torch.manual_seed(3)
    stream, drawn = RandomStream(CPU), []
    for _ in range(3):
        torch.rand(5)
        with stream:
            drawn.append(torch.rand(2))
    assert torch.equal(torch.cat(drawn), expected)
    assert not stream.draws_on_device


class FakeStream:
    """Stands in for a CUDA stream and records its calls."""

    notes: list = []  # noqa: RUF012

    def __init__(self, _device=None):
        self.name = f"s{len([note for note in self.notes if note[0] == 'made'])}"
        self.notes.append(("made", self.name))

    def wait_stream(self, other):
        self.notes.append(("waits", self.name, other.name))

    def record_event(self):
        return SimpleNamespace(synchronize=lambda: self.notes.append(("host waits", self.name)))


@pytest.fixture
def fake_streams(monkeypatch):
    """Replace CUDA streams by fakes; return the list of who waits for whom, in order."""
    notes, main = [], SimpleNamespace(name="main")
    main.wait_stream = lambda other: notes.append(("waits", "main", other.name))
    monkeypatch.setattr(FakeStream, "notes", notes)
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: main)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: notes.append(("host waits", "device")))
    return notes


class Draws(contextlib.nullcontext):
    """Stands in for a `RandomStream`."""

    def __init__(self, draws_on_device):
        super().__init__()
        self.draws_on_device = draws_on_device


def stepping(notes, name, draws=False):
    """Return a student on a device that only records its steps."""
    model, precision = torch.nn.Linear(1, 1), SimpleNamespace(device=torch.device("cuda"))
    note = lambda _step, _student, batch: notes.append(("step", name, batch.number))  # noqa: E731
    sums = SimpleNamespace(end_batch=lambda: None)
    begin = lambda _epoch: None  # noqa: E731
    return BareStudent(model, None, None, precision, graph=note, random=Draws(draws), sums=sums, start_epoch=begin)


@pytest.fixture
def made_streams(monkeypatch):
    """Return the list of the `Streams` that training makes."""
    made = []
    monkeypatch.setattr(
        train_FKD_parallel, "Streams", lambda *how, **more: made.append(Streams(*how, **more)) or made[-1]
    )
    return made


def numbered(count):
    """Yield numbered batches that are ready."""
    for number in range(count):
        batch = SimpleNamespace(number=number, whole=1)
        batch.ready = lambda batch=batch: batch
        yield batch


def test_streams_wait_for_batches_and_hold_them(fake_streams, made_streams):
    """A step waits for its batch, the host is at most MAX_BATCHES_IN_FLIGHT ahead, and at the end all are joined."""
    train_epoch([stepping(fake_streams, name) for name in "ab"], numbered(MAX_BATCHES_IN_FLIGHT + 2))
    steps = [i for i, note in enumerate(fake_streams) if note[0] == "step"]
    assert [fake_streams[i] for i in steps] == [("step", n, i) for i in range(MAX_BATCHES_IN_FLIGHT + 2) for n in "ab"]
    assert [fake_streams[i - 1] for i in steps] == [("waits", f"s{k % 2}", "main") for k in range(len(steps))]
    last = fake_streams.index(("step", "b", MAX_BATCHES_IN_FLIGHT))
    assert fake_streams[last + 1 : last + 3] == [("host waits", "s0"), ("host waits", "s1")]
    assert ("host waits", "s0") not in fake_streams[:last]
    assert fake_streams[-3:] == [("waits", "main", "s0"), ("waits", "main", "s1"), ("host waits", "device")]
    assert not made_streams[0].in_flight


def test_the_seconds_of_training_include_what_the_device_has_queued(fake_streams, monkeypatch):
    """The clock is read before the first step, and then only after the host has waited for the device."""
    clock = SimpleNamespace(time=lambda: fake_streams.append(("clock",)) or 0.0)
    monkeypatch.setattr(train_FKD_parallel, "time", clock)
    train_epoch([stepping(fake_streams, "a")], numbered(3))
    steps = [("step", "a", number) for number in range(3)]
    assert fake_streams[:6] == [("clock",), *steps, ("host waits", "device"), ("clock",)]


def test_recorded_steps_that_draw_take_turns(fake_streams):
    """From the first student that draws on the device, all use the current stream, which waits for the others."""
    train_epoch([stepping(fake_streams, name, draws=name == "b") for name in "abc"], numbered(2))
    drawn = fake_streams.index(("step", "b", 0))
    assert fake_streams[drawn + 1 : drawn + 4] == [("waits", "main", "s0"), ("waits", "main", "s1"), ("step", "c", 0)]
    assert [note for note in fake_streams[drawn + 3 :] if note[0] == "step"] == [
        ("step", "c", 0),
        *[("step", name, 1) for name in "abc"],
    ]
    assert not [note for note in fake_streams[drawn + 4 :] if note[:2] in (("waits", "s0"), ("waits", "s2"))]


def test_a_batch_of_the_device_is_made_once(monkeypatch):
    """`ready` replays the views; the batch that students get replays nothing."""
    replayed = []

    class Gallery:
        targets = torch.arange(9)

        def replay(self, geometry, mixing, _parameters):
            replayed.append(True)
            return torch.zeros(len(geometry), 3, 4, 4)

    batch = DeviceBatch(Gallery(), torch.tensor([[4] * 7, [2] * 7]), torch.zeros(5), torch.zeros(2, 9)).ready()
    assert type(batch) is Batch
    assert len(replayed) == 1
    assert batch.targets.tolist() == [4, 2]
    assert batch.ready() is batch
    assert batch.soft_labels.shape == (2, 9)


def cuda_losses(names, device, epochs=3):
    """Train students side by side on the device with captured steps; return their losses."""
    generator, students = torch.Generator().manual_seed(1), []
    batches = []
    for rows in (8, 8, 8, 8, 3):
        images, logits = torch.randn(rows, 3, 32, 32, generator=generator), torch.randn(rows, 6, generator=generator)
        batches.append(Batch(images.to(device), logits.to(device), torch.arange(rows, device=device) % 6))
    for name in names:
        model, seed = name.split("-seed")
        precision, model = Precision("fp32", device), small_student(model, 6, int(seed)).to(device)
        optimizer = build_optimizer(model, False, 0.01, 0.01)
        students.append(
            BareStudent(model, optimizer, build_loss("kl", 2.0), precision, graph=cuda_graph.CapturedStep())
        )
    losses = {name: [] for name in names}
    for _ in range(epochs):
        fresh = (Batch(b.images.clone(), b.soft_labels.clone(), b.targets.clone()) for b in batches)
        train_epoch(students, fresh)
        for name, student in zip(names, students, strict=True):
            losses[name].append(student.sums.result().loss)
    assert all(student.graph.launch is not None for student in students)
    return losses


@pytest.mark.gpu
@pytest.mark.parametrize("names", [["plain-seed0", "plain-seed1", "plain-seed2"], STUDENTS])
def test_streams_on_cuda(names, made_streams):
    """Captured steps side by side give the losses of single runs, also with dropout."""
    device = torch.device("cuda")
    losses = cuda_losses(names, device)
    assert made_streams[-1].concurrent == (names is not STUDENTS)
    for name in names:
        expected = cuda_losses([name], device)
        assert losses[name] == pytest.approx(expected[name], rel=1e-3)


@pytest.mark.gpu
def test_side_by_side_on_cuda(tiny, tmp_path):
    """The views are replayed on the device once for all students."""
    flags = {"device": "cuda", "precision": "fp32"}
    assert together(tiny, tmp_path / "run", **flags).code == 0
    for name in STUDENTS:
        model, seed = name.split("-seed")
        one = tiny.train_run(tmp_path / name, model=model, seed=seed, **flags)
        other = read_run(Path(tmp_path / "run" / name))
        for ours, theirs in zip(other.rows, one.rows, strict=True):
            assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-2)
