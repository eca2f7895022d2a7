"""Weights & Biases: the mode follows the flags, it never asks for input, and the key ends up in no file."""

import http.server
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from helpers import ROOT, read_run, run

import train_FKD_parallel
from utils.run.student import Student
from utils.run.wandb_log import REACH_SECONDS, NoTracker, RunMetadata, reachable, start_tracker, wandb_mode
from utils.system.errors import InputError

PLACE = RunMetadata("run", "group", "train")
KEY = "5ec2e7" + "0123456789abcdef" * 2 + "f0"  # 40 hexadecimal digits, as W&B's are


@pytest.mark.parametrize(
    ("project", "mode", "key", "resolved"),
    [
        (None, "auto", None, "disabled"),
        (None, "auto", KEY, "disabled"),
        ("p", "auto", None, "offline"),
        ("p", "auto", KEY, "online"),
        ("p", "online", None, "online"),
        ("p", "offline", KEY, "offline"),
        ("p", "disabled", KEY, "disabled"),
        (None, "disabled", None, "disabled"),
    ],
)
def test_the_mode_follows_flags_and_key(project, mode, key, resolved):
    """auto needs a project, and a key to be online."""
    assert wandb_mode(project, mode, key) == resolved


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_mode_needs_a_project(mode):
    """Without a project the run has no destination."""
    with pytest.raises(InputError, match=f"--wandb-mode {mode} .*--wandb-project"):
        wandb_mode(None, mode, KEY)


def test_offline_is_announced_in_one_line(program_log):
    """The line appears only if a key was looked for and not found."""
    wandb_mode("p", "offline", None)
    assert not program_log.records
    wandb_mode("p", "auto", None)
    assert [record.message.count("\n") for record in program_log.records] == [0]
    assert "offline" in program_log.text


def test_a_key_in_the_environment_or_in_netrc(monkeypatch, tmp_path):
    """auto is online with either; an entry for another host does not count."""
    netrc = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(netrc))
    netrc.write_text(f"machine example.org login user password {KEY}\n")
    assert wandb_mode("p", "auto", None) == "offline"
    netrc.write_text(f"machine api.wandb.ai login user password {KEY}\n")
    assert wandb_mode("p", "auto", None) == "online"
    netrc.write_text("not a netrc file")
    assert wandb_mode("p", "auto", None) == "offline"
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert wandb_mode("p", "auto", None) == "online"


