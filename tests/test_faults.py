"""Faults besides wrong flags are explained: full disks, divergence, another class order, too few file descriptors."""

import errno
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers import LIGHT, SIDE, make_images, make_labels, read_run, run, save_teacher, signal_in_step
from PIL import Image
from safetensors.torch import save_file
from small_network import BareStudent
from torch.utils.data import DataLoader

import train_FKD_parallel
import train_KD_parallel
from utils.config import Findings
from utils.data.folders import open_folder
from utils.data.workers import guarded, start_worker
from utils.labels import agreement
from utils.labels.formats import open_labels
from utils.labels.packed import PackedWriter
from utils.labels.packed_codec import Codec
from utils.labels.packed_manifest import digest_of_names, make_manifest
from utils.run import preflight
from utils.run.folder import RUN_FILES
from utils.system.errors import InputError
from utils.system.files import atomic_file, write_text
from utils.system.process import run_script, take_key
from utils.training.models import build_model


@pytest.fixture
def small_disk(tmp_path):
    """Mount a file system of 24 MB, or skip the test if mounting is not allowed."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting is not allowed")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_keeps_the_checkpoint(small_disk, tiny, tmp_path):
    """The error is one line; the previous checkpoint loads, and the run resumes from it."""
    output = small_disk / "run"
    with pytest.MonkeyPatch.context() as patch:
        signal_in_step(patch, signal.SIGTERM, 4)
        assert run(train_FKD_parallel, *tiny.flags(output)).code == 143
    before = (output / "checkpoint.pth.tar").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        signal_in_step(patch, signal.SIGTERM, 1)
        fill(small_disk, leave=10**6)
        usage = shutil.disk_usage(small_disk)._replace(free=10**12)
        patch.setattr(shutil, "disk_usage", lambda _: usage)  # the disk fills up after preflight
        full = run(train_FKD_parallel, *tiny.flags(output, resume=True))
    assert full.code == 2
    assert len(full.err.splitlines()) == 1, full.err
    assert "checkpoint.pth.tar cannot be written (the disk is full" in full.err
    assert (output / "checkpoint.pth.tar").read_bytes() == before
    assert not list(output.glob(".*"))
    (small_disk / "filler").unlink()
    tiny.train_run(output, resume=True)


def fill(place, leave):
    """Fill the disk up to the last `leave` bytes."""
    with open(place / "filler", "wb") as file:
        file.write(bytes(max(0, shutil.disk_usage(place).free - leave)))


def test_a_failed_write_leaves_the_old_file(small_disk):
    """The old file survives a failed write of text, torch.save and safetensors."""
    write_text(small_disk / "file", "old")
    big = {"a": torch.rand(8 * 10**6)}
    for write in (torch.save, save_file, lambda _, path: path.write_bytes(bytes(30 * 10**6))):
        with (
            pytest.raises(InputError, match=r"file cannot be written \(the disk is full"),
            atomic_file(small_disk / "file") as temporary,
        ):
            write(big, temporary)
        assert (small_disk / "file").read_text() == "old"
        assert [path.name for path in small_disk.iterdir()] == ["file"]


def test_errors_of_another_kind_are_not_called_full_disks(tmp_path):
    """Other errors are raised unchanged."""
    with pytest.raises(RuntimeError, match="a bug"), atomic_file(tmp_path / "file"):
        raise RuntimeError("a bug")
    assert not list(tmp_path.iterdir())


def test_too_little_disk_is_noticed_before_training(tiny, tmp_path, monkeypatch):
    """Preflight names both figures."""
    usage = shutil.disk_usage(tmp_path)._replace(free=10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)  # a full disk
    result = run(train_FKD_parallel, *tiny.flags(tmp_path / "deep" / "run"))
    assert result.code == 2
    assert "1 MB of disk are free, and checkpoints need " in result.err
    assert not (tmp_path / "deep").exists()


def test_small_sizes_are_not_rounded_to_zero(tmp_path, monkeypatch):
    """Both figures stay readable if they are small."""
    usage = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)  # a full disk
    with pytest.raises(InputError, match=r"labels: 0 B of disk are free, and the labels need 12\.3 kB; free some"):
        preflight.check_disk(tmp_path / "labels", 12_345, "the labels need")


@pytest.mark.parametrize("batch", [0, 4])
def test_divergence_is_explained(batch, tiny, tmp_path, monkeypatch):
    """One line names epoch, batch, label file and likely cause; the last good checkpoint is kept."""
    labels = make_labels(tmp_path / "labels", dtype=torch.float32)
    epoch, number = divmod(batch, 3)
    path = labels / f"epoch_{epoch}" / f"batch_{number}.tar"
    items = torch.load(path, weights_only=False)
    items[5] = items[5] * 1e38
    torch.save(items, path)
    monkeypatch.setattr("utils.run.student.CHECKPOINT_SECONDS", -1)
    result = run(train_FKD_parallel, *tiny.flags(tmp_path / "run", fkd_path=labels, loss_type="mse_gt"))
    assert result.code == 2
    assert len(result.err.splitlines()) == 1
    for words in (f"batch {number} of epoch {epoch}", str(path), "extreme values" if batch == 0 else "--adamw-lr"):
        assert words in result.err
    checkpoint = tmp_path / "run" / "checkpoint.pth.tar"
    assert checkpoint.exists() == (epoch == 1)
    if epoch == 1:
        state = torch.load(checkpoint, weights_only=True)
        assert state["epoch"] == 1
        assert all(value.isfinite().all() for value in state["state_dict"].values())


def test_images_that_are_gone_after_training_lose_no_result(tiny, tmp_path, monkeypatch):
    """summary.json is written with their number and size, which were noted before training."""
    for part in ("train", "val"):
        shutil.copytree(getattr(tiny, part), tmp_path / part)
    size = sum(path.stat().st_size for path in (tmp_path / "val").rglob("*.png"))

    def train_then_remove(*args, train=train_FKD_parallel.train):
        train(*args)
        for part in ("train", "val"):
            shutil.rmtree(tmp_path / part)

    monkeypatch.setattr(train_FKD_parallel, "train", train_then_remove)
    run_there = tiny.train_run(tmp_path / "run", train_dir=tmp_path / "train", val_dir=tmp_path / "val")
    assert not (tmp_path / "val").exists()
    assert (run_there.summary["validation"]["number"], run_there.summary["validation"]["bytes"]) == (6, size)


def test_weights_that_overflow_in_the_last_step_are_not_saved(tiny, tmp_path):
    """The loss of every batch is finite, but the weights are not."""
    result = run(
        train_FKD_parallel, *tiny.flags(tmp_path / "run", sgd=True, learning_rate=3e38, epochs=1, batch_size=5)
    )
    assert result.code == 2
    assert "-lr/--learning-rate" in result.err
    assert not (tmp_path / "run" / "checkpoint.pth.tar").exists()


def answered(tiny, folder, order):
    """Write labels of a teacher that is right about class folders in `order`."""
    labels = shutil.copytree(tiny.labels, folder)
    targets = torch.tensor(open_folder(tiny.train, "--train-dir").targets)
    for path in labels.glob("*/*.tar"):
        items = torch.load(path, weights_only=False)
        items[5] = torch.nn.functional.one_hot(torch.tensor(order)[targets[items[6]]], 3).half() * 9
        items[2] = torch.arange(len(items[6]))  # mixed with itself, so that chance is one in three
        torch.save(items, path)
    return labels


def test_the_right_class_order_is_not_warned_about(tiny, tmp_path):
    """All labels agree with the folders' classes."""
    labels = answered(tiny, tmp_path / "labels", [0, 1, 2])
    result = run(train_FKD_parallel, *tiny.flags(tmp_path / "run", fkd_path=labels, dry_run=True))
    assert result.code == 0
    assert "WARNING" not in result.out
    assert "teacher agrees with the folders on 100.0%" in result.out


