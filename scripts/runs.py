"""Make many training runs on one machine. Each GPU runs one process at a time.

    MODELS="resnet18 resnet50" SEEDS="0 1 2" LABELS="data/labels_a data/labels_b" GPUS="0 1 2 3" \\
        TRAIN_DIR=… VAL_DIR=… python scripts/runs.py [flags of train_FKD_parallel.py]

This form trains every model with every seed on every label folder. TRAIN_DIR has one image folder for all label
folders, or as many folders as LABELS: then the k-th labels are for the k-th images. All other settings are those of
train.sh. The results of a run are written to RUNS_DIR/LABELS/MODEL-seedSEED, where LABELS is the last part of the label
folder's path (default of RUNS_DIR: save/runs). Beside this folder, a file with the suffix .log has the run's output,
and a file with the suffix .command has its command.

If a run fails, the script prints the run's name and continues with the other runs. Repeat the command to resume stopped
runs and to repeat failed ones. The script skips finished runs. It exits with an error if a finished run was made by
another command. If GPUS (default: 0) names a GPU twice, two processes share this GPU. The script passes Ctrl-C,
SIGTERM and SIGUSR1 on to all running processes, which save their state and exit.

    PLAN=plan.txt RUNS_DIR=… GPUS=… python scripts/runs.py [flags]

This form reads the runs from a plan file; scripts/evidence.py writes such a file. Each line of a plan has a name, a
tab and a command. The shell sh runs the command, with the variable OUTPUT_DIR set to RUNS_DIR/NAME. The script appends
to the command: --no-progress, then --resume or --overwrite, then [flags].

After another tab, a line may list seeds. Such a line describes one run per seed, in the folder RUNS_DIR/NAME-seedSEED.
NAME must end in the model's name. OUTPUT_DIR then depends on the number of seeds that a process trains:

* one seed: OUTPUT_DIR is the run's folder, for example RUNS_DIR/a/resnet18-seed0;
* several seeds: OUTPUT_DIR is the parent, RUNS_DIR/a. The training script makes a folder for each seed in it.

If there are more runs than GPUs, one process trains up to SIDE_BY_SIDE (default: 8) seeds of a line side by side. This
fills the GPU even if batches are small, and views are replayed once for all of these seeds. Each run gets the same
results as if it were trained alone. The runs share a log; the name of the log lists the seeds. If the seeds do not fit
into memory together, they are trained one after the other.

Before the first run starts, the script prints the number of runs and how many are finished. When a process starts, it
prints the path of the log. After each process it prints how long the rest will take, if a run takes as long as the mean
of those that the script has trained so far.

All settings come from environment variables. --help prints this text.

Exit codes: 0 if all runs are finished; 2 if a setting or the plan cannot be used (the error is one sentence); 123 if
some runs failed; 128 + the signal's number if a signal stopped the script.
"""

import glob
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from types import FrameType

ROOT = Path(__file__).resolve().parents[1]
# Settings of train.sh that change results. Commands of the default plan contain the values of these settings, so that
# runs with different values have different commands.
SETTINGS = (
    "TRAIN_DIR VAL_DIR EPOCHS BATCH_SIZE ACCUMULATION INPUT_SIZE LOSS_TYPE CE_WEIGHT TEMPERATURE MIX_TYPE".split()
)
SETTINGS += ["SCHEDULE", "NPROC"]
LISTS = ("TRAIN_DIR", "LABELS", "IMAGE_SETS")  # settings that may name several folders
EARLIER_RELEASE = " (by an earlier release, which did not note the command)"
# Longest single wait for a process or thread, in seconds. Longer waits are made of several short ones: if a signal
# arrives just before a wait, Python handles the signal only when the wait is over.
PATIENCE = 0.2
SOME_FAILED = 123  # exit code if some runs failed; earlier releases used xargs and had the same exit code


class RunsError(Exception):
    """Raised if the plan or a setting cannot be used; the message is one sentence."""


