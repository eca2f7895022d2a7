"""Run the commands of the documentation as typed, with small data, small networks and short training.

A command is run by sh. Its `python` is a small program that hands the command line to a server, which has imported
PyTorch once and forks a process for each command: this saves seconds per command. Before the program starts, `shrink`
appends flags that make it small and `Supply` makes the files that the command names and the sandbox lacks.

    python tests/small_commands.py SOCKET    # the server; `Sandbox` in test_documented_commands.py starts it
"""

import atexit
import contextlib
import importlib
import io
import json
import os
import pkgutil
import re
import runpy
import shutil
import signal
import socket
import sys
import traceback
import warnings
from pathlib import Path

import numpy as np
import torch
from finished_runs import make_run
from PIL import Image
from rank_jobs import small_student, use_small_student

import relabel_FKD
import utils
from utils.run.subsets import SUBSETS
from utils.system.process import run_script
from utils.training import teachers

ROOT = Path(__file__).parents[1]
PER_CLASS, BATCH, EPOCHS, SIDE = 4, 6, 2, 32
SMALL = f"--input-size {SIDE} --device cpu --precision fp32 -j 0 --no-progress".split()
TRAINING = ("train_FKD_parallel.py", "train_KD_parallel.py")
CIFAR_10 = "airplane automobile bird cat deer dog frog horse ship truck".split()
CLASSES_OF_PRESETS = list("abc")  # the number of outputs of networks in place of pretrained ones
# data of the reader: a word in capitals, a path below data/, and names that everyone has
OURS = re.compile(r"\b[A-Z]{2,}|^data/|^teacher\.pth$|^cifar-10")
CLASSES = ("class_0", "class_1", "class_2")

# The program `python` of a sandbox. {executable} is a real Python, which needs 15 ms for this.
CLIENT = """#!{executable} -IS
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect(os.environ["COMMANDS_SOCKET"])
words = json.dumps([sys.argv[1:], sys.argv[0], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [b"%9d" % len(words)], [0, 1, 2])
server.sendall(words)
os._exit(int(server.recv(9) or 137))
"""


