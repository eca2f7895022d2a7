"""Make many runs on one machine: students x seeds x label sets, or a plan; each GPU has one process at a time.

    MODELS="resnet18 resnet50" SEEDS="0 1 2" LABELS="data/labels_a data/labels_b" GPUS="0 1 2 3" \\
        TRAIN_DIR=… VAL_DIR=… python scripts/runs.py [flags of train_FKD_parallel.py]

All other settings are those of train.sh. The folder of a run is RUNS_DIR/LABELS/MODEL-seedSEED (RUNS_DIR: save/runs),
with its output (.log) and command (.command) beside it. A run that fails is named and does not stop the others. Repeat
the command to resume stopped runs and repeat failed ones; it skips finished runs, and is refused if another command
made one of them. If a GPU is named twice in GPUS (default: 0), two runs share it. Ctrl-C, SIGTERM and SIGUSR1 are
passed on to all runs, which save their state.

    PLAN=plan.txt RUNS_DIR=… GPUS=… python scripts/runs.py [flags]

A plan has one run per line: a name, a tab, a command. sh runs the command, with OUTPUT_DIR set to RUNS_DIR/NAME; the
flags and --no-progress, --resume or --overwrite are appended to it (scripts/evidence.py writes such a plan). After
another tab a line may list seeds. Its runs are then called NAME-seedSEED, and NAME must end in the model's name.

If there are more runs than GPUs, up to SIDE_BY_SIDE seeds (default: 8) of one line share a process, so that small
batches fill the GPU and views are replayed once; each run gets the figures that it would get alone. If seeds do not
fit into memory together, they run one after the other.

All settings come from the environment. --help prints this text.

Exit codes: 0 all done; 2 refused, with one sentence; 123 some runs failed; 128 + the signal's number if stopped.
"""

import glob
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from types import FrameType

ROOT = Path(__file__).resolve().parents[1]
# Settings of train.sh that change results; commands of the default plan therefore contain them.
SETTINGS = (
    "TRAIN_DIR VAL_DIR EPOCHS BATCH_SIZE ACCUMULATION INPUT_SIZE LOSS_TYPE CE_WEIGHT TEMPERATURE MIX_TYPE".split()
)
SETTINGS += ["SCHEDULE", "NPROC"]
EARLIER_RELEASE = " (by an earlier release, which did not note the command)"
PATIENCE = 0.5  # seconds of one wait; an endless wait would sleep through a signal that comes just as it begins
SOME_FAILED = 123  # exit code if some runs failed: that of xargs, which earlier releases used


class RunsError(Exception):
    """The plan or a setting cannot be used; the message is one sentence."""


class Stopped(Exception):
    """A signal asked the runs to stop; `number` is the signal's number."""

    def __init__(self, number: int):
        super().__init__("the runs were asked to save their state; the same command goes on with them")
        self.number = number


@dataclass(frozen=True)
class Line:
    """One line of a plan: a run called `name`, or, if there are seeds, the runs `name`-seedSEED."""

    name: str
    command: str
    seeds: tuple[str, ...] | None = None

    @property
    def runs(self) -> list[str]:
        return [self.name] if self.seeds is None else [f"{self.name}-seed{seed}" for seed in self.seeds]


def quoted(text: str) -> str:
    """Quote a word for sh, always in the same style, because the commands of finished runs are compared as text."""
    return "'" + text.replace("'", "'\\''") + "'"


def folders_of(text: str) -> list[str]:
    """Split `text` at white space into folders, and expand patterns such as data/labels_* as a shell does."""
    return [folder for word in text.split() for folder in sorted(glob.glob(word)) or [word]]


def last_name(folder: str) -> str:
    """Return the last component of a path, after which labels, image sets and their runs are named."""
    return os.path.basename(folder.rstrip("/"))