def test_shuffled_class_folders_are_refused(tiny, tmp_path):
    """The error names the classes before training; --class-order corrects them, --accept-labels marks the run."""
    labels = answered(tiny, tmp_path / "labels", [1, 2, 0])
    flags = tiny.flags(tmp_path / "run", fkd_path=labels, epochs=1)
    result = run(train_FKD_parallel, *flags)
    assert result.code == 2
    assert "teacher agrees with the folders on 0.0%" in result.out
    assert (
        "the images of 3 classes are answered as one another's (class_0 as class_1, class_1 as class_2, " in result.err
    )
    assert not (tmp_path / "run").exists()
    order = tmp_path / "order.txt"
    order.write_text("class_2\nclass_0\nclass_1\n")
    result = run(train_FKD_parallel, *flags, "--class-order", order)
    assert result.code == 0, result.err
    assert "teacher agrees with the folders on 100.0%" in result.out
    assert read_run(tmp_path / "run").summary["args"]["labels_accepted"] is None
    result = run(train_FKD_parallel, *flags, "--overwrite", "--accept-labels")
    assert result.code == 0, result.err
    assert "WARNING, accepted: labels and class folders do not belong together" in result.out
    assert "the images of 3 classes" in read_run(tmp_path / "run").summary["args"]["labels_accepted"]


