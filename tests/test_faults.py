"""What can go wrong besides the input: full disks, divergence, labels of another class order, slow checks."""

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
from torch.utils.data import DataLoader

import train_FKD_parallel
import train_KD_parallel
from utils.labels import agreement
from utils.labels.opening import open_labels
from utils.labels.packed_codec import Codec
from utils.labels.packed_manifest import digest_of_names, make_manifest
from utils.labels.packed_writer import PackedWriter
from utils.run import preflight
from utils.run.folder import RUN_FILES
from utils.system.errors import InputError
from utils.system.files import atomic_file, write_text
from utils.system.script import run_script, take_key
from utils.training.models import build_model
from utils.views.folders import open_folder
from utils.views.workers import guarded, start_worker


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 24 MB, where mounting one is allowed."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting is not allowed")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk(small_disk, tiny, tmp_path):
    """One line; the previous checkpoint loads, and the run continues from it elsewhere."""
    output = small_disk / "run"
    with pytest.MonkeyPatch.context() as patch:
        signal_in_step(patch, signal.SIGTERM, 4)
        assert run(train_FKD_parallel, *tiny.flags(output)).code == 143
    before = (output / "checkpoint.pth.tar").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("utils.run.preflight.check_disk", lambda *_: None)  # the disk fills up after preflight
        signal_in_step(patch, signal.SIGTERM, 1)
        fill(small_disk, leave=10**6)
        full = run(train_FKD_parallel, *tiny.flags(output, resume=True))
    assert full.code == 2
    assert len(full.err.splitlines()) == 1, full.err
    assert "checkpoint.pth.tar cannot be written (the disk is full" in full.err
    assert (output / "checkpoint.pth.tar").read_bytes() == before
    assert not list(output.glob(".*"))
    (small_disk / "filler").unlink()
    tiny.train_run(output, resume=True)


def fill(place, leave):
    """Leave so many bytes free."""
    with open(place / "filler", "wb") as file:
        file.write(bytes(max(0, shutil.disk_usage(place).free - leave)))


def test_a_failed_write_leaves_the_old_file(small_disk):
    """Text, torch.save and safetensors."""
    from safetensors.torch import save_file

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
    """They pass through."""
    with pytest.raises(RuntimeError, match="a bug"), atomic_file(tmp_path / "file"):
        raise RuntimeError("a bug")
    assert not list(tmp_path.iterdir())


def test_too_little_disk_is_noticed_before_training(tiny, tmp_path, monkeypatch):
    """In preflight, with both figures."""
    usage = shutil.disk_usage(tmp_path)._replace(free=10**6)
    monkeypatch.setattr("utils.run.preflight.shutil.disk_usage", lambda _: usage)
    result = run(train_FKD_parallel, *tiny.flags(tmp_path / "deep" / "run"))
    assert result.code == 2
    assert "1 MB of disk are free, and checkpoints need " in result.err
    assert not (tmp_path / "deep").exists()