class Stopped(Exception):
    """Raised after a signal has asked the runs to stop; `number` is the signal's number."""

    def __init__(self, number: int):
        super().__init__("the runs were asked to save their state; the same command goes on with them")
        self.number = number


@dataclass(frozen=True)
class Line:
    """One line of a plan.

    A line without seeds describes one run, called `name`. A line with seeds describes one run per seed, called
    `name`-seedSEED.
    """

    name: str
    command: str
    seeds: tuple[str, ...] | None = None

    @property
    def runs(self) -> list[str]:
        return [self.name] if self.seeds is None else [f"{self.name}-seed{seed}" for seed in self.seeds]


def quoted(text: str) -> str:
    """Return `text` in quotes for sh.

    Do not change the style of the quotes, because `Runs.refuse_other_commands` compares commands as texts.
    """
    return "'" + text.replace("'", "'\\''") + "'"


def folders_of(text: str) -> list[str]:
    """Split `text` at white space into folders, and expand patterns like data/labels_* as a shell does.

    If `text` as a whole is the path of a folder or file, whose name may have blanks, return it alone.
    """
    if os.path.exists(text):
        return [text]
    return [folder for word in text.split() for folder in sorted(glob.glob(word)) or [word]]


def last_name(folder: str) -> str:
    """Return the last component of a folder's path; the names of runs contain it."""
    return os.path.basename(folder.rstrip("/"))


def read_plan(path: str) -> list[Line]:
    """Read a plan: each line has a name, a command and optionally seeds, separated by tabs.

    Raises:
        RunsError: the file cannot be read, or a line has no tab.
    """
    try:
        text = Path(path).read_text(errors="surrogateescape")
    except OSError as error:
        raise RunsError(f"PLAN {path} cannot be read: {error.strerror}") from None
    lines = []
    for number, line in enumerate(text.split("\n"), start=1):
        parts = line.split("\t")
        if line.strip() and len(parts) == 1:
            raise RunsError(f"PLAN {path}, line {number} has no tab; a line is a name, a tab and a command")
        if line.strip():
            lines.append(Line(parts[0], parts[1], tuple(parts[2].split()) if len(parts) > 2 else None))
    return lines


def default_plan(environment: Mapping[str, str]) -> list[Line]:
    """Return the plan that is used if PLAN is not set.

    It has one line for each label folder in LABELS and each model in MODELS. The line runs train.sh with all SEEDS.

    Raises:
        RunsError: TRAIN_DIR has several folders, but not as many as LABELS.
    """
    label_folders = folders_of(environment.get("LABELS") or environment.get("FKD_PATH") or "data/labels")
    image_folders = folders_of(environment.get("TRAIN_DIR", "")) or [""]
    if len(image_folders) == 1:
        image_folders *= len(label_folders)
    if len(image_folders) != len(label_folders):
        raise RunsError(
            f"TRAIN_DIR has {len(image_folders)} folders and LABELS {len(label_folders)}; give one image folder for "
            "all labels, or one for each"
        )
    seeds = tuple((environment.get("SEEDS") or "0").split())
    lines = []
    for images, labels in zip(image_folders, label_folders, strict=True):
        settings = {**environment, "TRAIN_DIR": images}
        given = "".join(f"{name}={quoted(settings[name])} " for name in SETTINGS if settings.get(name))
        for model in (environment.get("MODELS") or "resnet18").split():
            command = f"{given}MODEL={quoted(model)} FKD_PATH={quoted(labels)} sh {quoted(f'{ROOT}/train.sh')}"
            lines.append(Line(f"{last_name(labels)}/{model_folder(model)}", command, seeds))
    return lines


def model_folder(model: str) -> str:
    """Return the folder name that training scripts derive from a model's name: `net.make` for `path/to/net.py:make`."""
    path, colon, function = model.rpartition(":")
    if not (colon and path.endswith(".py")):
        return model
    return ".".join(re.sub(r"\W", "_", part) for part in (Path(path).stem, function))