@pytest.mark.parametrize("names", [["class_0", "class_1", "class_2"], ["class_2", "class_1", "class_0"]])
def test_packed_labels_know_their_class_folders(names, tiny, tmp_path):
    """Folders of other names or in another order are refused until the order is stated."""
    store = open_labels(tiny.labels)
    settings = {"class_names": digest_of_names(names)}
    shape = store.num_images, store.num_classes, store.batch_size, store.epochs, store.mix_type, True
    writer = PackedWriter(tmp_path / "labels", make_manifest(Codec(), *shape, settings))
    for epoch in range(store.epochs):
        writer.write(epoch, [store.read(epoch, batch) for batch in range(store.batches_per_epoch)])
    flags = tiny.flags(tmp_path / "run", fkd_path=tmp_path / "labels", dry_run=True)
    result = run(train_FKD_parallel, *flags)
    assert result.code == (2 if names[0] == "class_2" else 0), result.err
    assert ("made for class folders with other names" in result.err) == (names[0] == "class_2")
    (tmp_path / "order.txt").write_text("\n".join(names))
    assert run(train_FKD_parallel, *flags, "--class-order", tmp_path / "order.txt").code == 0


def test_views_of_a_live_teacher(tiny, tmp_path):
    """A dry run of naive KD draws the same picture, with labels that the teacher computes on the fly."""
    teacher = {"teacher_model": LIGHT, "teacher_checkpoint": save_teacher(tmp_path / "teacher.pth")}
    flags = tiny.flags(tmp_path / "run", fkd_path=None, dry_run=True, mix_type="mixup", **teacher)
    result = run(train_KD_parallel, *flags)
    assert result.code == 0, result.err
    assert Image.open(tmp_path / "run" / "views.png").width > 1000
    assert "teacher agrees with the folders" in result.out


def test_checks_of_a_full_label_set_are_fast(tmp_path):
    """For 300 epochs of 200 batch files, preflight lists each epoch once and reads a few files."""
    small = make_labels(tmp_path / "small", epochs=1, batch_size=2, images=400)
    labels = tmp_path / "labels"
    shutil.copytree(small / "epoch_0", labels / "epoch_0")
    for epoch in range(1, 300):
        os.mkdir(labels / f"epoch_{epoch}")
        for batch in range(200):
            os.close(os.open(labels / f"epoch_{epoch}" / f"batch_{batch}.tar", os.O_CREAT))
    started = time.perf_counter()
    store = open_labels(labels)
    store.check_complete(range(300))
    agreement.sample_labels(store, range(1), 3)
    assert time.perf_counter() - started < 2
    (labels / "epoch_299" / "batch_77.tar").unlink()
    with pytest.raises(InputError, match=r"epoch_299/batch_77\.tar is missing"):
        store.check_complete(range(300))


def test_a_micro_batch_of_one_is_noticed(tiny, tmp_path):
    """BatchNorm cannot train on one value per channel; preflight says so, whichever batch it is."""
    train = make_images(tmp_path / "train", per_class=2, classes=3)
    labels = make_labels(tmp_path / "labels", images=6)
    result = run(train_FKD_parallel, *tiny.flags(tmp_path / "run", train_dir=train, fkd_path=labels))
    assert result.code == 2
    assert f"micro-batch of 1 at --input-size {SIDE}" in result.err
    assert not (tmp_path / "run").exists()


def test_preflight_changes_nothing(tiny):
    """Neither the random state nor the student changes."""
    model = build_model("mobilenet_v2", 3)  # has dropout
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    found = Findings(input_size=SIDE)
    preflight.check_forward(BareStudent(model, None, None, config=None, found=found), rows=2, num_classes=3)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_other_images_and_labels_are_refused_on_resume(tiny, tmp_path):
    """The flags are the same, but the images or the labels in the folder have changed."""
    train, labels = shutil.copytree(tiny.train, tmp_path / "train"), shutil.copytree(tiny.labels, tmp_path / "labels")
    flags = {"train_dir": train, "fkd_path": labels}
    tiny.train_run(tmp_path / "run", epochs=1, **flags)
    resumed = tiny.flags(tmp_path / "run", epochs=1, resume=True, **flags)
    kept = (labels / "epoch_0" / "batch_1.tar").read_bytes()  # not the first file
    shutil.copy(labels / "epoch_1" / "batch_1.tar", labels / "epoch_0" / "batch_1.tar")
    result = run(train_FKD_parallel, *resumed)
    assert result.code == 2
    assert "digest of the labels was" in result.err
    (labels / "epoch_0" / "batch_1.tar").write_bytes(kept)
    os.rename(train / "class_0" / "0.png", train / "class_0" / "00.png")  # the same image
    assert run(train_FKD_parallel, *resumed).code == 0
    shutil.copy(train / "class_0" / "1.png", train / "class_0" / "00.png")
    result = run(train_FKD_parallel, *resumed)
    assert result.code == 2
    assert "have changed since the run began: 1 of the run's 12 images are not in it (image 0)" in result.err