def serve(path):
    """Accept connections of CLIENT at the socket `path`; each is answered by a forked process."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(64)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system forgets finished children at once
        print("ready", flush=True)
        while True:
            connection, _ = server.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                answer(connection)
            connection.close()


def preload():
    """Import all modules of this project and the libraries that it imports late, so that no command has to."""
    for name in ("torchvision", "timm", "matplotlib.pyplot", "torch.distributed.run"):
        importlib.import_module(name)
    for module in pkgutil.walk_packages(utils.__path__, "utils."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def answer(connection):
    """Run one command line in this process, send its exit code, and exit."""
    header, streams, _, _ = socket.recv_fds(connection, 9, 3)
    data = b""
    while len(data) < int(header):
        data += connection.recv(1 << 16)
    words, sys.executable, folder, environment = json.loads(data)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False))
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), line_buffering=True)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment | {"PYTHON_EXEC": sys.executable})  # with PYTHON_EXEC torchrun starts its processes
    code = 1
    try:
        code = execute(words)
    except BaseException:  # this process must end here
        traceback.print_exc()
    with contextlib.suppress(Exception):
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    with contextlib.suppress(BrokenPipeError):  # a signal has ended the client
        connection.sendall(b"%d" % code)
    os._exit(0)


def execute(words):
    """Run the words after `python` as Python does, with small settings; return the exit code."""
    while words[0] in ("-u", "-S"):
        words = words[1:]
    kind, words = (words[0], words[1:]) if words[0] in ("-m", "-c") else ("script", words)
    program, words = words[0], words[1:]
    words = shrink(Path(program).name if kind == "script" else program, words)
    sys.argv, sys.orig_argv = (
        [program, *words],
        [sys.executable, *([] if kind == "script" else [kind]), program, *words],
    )
    sys.path[0] = os.path.dirname(os.path.realpath(program)) if kind == "script" else os.getcwd()
    try:
        if kind == "-m":
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        elif kind == "-c":
            exec(program, {"__name__": "__main__"})
        else:
            runpy.run_path(program, run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def shrink(program, words):
    """Return the words of a command with small settings; make the files that it needs."""
    if {"--help", "-h", "--version"} & set(words) or "RANK" in os.environ:  # torchrun's words are small already
        return words
    flags, supply = Flags(words), Supply(Flags(words))
    if program in TRAINING:
        words = supply.of_training(program, words)
        words += [*SMALL, "--epochs", str(EPOCHS), "--batch-size", str(BATCH), "--wandb-mode", "disabled"]
        small = {"--hard-epochs": 1, "--hard-batch-size": BATCH, "--eval-from": 0, "--milestones": 1}
        small |= {"--temperature-step-size": 1, "--warmup-epochs": 1, "--num-classes": len(supply.names)}
        words += [str(word) for name, value in small.items() if flags.get(name) for word in (name, value)]
    elif program == "relabel_FKD.py":
        words = [*supply.of_relabelling(words), *SMALL, "--epochs", str(EPOCHS), "-b", str(BATCH)]
    elif program == "utils.labels" and words[1:]:
        words = supply.of_label_command(words)
    elif program == "utils.images" and words[1:]:
        supply.images(words[1])
    elif program == "utils.report.random_images":
        words = supply.of_random_images(words)
    elif program == "utils.report":
        supply.of_report(words)
    elif program in ("runs.py", "evidence.py"):
        supply.of_many_runs(program)
    elif program == "torch.distributed.run" and "--nproc_per_node" in words:
        words[words.index("--nproc_per_node") + 1] = "1"  # two processes take 20 s of a busy machine
        script = next(place for place, word in enumerate(words) if word.endswith(".py"))
        words = words[: script + 1] + shrink(Path(words[script]).name, words[script + 1 :])
    return words


class Flags:
    """The flags of a command line: flag -> the words after its last occurrence, up to the next flag."""

    def __init__(self, words):
        self.values, self.positional, flag = {}, [], None
        for word in words:
            if re.match(r"--?[A-Za-z]", word):
                flag, _, value = word.partition("=")
                self.values[flag] = [value] if value else []
            elif flag:
                self.values[flag].append(word)
            else:
                self.positional.append(word)

    def get(self, *names):
        """Return the words after the first of these spellings that was given, or an empty list."""
        return next((self.values[name] for name in names if name in self.values), [])


class Supply:
    """Makes the files that a command needs and that do not exist.

    With the environment variable COMMANDS_STRICT, only data of the reader are made (see OURS); an earlier command of
    the page must have made the others. What was made here is made anew for a command that needs it otherwise.
    """

    NOTES = Path(".supplied.json")  # path -> what was asked for

    def __init__(self, flags):
        self.flags = flags
        paths = [path for name in ("--train-dir", "--data", "--val-dir") for path in flags.get(name)]
        listed = (flags.get("--classes") or [""])[0]
        existing = next((path for path in paths if Path(path).is_dir()), None)
        if listed in SUBSETS:
            self.names = SUBSETS[listed]
        elif any("cifar" in path for path in paths):
            self.names = CIFAR_10
        elif existing:
            self.names = sorted(entry.name for entry in Path(existing).iterdir() if entry.is_dir()) or CLASSES
        else:
            self.names = CLASSES

    def lacks(self, path, *needs):
        """Return whether a file must be made now, because there is none, or one that was made here for other needs."""
        noted = json.loads(self.NOTES.read_text()) if self.NOTES.exists() else {}
        if noted.get(path, needs) != list(needs):
            self.discard(path)
        if os.path.lexists(path) or ("COMMANDS_STRICT" in os.environ and not OURS.search(path)):
            return False
        self.NOTES.write_text(json.dumps(noted | {path: needs}))
        return True

    def discard(self, path):
        """Delete a file or folder that was made here."""
        noted = json.loads(self.NOTES.read_text()) if self.NOTES.exists() else {}
        if noted.pop(path, None) is not None:
            shutil.rmtree(path) if os.path.isdir(path) else Path(path).unlink(missing_ok=True)
            self.NOTES.write_text(json.dumps(noted))

    def images(self, path, per_class=PER_CLASS):
        """Make class folders of noise."""
        if self.lacks(path, *self.names):
            for number, name in enumerate(self.names):
                folder = Path(path, name)
                folder.mkdir(parents=True)
                for image in range(per_class):
                    pixels = np.random.default_rng((number, image, per_class)).integers(0, 256, (SIDE, SIDE, 3))
                    Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{image}.png")

    def teacher(self, path):
        """Make the weights of a teacher."""
        if self.lacks(path, len(self.names)):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            torch.save(small_student("", len(self.names), 0, "").state_dict(), path)

    def labels(self, path, images, stored="packed"):
        """Make labels of the folder `images`, with the mix type and normalisation of the command."""
        mix = [word for word in self.flags.get("--mix-type") if word != "None"] or ["cutmix"]
        asked = {"--mean": self.flags.get("--mean"), "--std": self.flags.get("--std"), "--mix-type": mix}
        words = [word for flag, values in asked.items() if values for word in (flag, *values)]
        if self.lacks(path, *self.names, *words, stored):
            checkpoint = "TEACHER-of-labels.pth"
            self.teacher(checkpoint)
            words += ["--data", images, "--fkd-path", path, "-a", "resnet18", "--checkpoint", checkpoint, *SMALL]
            words += ["--format", stored, "-b", str(BATCH), "--epochs", str(EPOCHS)]
            out = io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
                code = run_script(relabel_FKD.main, words)
            self.discard(checkpoint)
            assert code == 0, out.getvalue()

    def list_of_classes(self, name):
        """Make the file that a flag such as --classes names."""
        for path in self.flags.get(name):
            if path not in SUBSETS and self.lacks(path, *self.names):
                lines = [f"{name}\t{name}" for name in self.names] if name == "--class-map" else self.names
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                Path(path).write_text("\n".join(lines) + "\n")

    def defaults(self, words, **paths):
        """Return `words` with the flags that a `…` in the page stands for."""
        for name, path in paths.items():
            flag = f"--{name.replace('_', '-')}"
            if not any(word.split("=")[0] == flag for word in words):
                words = [*words, flag, path]
        return words

    def path(self, words, flag):
        return Flags(words).get(flag)[0]

    def of_training(self, program, words):
        """Make images, labels and teachers of a training; return its words."""
        words = self.defaults(words, train_dir="DISTILLED", val_dir="VAL")
        for name in ("--classes", "--class-order", "--class-map"):
            self.list_of_classes(name)
        train = self.path(words, "--train-dir")
        self.images(train)
        self.images(self.path(words, "--val-dir"), per_class=2)
        if program == TRAINING[0]:
            words = self.defaults(words, fkd_path="LABELS")
            self.labels(self.path(words, "--fkd-path"), train)
        elif self.flags.get("--loss-type") != ["ce"]:
            words = self.with_teachers(words, "--teacher-model", "--teacher-checkpoint")
        if "COMMANDS_STRICT" not in os.environ and not {"--resume", "--overwrite"} & set(words):
            words = [*words, "--overwrite"]
        return words

    def with_teachers(self, words, names, files):
        """Make the weights of all teachers; return `words` with a file for each."""
        CLASSES_OF_PRESETS[:] = self.names
        models = self.flags.get(*names.split("/")) or ["resnet18"]
        preset = bool(self.flags.get("--preset"))
        given = [path for path in self.flags.get(files) if path]
        paths = given or ["TEACHER.pth"] * len(models)
        for path in paths:
            self.teacher(path)
        return words if given or preset else [*words, files, *paths]

    def of_relabelling(self, words):
        """Make images and teachers of relabel_FKD.py; return its words."""
        words = self.defaults(words, data="DISTILLED", fkd_path="NEW-LABELS")
        for name in ("--classes", "--class-order"):
            self.list_of_classes(name)
        self.images(self.path(words, "--data"))
        target = self.path(words, "--fkd-path")
        self.discard(target)
        if "COMMANDS_STRICT" not in os.environ:
            shutil.rmtree(target, ignore_errors=True)
        return self.with_teachers(words, "-a/--arch/--teacher-model", "--checkpoint")

    def of_label_command(self, words):
        """Make the labels of `python -m utils.labels`, and the images and teacher of `verify`."""
        images = (self.flags.get("--images") or ["DISTILLED"])[0]
        self.names = Supply(Flags(["--data", images])).names
        self.images(images)
        self.labels(words[1], images, "tar" if words[0] == "pack" else "packed")
        if self.flags.get("--keep-topk"):
            words = [*words, "--keep-topk", "2"]
        return self.with_teachers(words, "--arch", "--checkpoint") if self.flags.get("--images") else words

    def of_random_images(self, words):
        """Make the real images, and the set that is imitated."""
        words = words if self.flags.positional else ["REAL", *words]
        self.images(words[0], per_class=3 * PER_CLASS)
        for path in self.flags.get("--like"):
            self.images(path)
        for name in ("--classes", "--class-map"):
            self.list_of_classes(name)
        if not {"--like", "--per-class"} & set(words):
            words = [*words, "--like", "DISTILLED"]
            self.images("DISTILLED")
        words = words if "--output" in words else [*words, "--output", "RANDOM"]
        return [
            str(PER_CLASS) if before == "--per-class" else word
            for before, word in zip(["", *words], words, strict=False)
        ]

    def of_report(self, words):
        """Make finished runs."""
        for number, path in enumerate([*self.flags.positional, *self.flags.get("--compare")]):
            if self.lacks(path):
                for seed in (0, 1, 2):
                    facts = {"learning_rate": 0.01} if number else {}
                    make_run(Path(path), f"seed{seed}", 50 + 3 * number + seed, seed, images=f"set{number}", **facts)

    def of_many_runs(self, program):
        """Make what the settings of scripts/runs.py and scripts/evidence.py name."""
        setting = os.environ.get
        for path in (setting("IMAGE_SETS") or setting("TRAIN_DIR") or "data/distilled").split():
            self.images(path)
        self.images(setting("VAL_DIR") or "data/val", per_class=2)
        if program == "evidence.py":
            os.environ |= {"SEEDS": "0 1", "MODELS": (setting("MODELS") or "resnet18").split()[0]}
            self.images(setting("REAL_DIR") or "data/train", per_class=3 * PER_CLASS)
            self.teacher(setting("TEACHER_CHECKPOINT") or "teacher.pth")
        elif plan := setting("PLAN"):
            if self.lacks(plan):
                Path(plan).write_text("a/resnet18\tsh train.sh\t0 1\n")
        else:
            for path in (setting("LABELS") or setting("FKD_PATH") or "data/labels").split():
                self.labels(path, setting("TRAIN_DIR") or "data/distilled")


def small_teacher(_name, checkpoint=None, _stem="", _num_classes=None, **_):
    """Return the small network with the weights of `checkpoint`, or untrained in place of pretrained weights."""
    state = torch.load(checkpoint, weights_only=True) if checkpoint else None
    model = small_student("", len(state["8.bias"] if state else CLASSES_OF_PRESETS), 0, "")
    if state:
        model.load_state_dict(state)
    return model.eval().requires_grad_(False)


if __name__ == "__main__":
    use_small_student(setattr)
    teachers.build_teacher = small_teacher
    warnings.filterwarnings("ignore", message=".*found in sys.modules after import of package")  # by `preload`
    torch.set_num_threads(1)
    preload()
    serve(sys.argv[1])