def refuse_missing(environment: Mapping[str, str], folders: Mapping[str, str]) -> None:
    """Raise RunsError if a file or folder of a setting does not exist; `folders` has the default of each setting."""
    for name, default in folders.items():
        value = environment.get(name) or default
        for path in folders_of(value) if name in LISTS else [value]:
            if not os.path.exists(path):
                unset = "" if environment.get(name) else f" ({name} is not set)"
                raise RunsError(f"{name} {path} does not exist{unset}; set {name} to what exists")


def refuse_equal_names(plan: Sequence[Line]) -> None:
    """Raise RunsError if two different commands would write to the same folder."""
    commands: dict[str, str] = {}
    for line in plan:
        if commands.setdefault(line.name, line.command) != line.command:
            raise RunsError(
                f"two different runs are named {line.name}; give folders with different last names in LABELS, or other "
                "names in the plan"
            )


def share_out(plan: Sequence[Line], jobs: int, most: int) -> list[Line]:
    """Split the lines of a plan into new lines with fewer seeds; one process trains all seeds of a new line.

    Args:
        plan: lines of the plan.
        jobs: number of processes that run at the same time. To give work to every process, a new line has at most
            (number of all runs in the plan) / jobs seeds, rounded up.
        most: maximum number of seeds in a new line.
    """
    runs = sum(len(line.runs) for line in plan)
    size = max(1, min(-(-runs // jobs), most))
    shared: list[Line] = []
    for line in plan:
        if line.seeds is None:
            shared.append(line)
        else:
            seeds = line.seeds
            shared += [replace(line, seeds=seeds[first : first + size]) for first in range(0, len(seeds), size)]
    return shared


class Processes:
    """Starts child processes and passes stop signals on to them.

    Each child has its own session. A Ctrl-C at the terminal then reaches only this process, and this process passes
    SIGINT on to each child. In a shared session, a child would get SIGINT twice: from the terminal and from this
    process. A second SIGINT ends a training script at once, before it saves its state.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)

    def __init__(self) -> None:
        self.received: list[int] = []  # numbers of all signals that have arrived, in order

    def run(self, command: Sequence[str], environment: Mapping[str, str], log: Path | None = None) -> int:
        """Run a command, wait for its end, and return its exit code.

        Args:
            command: the program and its arguments.
            environment: environment variables of the command.
            log: file for the command's output; if None, the output goes to the terminal.

        Raises:
            Stopped: a signal came before the command started, or a signal came later and the command failed.
        """
        self.check()
        with open(log or os.devnull, "wb") as file:
            output = file if log else None
            process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        # `stop` only records a signal; this loop passes it on. The process thus gets each signal exactly once, even if
        # the signal arrives while the process is being started.
        passed_on = 0
        while (code := self.code_of(process)) is None:
            for number in self.received[passed_on:]:
                self.pass_on(number, process)
                passed_on += 1
        # A process that exits with 0 has finished its work, even if a signal came.
        if code != 0:
            self.check()
        return code

    @staticmethod
    def code_of(process: subprocess.Popen[bytes]) -> int | None:
        """Wait up to PATIENCE seconds for a process to end; return its exit code, or None if it still runs."""
        with suppress(subprocess.TimeoutExpired):
            return process.wait(PATIENCE)
        return None

    def check(self) -> None:
        """Raise Stopped if a signal has asked the processes to stop."""
        if self.received:
            raise Stopped(self.received[0])

    def stop(self, number: int, _frame: FrameType | None = None) -> None:
        """Record a signal, so that `run` passes it on to its process and starts no further process."""
        self.received.append(number)

    @staticmethod
    def pass_on(number: int, process: subprocess.Popen[bytes]) -> None:
        """Send a signal to a process and its children."""
        # SIGHUP would end a training script at once. After SIGTERM the script saves its state first.
        if number == signal.SIGHUP:
            number = signal.SIGTERM
        with suppress(ProcessLookupError):  # the process has just ended
            os.killpg(process.pid, number)

    @contextmanager
    def handling_signals(self) -> Iterator[None]:
        """Call `stop` for every signal in SIGNALS that arrives while the `with` block runs.

        Signals that this process already ignores stay ignored, for example SIGHUP under nohup.
        """
        handled = [number for number in self.SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, self.stop) for number in handled}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Runs:
    """Trains the runs of a plan and writes the results of all runs to one folder.

    Args:
        folder: RUNS_DIR, the folder for the results.
        flags: flags that are appended to every command.
        environment: environment variables of the commands.
        processes: starts the commands and passes signals on to them.
    """

    # Start of each shell command: the trap makes sh survive a signal and wait until the training script has ended.
    # Without the trap, sh would exit while the training script is still saving its state. The training script does not
    # inherit the trap. It gets the signal too, and handles it itself.
    TRAP = "trap : INT TERM USR1; "

    def __init__(self, folder: str, flags: Sequence[str], environment: Mapping[str, str], processes: Processes) -> None:
        self.folder = Path(folder)
        self.flags = list(flags)
        self.environment = environment
        self.processes = processes
        self.free_gpus: SimpleQueue[str] = SimpleQueue()
        self.lock = threading.Lock()  # for printing, and for the attributes below
        self.number = 0  # runs in the plan
        self.left: set[str] = set()  # runs that are neither finished nor failed
        self.running: dict[str, tuple[float, int]] = {}  # first run of a process -> (start, number of runs)
        self.seconds = 0.0  # duration of all processes that trained runs from the first to the last epoch
        self.trained = 0  # number of these runs
        self.gpus: Sequence[str] = ["0"]  # one process at a time for each of them

    def say(self, text: str) -> None:
        """Print one line; a lock prevents two threads from printing at the same time."""
        with self.lock:
            print(text, flush=True)

    def announce(self, plan: Sequence[Line]) -> None:
        """Print the number of runs in the plan, how many are finished and left, and the number of processes."""
        names = {name for line in plan for name in line.runs}
        self.left = {name for name in names if not self.is_finished(name)}
        self.number = len(names)
        finished = self.number - len(self.left)
        processes = f"{len(self.gpus)} process{'es' if len(self.gpus) > 1 else ''} at a time"
        self.say(f"runs: {finished} of {self.number} finished, {len(self.left)} left; {processes}")

    def say_rest(self, names: Sequence[str]) -> None:
        """Print how many runs are left after the runs `names`, and how long they will take; nothing if none is left."""
        with self.lock:
            self.left.difference_update(names)
            if not self.left or not self.trained:
                return
            seconds = self.seconds / self.trained  # per run; a process with several runs is shared out among them
            now = time.monotonic()
            running = [max(0.0, runs * seconds - (now - start)) for start, runs in self.running.values()]
            waiting = len(self.left) - sum(runs for _, runs in self.running.values())
            rest = max([(sum(running) + waiting * seconds) / len(self.gpus), *running])
            text = f"left: {len(self.left)} of {self.number} runs, about {duration(rest)}"
            print(f"{text}, if they take as long as the {self.trained} so far", flush=True)

    def beside(self, name: str, suffix: str) -> Path:
        """Return the path RUNS_DIR/NAME.SUFFIX.

        `Path.with_suffix` is not used, because it would replace the end of a name that has a dot.
        """
        return self.folder / f"{name}.{suffix}"

    def is_finished(self, name: str) -> bool:
        return (self.folder / name / "summary.json").is_file()

    def described(self, command: str) -> str:
        """Return the content of a run's .command file: `command` on the first line, then one line per flag."""
        return "\n".join([command, *self.flags, ""])

    def refuse_other_commands(self, plan: Sequence[Line]) -> None:
        """Raise RunsError if a finished run was made by a command other than the one in the plan."""
        for line in plan:
            for name in line.runs:
                noted = self.beside(name, "command")
                if not self.is_finished(name) or not noted.is_file():
                    continue
                if noted.read_text(errors="surrogateescape").rstrip("\n") != self.described(line.command).rstrip("\n"):
                    raise RunsError(
                        f"{self.folder}/{name} is finished, but was made with other settings or data ({name}.command "
                        "beside it has them); use those, give another RUNS_DIR (evidence.py: WORK), or delete that "
                        "folder to run it anew"
                    )

    def run(self, plan: Sequence[Line], gpus: Sequence[str]) -> bool:
        """Run all lines of a plan, one line at a time on each GPU; return whether all runs succeeded.

        Raises:
            Stopped: a signal stopped the runs.
        """
        self.gpus = gpus
        self.announce(plan)
        for gpu in gpus:
            self.free_gpus.put(gpu)
        with ThreadPoolExecutor(len(gpus)) as pool:
            futures = [pool.submit(self.run_line, line) for line in plan]
            while wait(futures, PATIENCE).not_done:
                pass
        # Collect all results before they are tested: `result` raises Stopped if a signal stopped a run, and a test that
        # ends at the first failed run would miss that.
        succeeded = [future.result() for future in futures]
        return all(succeeded)

    def run_line(self, line: Line) -> bool:
        """Train the unfinished runs of a line on a free GPU; return whether all of them succeeded."""
        self.processes.check()
        left = [name for name in line.runs if not self.is_finished(name)]
        for name in line.runs:
            if name not in left:
                unknown = "" if self.beside(name, "command").is_file() else EARLIER_RELEASE
                self.say(f"finished before: {name}{unknown}")
        if not left:
            return True
        seeds = [seed for seed in line.seeds or () if f"{line.name}-seed{seed}" in left]
        gpu = self.free_gpus.get()  # never blocks: there are as many GPUs as threads
        try:
            if len(left) > 1:
                succeeded = self.run_side_by_side(line, seeds, gpu)
            else:
                succeeded = self.run_alone(left[0], line.command, seeds, gpu)
        finally:
            self.free_gpus.put(gpu)
        self.say_rest(left)
        return succeeded

    def run_alone(self, name: str, command: str, seed: list[str], gpu: str) -> bool:
        """Train one run in its own process; return whether it succeeded.

        `seed` has the run's seed as its only item; it is empty for a line without seeds.
        """
        log = self.beside(name, "log")
        flags = ["--seed", *seed] if seed else []
        done = self.train([name], command, flags, output=self.folder / name, log=log, gpu=gpu)
        self.say(f"done: {name}" if done else self.failure(name, log))
        return done

    def run_side_by_side(self, line: Line, seeds: list[str], gpu: str) -> bool:
        """Train several seeds of a line in one process; return whether all runs succeeded.

        If the seeds do not fit into memory together, train them one by one.
        """
        names = [f"{line.name}-seed{seed}" for seed in seeds]
        output = self.folder / Path(line.name).parent
        log = self.beside(f"{line.name}-seeds{'-'.join(seeds)}", "log")
        done = self.train(names, line.command, ["--seeds", *seeds], output=output, log=log, gpu=gpu)
        if not done and b"out of memory" in log.read_bytes():
            alone = [self.run_alone(name, line.command, [seed], gpu) for name, seed in zip(names, seeds, strict=True)]
            return all(alone)
        for name in names:
            self.say(f"done: {name}" if done or self.is_finished(name) else self.failure(name, log))
        return done

    def train(self, names: list[str], command: str, flags: list[str], output: Path, log: Path, gpu: str) -> bool:
        """Train the runs `names` by one command; return whether its exit code is 0.

        If one of the runs has a checkpoint, the command resumes; otherwise it overwrites the runs' folders.
        """
        has_checkpoint = any((self.folder / name / "checkpoint.pth.tar").is_file() for name in names)
        for folder in (output, log.parent):
            folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            self.beside(name, "command").write_text(self.described(command), errors="surrogateescape")
        flags = [*flags, "--no-progress", "--resume" if has_checkpoint else "--overwrite", *self.flags]
        environment = {**self.environment, "CUDA_VISIBLE_DEVICES": gpu, "OUTPUT_DIR": str(output)}
        shell = ["sh", "-uc", f'{self.TRAP}{command} "$@"', "sh", *flags]
        self.say(f"started: {', '.join(names)} (output in {log})")
        start = time.monotonic()
        with self.lock:
            self.running[names[0]] = start, len(names)
        try:
            done = self.processes.run(shell, environment, log) == 0
        finally:
            with self.lock:
                del self.running[names[0]]
        if done and not has_checkpoint:  # a resumed run takes less time than a whole one
            with self.lock:
                self.seconds += time.monotonic() - start
                self.trained += len(names)
        return done

    def failure(self, name: str, log: Path) -> str:
        """Return the message that the run `name` failed, with the first error in its log file."""
        lines = log.read_text(errors="replace").splitlines()
        reason = next((f": {line}" for line in lines if line.startswith("error: ")), "")
        return f"FAILED: {name} ({log}{reason})"


def duration(seconds: float) -> str:
    """Return a duration as text, in hours and minutes, in minutes, or in seconds: `3 h 20 min`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def positive(environment: Mapping[str, str], name: str, default: int) -> int:
    """Return the environment variable `name` as an integer; raise RunsError if it is not an integer of at least 1."""
    text = environment.get(name) or str(default)
    if not text.isdecimal() or int(text) < 1:
        raise RunsError(f"{name} {text} is not a number from 1 on")
    return int(text)


def main(flags: Sequence[str], environment: Mapping[str, str], processes: Processes) -> int:
    """Train all runs of the plan in PLAN, or of the default plan if PLAN is not set; return the exit code.

    Raises:
        RunsError: a setting or the plan cannot be used.
        Stopped: a signal stopped the runs.
    """
    environment = {**environment, "PYTHON": environment.get("PYTHON") or sys.executable}
    gpus = (environment.get("GPUS") or "0").split()
    if not gpus:
        raise RunsError('GPUS names no GPU; give numbers such as GPUS="0 1"')
    most = positive(environment, "SIDE_BY_SIDE", 8)
    if positive(environment, "NPROC", 1) > 1:
        most = 1  # a run with several processes cannot train several seeds side by side
    plan = read_plan(environment["PLAN"]) if environment.get("PLAN") else default_plan(environment)
    runs = Runs(environment.get("RUNS_DIR") or "save/runs", flags, environment, processes)
    names = [name for line in plan for name in line.runs]
    if not names:
        raise RunsError("the plan has no run; give MODELS, SEEDS and LABELS, or lines in PLAN")
    refuse_equal_names(plan)
    runs.refuse_other_commands(plan)
    if not environment.get("PLAN") and not all(map(runs.is_finished, names)):
        labels = {"LABELS" if environment.get("LABELS") else "FKD_PATH": "data/labels"}
        refuse_missing(environment, {"TRAIN_DIR": "data/distilled", "VAL_DIR": "data/val", **labels})
    try:
        runs.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunsError(f"RUNS_DIR {runs.folder} cannot be made: {error.strerror}; give another folder") from None
    return 0 if runs.run(share_out(plan, len(gpus), most), gpus) else SOME_FAILED


Main = Callable[[Sequence[str], Mapping[str, str], Processes], int]


def run_script(main: Main, description: str) -> int:
    """Call a script's `main` with the flags of the command line; return the exit code.

    An error is printed as one sentence. With --help, only `description` is printed; with --version, the version of the
    training scripts.
    """
    flags = sys.argv[1:]
    if flags in (["--help"], ["-h"]):
        print(description)
        return 0
    if flags == ["--version"]:
        return subprocess.call([sys.executable, str(ROOT / "train_FKD_parallel.py"), *flags])
    processes = Processes()
    try:
        with processes.handling_signals():
            return main(flags, os.environ, processes)
    except RunsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a folder of the results cannot be written, or the disk is full
        print(f"error: {error.filename}: {error.strerror}; give another folder, or make room", file=sys.stderr)
        return 2
    except Stopped as stop:
        print(f"stopped: {stop}", file=sys.stderr)
        return 128 + stop.number


if __name__ == "__main__":
    sys.exit(run_script(main, __doc__))