@pytest.mark.parametrize("words", [["--wandb-api-key", "K"], ["--wandb-api-key=K"]])
def test_a_key_is_taken_off_the_command_line(words):
    """Both spellings of the flag are handled."""
    assert take_key(["-u", "script.py", *words, "--epochs", "3"]) == ("K", ["-u", "script.py", "--epochs", "3"])
    assert take_key(["script.py", "--epochs", "3"]) == (None, ["script.py", "--epochs", "3"])


def test_a_key_after_a_mistyped_flag_is_not_printed(tiny, tmp_path):
    """The error names only the flag."""
    result = run(train_FKD_parallel, *tiny.flags(tmp_path / "run"), "--wandb-api-kye", "5ec2e7" * 7)
    assert "--wandb-api-kye" in result.err
    assert "5ec2e7" not in result.err


def test_a_dry_run_writes_one_picture(tiny, tmp_path):
    """Nothing else is written."""
    assert run(train_FKD_parallel, *tiny.flags(tmp_path / "run", dry_run=True)).code == 0
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["views.png"]
    assert "views.png" not in RUN_FILES


@pytest.mark.parametrize("place", ["train_FKD_parallel.train_step", "copy.deepcopy"])
def test_a_gpu_out_of_memory_is_explained(place, tiny, tmp_path, monkeypatch):
    """One sentence gives PyTorch's figure and the remedies; `scripts/runs.py` searches for its words."""

    def fill(*_, **__):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity")

    monkeypatch.setattr(place, fill)
    done = run(train_FKD_parallel, *tiny.flags(tmp_path / "run"))
    assert done.code == 2
    assert done.err.startswith("error: the GPU is out of memory (2.50 GiB more were needed); ")
    assert "--loader workers" in done.err
    assert len(done.err.splitlines()) == 1
    assert not (tmp_path / "run" / ".lock").exists()


@pytest.mark.parametrize(("limit", "workers"), [(28, 2), (34, 2), (20, 0)])
def test_few_file_descriptors_are_explained(limit, workers, tiny, tmp_path):
    """The run succeeds, or one sentence names the limit; it never hangs and prints no traceback."""
    loader = "workers" if workers else "resident"
    flags = tiny.flags(tmp_path / "run", loader=loader, workers=workers, epochs=1)
    done = subprocess.run(
        [sys.executable, train_FKD_parallel.__file__, *flags],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)),
        **{"capture_output": True, "text": True, "timeout": 100},
    )
    if limit == 28 or done.returncode:
        assert done.returncode == 2, done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert "ulimit -n" in done.stderr
        assert "-j/--workers" in done.stderr


@pytest.mark.parametrize(
    ("error", "words"),
    [(OSError(errno.EMFILE, "Too many open files"), "ulimit -n"), (RuntimeError("no space"), "/dev/shm")],
)
def test_a_worker_that_cannot_send_ends(error, words):
    """The queue's thread drops items that it cannot send; the parent would hang, so the worker ends with a reason."""

    class Unsendable:
        def __reduce__(self):
            raise error

    loader = DataLoader([0] * 8, collate_fn=lambda _: Unsendable(), num_workers=2, worker_init_fn=start_worker)
    started = time.monotonic()
    with pytest.raises(InputError, match=words):
        list(guarded(loader))
    assert time.monotonic() - started < 20


def test_the_cause_of_few_descriptors_is_named(tiny, tmp_path, monkeypatch):
    """The error does not ask to replace an image that could not be opened for lack of descriptors."""
    message = f"a.png cannot be decoded ([Errno 24] {os.strerror(errno.EMFILE)}); replace the image"
    monkeypatch.setattr("utils.run.preflight.check_images", lambda _: (_ for _ in ()).throw(InputError(message)))
    result = run(train_FKD_parallel, *tiny.flags(tmp_path / "run"))
    assert result.code == 2
    assert result.err.startswith("error: this process and its workers may open too few files at once (ulimit -n)")


def test_workers_end_with_the_script(capsys):
    """Workers end although their loader is still referenced; otherwise Python waits for them for 30 s."""
    loader = DataLoader(torch.arange(8), num_workers=2, worker_init_fn=start_worker)
    kept = []

    def main(_argv):
        kept.append(iter(loader))
        next(kept[0])
        assert len(multiprocessing.active_children()) == 2
        raise InputError("--flag is wrong")

    assert run_script(main, []) == 2
    assert not multiprocessing.active_children()
    assert capsys.readouterr().err == "error: --flag is wrong\n"