def test_disabled_does_not_import_wandb(monkeypatch):
    """The package is needed only if W&B is used; then its absence gives one sentence."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert isinstance(start_tracker(None, "auto", None, ".", {}, PLACE), NoTracker)
    with pytest.raises(InputError, match="--wandb-project needs the wandb package"):
        start_tracker("p", "offline", None, ".", {}, PLACE)


def read_records(path):
    """Yield the records of a `.wandb` file, parsed by wandb's own protocol buffers.

    The file is a LevelDB log: seven bytes of its own, then blocks of 32 KiB with fragments of records, each after
    checksum (4 bytes), length (2) and kind (1: a whole record, 2: its first, 3: a middle, 4: its last part).
    """
    from wandb.proto import wandb_internal_pb2

    data, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if 2**15 - place % 2**15 < 7:  # no fragment starts so close to the end of a block
            place += 2**15 - place % 2**15
        length, kind = struct.unpack_from("<HB", data, place + 4)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def items_of(messages):
    """Return the items of history, summary or config records as one dict; values are JSON, keys may be nested."""
    items = {}
    for message in messages:
        for item in getattr(message, "update", None) or message.item:
            *way, last = item.nested_key or [item.key]
            place = items
            for key in way:
                place = place.setdefault(key, {})
            place[last] = json.loads(item.value_json)
    return items


@pytest.fixture(scope="module")
def offline(tiny, tmp_path_factory):
    """Make an offline run in a process, with its key on the command line, and an offline report on it."""
    pytest.importorskip("wandb")
    place = tmp_path_factory.mktemp("offline")
    shared = {"wandb_project": "p", "wandb_mode": "offline", "wandb_api_key": KEY}
    words = tiny.flags(place / "run", epochs=2, model="resnet18", **shared)
    words += ["--wandb-tags", "mine", "t" * 99]
    report = ["-m", "utils.report", "run", "--output", "report", "--wandb-project", "p", "--wandb-mode", "offline"]
    environment = os.environ | {"HOME": str(place / "home"), "PYTHONPATH": str(ROOT)}
    ends = [
        subprocess.run(
            [sys.executable, *command],
            **{"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": 240},
            **{"env": environment, "cwd": place},
        )
        for command in ([train_FKD_parallel.__file__, *words], [*report, "--wandb-group", "ours"])
    ]
    assert [end.returncode for end in ends] == [0, 0], [end.stderr for end in ends]
    return place, ends


def test_an_offline_run_writes_no_key_and_asks_nothing(offline):
    """The test searches every file of the run and the report for the key."""
    place, ends = offline
    files = [path for path in place.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
    assert all(KEY not in end.stdout + end.stderr for end in ends)


def test_the_log_of_a_run_is_read_back(offline):
    """Group, job type, tags, settings, metrics of every epoch, headline, labels and curves are there."""
    place, _ = offline
    (file,) = (place / "run").glob("wandb/offline-run-*/run-*.wandb")
    records, ours = list(read_records(file)), read_run(place / "run")
    run = next(record.run for record in records if record.HasField("run"))
    assert (run.project, run.display_name, run.job_type) == ("p", "run", "train")
    assert run.run_group == "resnet18, train, labels, kl, 2 epochs"
    assert list(run.tags) == ["mine", "t" * 64, "resnet18", "train", "labels", "kl"]
    configs = [run.config, *(record.config for record in records if record.HasField("config"))]
    config = items_of(configs)
    assert (config["model"], config["epochs"], config["seed"]) == ("resnet18", 2, 0)
    assert config["labels"] == ours.summary["labels"]
    assert config["images"]["digest"] == ours.summary["images"]["digest"]
    assert "wandb_api_key" not in config

    rows = [items_of([record.history]) for record in records if record.HasField("history")]
    epochs = [row for row in rows if "val/top1" in row]
    assert [row["val/top1"] for row in epochs] == pytest.approx([row["val_top1"] for row in ours.rows])
    assert [row["train/epoch"] for row in epochs] == [0, 1]
    figures = {k: v for row in rows for k, v in row.items()}
    figures |= items_of([record.summary for record in records if record.HasField("summary")])
    assert figures["top1"] == ours.summary["last"]["top1"]
    assert figures["best_top1"] == ours.summary["best"]["top1"]
    assert figures["curves"]["_type"] == "image-file"
    assert (file.parent / "files" / figures["curves"]["path"]).read_bytes() == (ours.path / "curves.png").read_bytes()


def test_the_log_of_a_report_is_read_back(offline):
    """Its tables and figures are there."""
    place, _ = offline
    (file,) = (place / "report").glob("wandb/offline-run-*/run-*.wandb")
    records = list(read_records(file))
    run = next(record.run for record in records if record.HasField("run"))
    assert (run.project, run.display_name, run.job_type, run.run_group) == ("p", "report", "report", "ours")
    logged = items_of([record.history for record in records if record.HasField("history")])
    table = json.loads((file.parent / "files" / logged["Top-1 by group"]["path"]).read_text())
    assert table["columns"][:4] == ["student", "labels", "images", "n"]
    assert [row[:4] for row in table["data"]] == [["resnet18", "soft labels", "train", "1"]]
    picture = file.parent / "files" / logged["top1"]["path"]
    assert picture.read_bytes() == (place / "report" / "top1.png").read_bytes()


def test_our_reader_agrees_with_that_of_wandb(offline):
    """Old versions of wandb have a reader in Python; in newer ones it is part of a binary."""
    datastore = pytest.importorskip("wandb.sdk.internal.datastore")
    for file in offline[0].glob("*/wandb/offline-run-*/run-*.wandb"):
        store = datastore.DataStore()
        store.open_for_scan(str(file))
        theirs = []
        while data := store.scan_data():
            theirs.append(data)
        assert len(theirs) == len(list(read_records(file))) > 5


def test_a_server_that_is_not_there_costs_little(tmp_path, monkeypatch, program_log):
    """If the server refuses or never answers, the run soon goes offline and says so; any answer is enough."""
    modes = []

    class Tracker:
        def __init__(self, project, mode, *rest):
            modes.append(mode)

    monkeypatch.setattr("utils.run.wandb_log.WandbTracker", Tracker)  # the real one needs a W&B server

    def start(url):
        monkeypatch.setenv("WANDB_BASE_URL", url)
        started = time.monotonic()
        start_tracker("p", "online", KEY, tmp_path, {}, PLACE)
        return time.monotonic() - started

    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert not reachable(url, seconds=0.1)
        assert start(url) < REACH_SECONDS + 1
    assert start(url) < REACH_SECONDS + 1  # the port is closed now
    assert modes == ["offline", "offline"]
    assert program_log.text.count("does not answer, so this run is logged offline") == 2

    handler = type("NotFound", (http.server.BaseHTTPRequestHandler,), {"log_message": lambda *_: None})
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as here:
        threading.Thread(target=here.serve_forever, daemon=True).start()
        start(f"http://127.0.0.1:{here.server_port}")
        here.shutdown()
    assert modes[2:] == ["online"]


@pytest.mark.parametrize("failing", ["log", "finish"])
def test_a_failure_in_mid_run_is_reported_once_and_the_run_goes_on(failing, tiny, tmp_path, monkeypatch):
    """A stand-in for the package raises errors that contain the key."""
    called = []

    class Run:
        id, summary, config = "abc", {}, SimpleNamespace(update=lambda facts, allow_val_change: None)

        def log(self, values, step):
            if "curves" in values:
                return
            called.append(("log", step))
            if failing == "log" and step == 1:
                raise ConnectionError(f"key {KEY} was refused")

        def finish(self):
            called.append(("finish", None))
            if failing == "finish":
                raise TimeoutError(KEY)

    monkeypatch.setattr("utils.run.wandb_log.reachable", lambda url: True)  # no test uses the network
    package = SimpleNamespace(init=lambda **_: Run(), Settings=lambda **_: None, Image=str)
    monkeypatch.setitem(sys.modules, "wandb", package)
    flags = tiny.flags(tmp_path / "run", wandb_project="p", wandb_mode="online", wandb_api_key=KEY)
    result = run(train_FKD_parallel, *flags)
    assert result.code == 0, result.err
    assert len(read_run(tmp_path / "run").rows) == 3
    log = (tmp_path / "run" / "train.log").read_text()
    assert log.count("W&B failed") == 1
    assert KEY not in log + result.out + result.err
    logged = [("log", step) for step in range(2 if failing == "log" else 3)]
    assert called == logged + ([] if failing == "log" else [("finish", None)])


def test_a_piece_without_wandb_keeps_the_id_of_the_pieces_before(tiny, tmp_path, monkeypatch):
    """A later piece can then continue the same W&B run."""
    ids = []

    class Run:
        id, summary, config = "abc", {}, SimpleNamespace(update=lambda facts, allow_val_change: None)

        def log(self, values, step):
            pass

        def finish(self):
            pass

    def init(**settings):
        ids.append(settings["id"])
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Settings=lambda **_: None, Image=str))
    wandb = {"wandb_project": "p", "wandb_mode": "offline"}
    finish_epoch = Student.finish_epoch

    def stop_after(last):
        def finish(student, *results):
            finish_epoch(student, *results)
            student.save()
            if student.progress.epoch > last:
                raise InputError("stopped here")

        monkeypatch.setattr(Student, "finish_epoch", finish)

    for last, more in enumerate((wandb, {"resume": True}, {"resume": True} | wandb)):
        stop_after(last)
        result = run(train_FKD_parallel, *tiny.flags(tmp_path / "run", **more))
        assert "stopped here" in result.err, result.err
        state = torch.load(tmp_path / "run" / "checkpoint.pth.tar", weights_only=True)
        assert (state["progress"]["epoch"], state["progress"]["wandb_id"]) == (last + 1, "abc")
    assert ids == [None, "abc"]