def read_plan(path: str) -> list[Line]:
    """Read a plan: each line has a name, a command and optionally seeds, separated by tabs."""
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
    """Return a plan that runs train.sh: one line, with all SEEDS, for each of MODELS on each of LABELS."""
    given = "".join(f"{name}={quoted(environment[name])} " for name in SETTINGS if environment.get(name))
    labels_of_train_sh = environment.get("FKD_PATH") or "data/labels"
    seeds = tuple((environment.get("SEEDS") or "0").split())
    lines = []
    for labels in folders_of(environment.get("LABELS") or labels_of_train_sh):
        for model in (environment.get("MODELS") or "resnet18").split():
            command = f"{given}MODEL={quoted(model)} FKD_PATH={quoted(labels)} sh {quoted(f'{ROOT}/train.sh')}"
            lines.append(Line(f"{last_name(labels)}/{model}", command, seeds))
    return lines


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
    """Split the seeds of each line into groups that share a process; return a line for each group.

    Args:
        plan: lines of the plan.
        jobs: number of processes at a time. A group has at most runs / jobs seeds, so that no process is left idle.
        most: maximum number of seeds in a group.
    """
    runs = sum(len(line.runs) for line in plan)
    size = max(1, min(-(-runs // jobs), most))  # runs / jobs, rounded up
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

    Each child has its own session, so that a Ctrl-C at the terminal reaches this process alone, which passes it on
    once. A second SIGINT would end a training script at once, before it saves its state.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)

    def __init__(self) -> None:
        self.stopped_by: int | None = None
        self.running: set[subprocess.Popen[bytes]] = set()

    def run(self, command: Sequence[str], environment: Mapping[str, str], log: Path | None = None) -> int:
        """Run a command to its end, with output to `log`; return its exit code. Raises Stopped after a signal."""
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
        self.running.add(process)
        if self.stopped_by:  # the signal came while the process was being started, so `stop` did not pass it on
            self.pass_on(self.stopped_by, process)
        while (code := self.code_of(process)) is None:
            pass
        self.running.discard(process)
        if code != 0:  # a process that exits with 0 has finished in spite of a signal
            self.check()
        return code

    @staticmethod
    def code_of(process: subprocess.Popen[bytes]) -> int | None:
        """Wait at most PATIENCE for a process; return its exit code, or None if it still runs."""
        with suppress(subprocess.TimeoutExpired):
            return process.wait(PATIENCE)
        return None

    def check(self) -> None:
        """Raise Stopped if a signal has come."""
        if self.stopped_by:
            raise Stopped(self.stopped_by)

    def stop(self, number: int, _frame: FrameType | None = None) -> None:
        """Handle a signal: pass it on to all running processes, and start no further ones."""
        self.stopped_by = self.stopped_by or number
        for process in list(self.running):
            self.pass_on(number, process)

    @staticmethod
    def pass_on(number: int, process: subprocess.Popen[bytes]) -> None:
        """Send a signal to a process and its children."""
        if number == signal.SIGHUP:  # it would end a training script at once; on SIGTERM the script saves its state
            number = signal.SIGTERM
        with suppress(ProcessLookupError):  # it has just ended
            os.killpg(process.pid, number)

    @contextmanager
    def handling_signals(self) -> Iterator[None]:
        """Handle SIGNALS with `stop` until the block ends; signals that were ignored before (by nohup) stay ignored."""
        handled = [number for number in self.SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, self.stop) for number in handled}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Runs:
    """The runs of a plan in one folder.

    Args:
        folder: RUNS_DIR.
        flags: appended to every command.
        environment: environment variables of the commands.
        processes: starts the commands and passes signals on to them.
    """

    # Without a trap a signal would end sh at once, and leave its command running. With one, sh waits for the command,
    # which does not inherit the trap.
    TRAP = "trap : INT TERM USR1; "

    def __init__(self, folder: str, flags: Sequence[str], environment: Mapping[str, str], processes: Processes) -> None:
        self.folder = Path(folder)
        self.flags = list(flags)
        self.environment = environment
        self.processes = processes
        self.free_gpus: SimpleQueue[str] = SimpleQueue()
        self.print_lock = threading.Lock()

    def say(self, text: str) -> None:
        """Print one line; lines of two threads are not mixed."""
        with self.print_lock:
            print(text, flush=True)

    def beside(self, name: str, suffix: str) -> Path:
        """Return RUNS_DIR/NAME.SUFFIX; `with_suffix` would cut a name that has a dot."""
        return self.folder / f"{name}.{suffix}"

    def is_finished(self, name: str) -> bool:
        return (self.folder / name / "summary.json").is_file()

    def described(self, command: str) -> str:
        """Return the text of a run's .command file: the command and the flags, a line each."""
        return "\n".join([command, *self.flags, ""])

    def refuse_other_commands(self, plan: Sequence[Line]) -> None:
        """Raise RunsError if a finished run was made by another command than that of its line in the plan."""
        for line in plan:
            for name in line.runs:
                noted = self.beside(name, "command")
                if not self.is_finished(name) or not noted.is_file():
                    continue
                if noted.read_text(errors="surrogateescape").rstrip("\n") != self.described(line.command).rstrip("\n"):
                    raise RunsError(
                        f"{self.folder}/{name} is finished, but was made with other settings or data ({name}.command "
                        "beside it has them); use those, give another RUNS_DIR, or delete that folder to run it anew"
                    )

    def run(self, plan: Sequence[Line], gpus: Sequence[str]) -> bool:
        """Run the lines, one at a time on each of `gpus`; return whether all runs succeeded. Raises Stopped."""
        for gpu in gpus:
            self.free_gpus.put(gpu)
        with ThreadPoolExecutor(len(gpus)) as pool:
            futures = [pool.submit(self.run_line, line) for line in plan]
            while wait(futures, PATIENCE).not_done:
                pass
        return all(future.result() for future in futures)  # re-raises an exception of a thread

    def run_line(self, line: Line) -> bool:
        """Run the unfinished runs of a line on a free GPU; return whether all succeeded."""
        self.processes.check()
        left = [name for name in line.runs if not self.is_finished(name)]
        for name in line.runs:
            if name not in left:
                unknown = "" if self.beside(name, "command").is_file() else EARLIER_RELEASE
                self.say(f"finished before: {name}{unknown}")
        if not left:
            return True
        seeds = [seed for seed in line.seeds or () if f"{line.name}-seed{seed}" in left]
        gpu = self.free_gpus.get()  # one is free, since there are as many threads as GPUs
        try:
            if len(left) > 1:
                return self.run_side_by_side(line, seeds, gpu)
            return self.run_alone(left[0], line.command, seeds, gpu)
        finally:
            self.free_gpus.put(gpu)

    def run_alone(self, name: str, command: str, seed: list[str], gpu: str) -> bool:
        """Run a line without seeds, or one seed of a line; return whether the run succeeded."""
        log = self.beside(name, "log")
        flags = ["--seed", *seed] if seed else []
        done = self.train([name], command, flags, output=self.folder / name, log=log, gpu=gpu)
        self.say(f"done: {name}" if done else self.failure(name, log))
        return done

    def run_side_by_side(self, line: Line, seeds: list[str], gpu: str) -> bool:
        """Run several seeds in one process, or one by one if memory is too small; return whether all succeeded."""
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
        """Run the one command that makes the runs `names`; return whether its exit code is 0."""
        has_checkpoint = any((self.folder / name / "checkpoint.pth.tar").is_file() for name in names)
        for folder in (output, log.parent):
            folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            self.beside(name, "command").write_text(self.described(command), errors="surrogateescape")
        flags = [*flags, "--no-progress", "--resume" if has_checkpoint else "--overwrite", *self.flags]
        environment = {**self.environment, "CUDA_VISIBLE_DEVICES": gpu, "OUTPUT_DIR": str(output)}
        shell = ["sh", "-uc", f'{self.TRAP}{command} "$@"', "sh", *flags]
        return self.processes.run(shell, environment, log) == 0

    def failure(self, name: str, log: Path) -> str:
        """Return the message that a run failed, with the first error of its log."""
        lines = log.read_text(errors="replace").splitlines()
        reason = next((f": {line}" for line in lines if line.startswith("error: ")), "")
        return f"FAILED: {name} ({log}{reason})"


def positive(environment: Mapping[str, str], name: str, default: int) -> int:
    """Return a setting as an integer, at least 1; raise RunsError if it is none."""
    text = environment.get(name) or str(default)
    if not text.isdecimal() or int(text) < 1:
        raise RunsError(f"{name} {text} is not a number from 1 on")
    return int(text)


def main(flags: Sequence[str], environment: Mapping[str, str], processes: Processes) -> int:
    """Run the plan, or students x seeds x label sets; return the exit code. Raises RunsError or Stopped."""
    environment = {**environment, "PYTHON": environment.get("PYTHON") or sys.executable}
    gpus = (environment.get("GPUS") or "0").split()
    if not gpus:
        raise RunsError('GPUS names no GPU; give numbers such as GPUS="0 1"')
    most = positive(environment, "SIDE_BY_SIDE", 8)
    if positive(environment, "NPROC", 1) > 1:
        most = 1  # several processes that share a student do not train another one beside it
    plan = read_plan(environment["PLAN"]) if environment.get("PLAN") else default_plan(environment)
    runs = Runs(environment.get("RUNS_DIR") or "save/runs", flags, environment, processes)
    refuse_equal_names(plan)
    runs.refuse_other_commands(plan)
    return 0 if runs.run(share_out(plan, len(gpus), most), gpus) else SOME_FAILED


Main = Callable[[Sequence[str], Mapping[str, str], Processes], int]


def run_script(main: Main, description: str) -> int:
    """Call `main` with the command line; return its exit code. An error is printed as one sentence."""
    flags = sys.argv[1:]
    if flags in (["--help"], ["-h"]):
        print(description)
        return 0
    processes = Processes()
    try:
        with processes.handling_signals():
            return main(flags, os.environ, processes)
    except RunsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stop:
        print(f"stopped: {stop}", file=sys.stderr)
        return 128 + stop.number


if __name__ == "__main__":
    sys.exit(run_script(main, __doc__))