def test_little_disk_for_little(tmp_path, monkeypatch):
    """Neither figure is rounded to nothing."""
    usage = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr("utils.run.preflight.shutil.disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=r"labels: 0 B of disk are free, and the labels need 12\.3 kB; free some"):
        preflight.check_disk(tmp_path / "labels", 12_345, "the labels need")


@pytest.mark.parametrize("batch", [0, 4])
def test_divergence(batch, tiny, tmp_path, monkeypatch):
    """Epoch, batch, label file and likely cause in one line; the last good checkpoint is kept."""
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


def test_weights_that_overflow_in_the_last_step(tiny, tmp_path):
    """The loss of every batch is finite, the weights are not: nothing is saved."""
    result = run(
        train_FKD_parallel, *tiny.flags(tmp_path / "run", sgd=True, learning_rate=3e38, epochs=1, batch_size=5)
    )
    assert result.code == 2
    assert "-lr/--learning-rate" in result.err
    assert not (tmp_path / "run" / "checkpoint.pth.tar").exists()


def answered(tiny, folder, order):
    """Labels whose teacher is right about class folders in `order`."""
    labels = shutil.copytree(tiny.labels, folder)
    targets = torch.tensor(open_folder(tiny.train, "--train-dir").targets)
    for path in labels.glob("*/*.tar"):
        items = torch.load(path, weights_only=False)
        items[5] = torch.nn.functional.one_hot(torch.tensor(order)[targets[items[6]]], 3).half() * 9
        items[2] = torch.arange(len(items[6]))  # mixed with itself, so that chance is one in three
        torch.save(items, path)
    return labels


def test_the_right_class_order_is_not_warned_about(tiny, tmp_path):
    """All answers are the folders' classes."""
    labels = answered(tiny, tmp_path / "labels", [0, 1, 2])
    result = run(train_FKD_parallel, *tiny.flags(tmp_path / "run", fkd_path=labels, dry_run=True))
    assert result.code == 0
    assert "WARNING" not in result.out
    assert "teacher agrees with the folders on 100.0%" in result.out


def test_shuffled_class_folders_are_refused(tiny, tmp_path):
    """Before training, with the classes named; --class-order puts them right, --accept-labels goes on with a mark."""
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
    """Refused where the manifest was made for other folders or another order, until the order is stated."""
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
    """naive KD: the same picture, with answers that exist nowhere yet."""
    teacher = {"teacher_model": LIGHT, "teacher_checkpoint": save_teacher(tmp_path / "teacher.pth")}
    flags = tiny.flags(tmp_path / "run", fkd_path=None, dry_run=True, mix_type="mixup", **teacher)
    result = run(train_KD_parallel, *flags)
    assert result.code == 0, result.err
    assert Image.open(tmp_path / "run" / "views.png").size == (1200, 1300)
    assert "teacher agrees with the folders" in result.out


def test_checks_of_a_full_label_set_are_fast(tmp_path):
    """300 epochs of 200 batch files: one listing per epoch, a few files read."""
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
    """BatchNorm cannot train on one value per channel: said before training, whichever batch it is."""
    train = make_images(tmp_path / "train", per_class=2, classes=3)
    labels = make_labels(tmp_path / "labels", images=6)
    result = run(train_FKD_parallel, *tiny.flags(tmp_path / "run", train_dir=train, fkd_path=labels))
    assert result.code == 2
    assert f"micro-batch of 1 at --input-size {SIDE}" in result.err
    assert not (tmp_path / "run").exists()


def test_preflight_changes_nothing(tiny):
    """Neither the random state nor the student."""
    model = build_model("mobilenet_v2", 3)  # has dropout
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    arguments = type("Arguments", (), {"model": "mobilenet_v2"})
    from utils.training.precision import Precision

    preflight.check_student(model, arguments, 2, 3, SIDE, Precision("fp32", torch.device("cpu")))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_other_images_and_labels_are_refused_on_resume(tiny, tmp_path):
    """Also where no flag changed: the folder's images, or the labels in it."""
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
    """Both ways of writing it."""
    assert take_key(["-u", "script.py", *words, "--epochs", "3"]) == ("K", ["-u", "script.py", "--epochs", "3"])
    assert take_key(["script.py", "--epochs", "3"]) == (None, ["script.py", "--epochs", "3"])


def test_a_key_after_a_mistyped_flag_is_not_printed(tiny, tmp_path):
    """The error names the flag alone."""
    result = run(train_FKD_parallel, *tiny.flags(tmp_path / "run"), "--wandb-api-kye", "5ec2e7" * 7)
    assert "--wandb-api-kye" in result.err
    assert "5ec2e7" not in result.err


def test_what_a_dry_run_draws(tiny, tmp_path):
    """One picture and nothing else."""
    assert run(train_FKD_parallel, *tiny.flags(tmp_path / "run", dry_run=True)).code == 0
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["views.png"]
    assert "views.png" not in RUN_FILES


@pytest.mark.parametrize("place", ["utils.run.objectives.pick_step", "utils.run.preflight.copy.deepcopy"])
def test_a_gpu_that_is_out_of_memory(place, tiny, tmp_path, monkeypatch):
    """One sentence with PyTorch's figure and what helps, wherever it happens; `runs.sh` looks for its words."""

    def fill(*_, **__):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity")

    monkeypatch.setattr(place, (lambda *_, **__: fill) if "pick_step" in place else fill)
    done = run(train_FKD_parallel, *tiny.flags(tmp_path / "run"))
    assert done.code == 2
    assert done.err.startswith("error: the GPU is out of memory (2.50 GiB more were needed); ")
    assert "--loader workers" in done.err
    assert len(done.err.splitlines()) == 1
    assert not (tmp_path / "run" / ".lock").exists()


@pytest.mark.parametrize(("limit", "workers"), [(28, 2), (34, 2), (20, 0)])
def test_few_file_descriptors(limit, workers, tiny, tmp_path):
    """Soon one sentence that names the limit, or a run that gets by; never a hang or a traceback."""
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
def test_a_worker_that_cannot_send(error, words):
    """Its threads drop what they cannot send, for which the parent would wait for ever: it ends, and says why."""

    class Unsendable:
        def __reduce__(self):
            raise error

    loader = DataLoader([0] * 8, collate_fn=lambda _: Unsendable(), num_workers=2, worker_init_fn=start_worker)
    started = time.monotonic()
    with pytest.raises(InputError, match=words):
        list(guarded(loader))
    assert time.monotonic() - started < 20


def test_the_cause_of_few_descriptors_is_named(tiny, tmp_path, monkeypatch):
    """An image is not to be replaced since it could not be opened."""
    message = f"a.png cannot be decoded ([Errno 24] {os.strerror(errno.EMFILE)}); replace the image"
    monkeypatch.setattr("utils.run.preflight.check_images", lambda _: (_ for _ in ()).throw(InputError(message)))
    result = run(train_FKD_parallel, *tiny.flags(tmp_path / "run"))
    assert result.code == 2
    assert result.err.startswith("error: this process and its workers may open too few files at once (ulimit -n)")


def test_workers_end_with_the_script(capsys):
    """Also those whose loader is still referred to: Python would ask them to end, and they would wait for 30 s."""
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
