"""Run the tests and benchmarks that need a GPU, and print a table of the results.

gpu.sh shows how to call this script. --rows selects benchmarks. All logs and results are written to the folder OUT.
"""

import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks.throughput import CLASSES, make_images, make_labels, once
from utils.run.summary import versions
from utils.training.models import build_student

ROOT = Path(__file__).parents[1]
AIMS = {
    "resident, images/s": (10000, "at least"),
    "resident / reference-like": (10, "at least"),
    "resident / ceiling": (0.95, "at least"),
    "whole job, s": (360, "at most"),
    "5 seeds / 1 seed, time": (2, "at most"),
    "tests failed": (0, "at most"),
}
WHOLE_JOB = 300, 31  # number of epochs and number of evaluations in a full training run with the default recipe
IMAGENET_VAL = 50000


class Day:
    """Settings that all benchmarks share (folders, data sizes, time limits), and methods that run commands.

    Args:
        out: folder for results.
        device: cuda or cpu.
        quick: whether to use tiny data, so that every benchmark takes seconds. Measured speeds then mean nothing.
        limit: maximum seconds of one command.
        seconds: maximum seconds of all benchmarks together. After that, no command is started.
    """

    def __init__(self, out, device, quick, limit, seconds):
        self.out = Path(out).resolve()
        self.device = device
        self.quick = quick
        self.limit = limit
        self.end = time.monotonic() + seconds
        self.out.mkdir(parents=True, exist_ok=True)
        self.images, self.val, self.batch, self.steps = (8, 4, 4, 2) if quick else (10000, 20000, 50, 2)
        self.model = "shufflenet_v2_x0_5" if quick else "resnet18"
        self.workers = 1 if quick else len(os.sched_getaffinity(0))

    @property
    def left(self):
        """Return how many seconds are left of the total time limit."""
        return self.end - time.monotonic()

    def start(self, name, *words, **environment):
        """Start `python WORDS` in the background and return the process. Its output goes to OUT/name.log.

        Args:
            name: name of the log file.
            words: arguments of the Python interpreter: a script, or -m and a module, and its flags.
            environment: environment variables to add.

        Raises:
            TimeoutError: the total time limit has been reached.
        """
        if self.left < 1:
            raise TimeoutError(f"no time was left for {name}; give --rows with the missing rows")
        with open(self.out / f"{name}.log", "w") as log:
            command = [sys.executable, *map(str, words)]
            return subprocess.Popen(
                command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **environment}
            )

    def run(self, name, *words, accept=(0,), **environment):
        """Run a command (see `start`) until it ends, and return how many seconds it took.

        Raises:
            TimeoutError, subprocess.TimeoutExpired: a time limit was reached.
            RuntimeError: the exit code of the command is not in `accept`.
        """
        return self.finish(name, [self.start(name, *words, **environment)], accept)

    def finish(self, name, processes, accept=(0,)):
        """Wait until all processes have ended, and return the seconds that this took.

        Raises:
            subprocess.TimeoutExpired: a process was still running at the time limit. All running processes were killed.
            RuntimeError: the exit code of a process is not in `accept`.
        """
        started = time.monotonic()
        end = min(started + self.limit, self.end)
        try:
            for process in processes:
                process.wait(max(1, end - time.monotonic()))
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
        if any(process.returncode not in accept for process in processes):
            raise RuntimeError(f"{name} failed; see {self.out}/{name}*.log")
        return time.monotonic() - started

    def data(self):
        """Return the folder of the images and labels that the benchmarks use; make it if it does not exist."""
        return once(self.out / "work" / f"job_{self.images}", self.make_data)

    def make_data(self, work):
        """Write training images, validation images, labels and a teacher checkpoint to the folder `work`.

        `train` and `labels` are symbolic links to the data that the benchmark throughput.py uses too. The validation
        images are hard links to training images.
        """
        shared = self.out / "work"
        images = once(shared / f"images_{self.images}", make_images, self.images, min(CLASSES, self.images // 2))
        work.mkdir(parents=True)
        (work / "train").symlink_to(images)
        # sort by the image number in the file name, so that consecutive images have different classes
        files = sorted(images.glob("*/*.jpg"), key=lambda file: file.name)
        for number in range(self.val):
            file = files[number % len(files)]
            link = work / "val" / file.parent.name / f"{number:05d}.jpg"
            link.parent.mkdir(parents=True, exist_ok=True)
            os.link(file, link)
        epochs = 2
        labels = shared / f"labels_{self.images}_{self.batch}_{epochs}"
        (work / "labels").symlink_to(once(labels, make_labels, self.images, self.batch, epochs))
        torch.save(build_student("resnet18", CLASSES, 0).state_dict(), work / "teacher.pth")

    def train(self, name, epochs, *more, eval_every=10**6):
        """Return the command line of a training run that writes to OUT/runs/name; `more` are extra flags."""
        work = self.data()
        words = ["train_FKD_parallel.py", "--train-dir", work / "train", "--val-dir", work / "val"]
        words += ["--fkd-path", work / "labels", "--reuse-labels", "--model", self.model, "--epochs", epochs]
        words += ["--batch-size", self.batch, "--gradient-accumulation-steps", self.steps, "--cos"]
        words += ["--loss-type", "mse_gt", "--ce-weight", 0.1, "--eval-every", eval_every, "--overwrite"]
        words += ["--output-dir", self.out / "runs" / name, "--device", self.device, "-j", self.workers]
        return [*words, "--no-progress", *more]

    def rows_of(self, name):
        """Return one dict per epoch from metrics.csv of a run: column -> number, or None if the cell is empty."""
        with open(self.out / "runs" / name / "metrics.csv") as file:
            return [{k: float(v) if v else None for k, v in row.items()} for row in csv.DictReader(file)]


# The functions in ROWS are the benchmarks. Each yields dicts {name of a result: value}. If a benchmark fails, the
# results that it has already yielded are kept.


def tests(day):
    """Run the pytest tests marked `gpu`; yield how many ran, how many failed, and the seconds."""
    report = day.out / "tests.xml"
    words = "-m pytest -q -m gpu -p no:cacheprovider --continue-on-collection-errors".split()
    seconds = day.run("tests", *words, f"--junitxml={report}", accept=(0, 1))
    text = report.read_text()
    counts = {key: int(text.split(f'{key}="')[1].split('"')[0]) for key in ("tests", "failures", "errors", "skipped")}
    failed = counts["failures"] + counts["errors"]
    yield {"tests run": counts["tests"] - counts["skipped"], "tests failed": failed, "seconds": seconds}


def throughput(day):
    """Run the benchmark throughput.py for the default student and batch size; yield the results of all its rows."""
    yield from rates(day, day.model, "4/2" if day.quick else "50/2", 100, ())


def models(day):
    """Run the benchmark throughput.py for three students, and yield the results.

    Only this project's fastest loader (`resident`) and the upper bound (`ceiling`) are measured.
    """
    for model, setting, steps in (("resnet50", "50/2", 40), ("resnet101", "50/2", 30), ("resnet18", "1024/1", 8)):
        if day.quick:
            model, setting = day.model, "4/1"
        names = ["resident", *(["resident, eager"] if day.device == "cuda" else []), "ceiling"]
        yield from rates(day, model, setting, steps, names, f"{model} {setting}: ")
        if day.quick:
            return


def rates(day, model, setting, steps, names, before=""):
    """Run the benchmark throughput.py for one student and yield its results.

    Args:
        day: the `Day`.
        model: the student.
        setting: batch size and gradient accumulation steps, such as "50/2".
        steps: optimizer steps of each measurement; ignored with --quick.
        names: rows of throughput.py to measure; if empty, all rows.
        before: prefix of the names of the results.
    """
    name = f"throughput-{model}-{setting.replace('/', '-')}"
    json_file = day.out / f"{name}.json"
    words = ["--data", day.out / "work", "--models", model, "--settings", setting, "--device", day.device]
    words += ["--quick", "--rounds", 1, "--steps", 1] if day.quick else ["--steps", steps, "--warm-up", 20]
    words += ["--images", day.images, "-j", day.workers, "--reference-workers", day.workers, "--json", json_file]
    day.data()
    day.run(name, "-m", "benchmarks.throughput", *words, *(["--rows", *names] if names else []))
    result = json.loads(json_file.read_text())
    for row in result["rows"]:
        yield {f"{before}{row['name']}, images/s": row["images_per_second"]}
        if row.get("peak_device_bytes"):
            yield {f"{before}{row['name']}, GB on the device": row["peak_device_bytes"] / 1e9}
    for key, label in (("reference_like", "reference-like"), ("ceiling", "ceiling")):
        if f"resident_vs_{key}" in result["ratios"]:
            yield {f"{before}resident / {label}": result["ratios"][f"resident_vs_{key}"]}


def profile(day):
    """Run the benchmark profile_step.py; yield milliseconds per kind of operator and the number of kernel launches."""
    for model in [day.model] if day.quick else ["resnet18", "resnet50"]:
        file = day.out / f"profile-{model}.json"
        more = ["--setting", "4/2", "--images", 8, "--steps", 1] if day.quick else ["--setting", "50/2"]
        words = ["--model", model, "--device", day.device, "--json", file]
        day.run(f"profile-{model}", "-m", "benchmarks.profile_step", *words, *more)
        result = json.loads(file.read_text())
        yield {f"{model}: eager step, ms": result["step_ms"], f"{model}: launches": result["launches"]}
        yield {f"{model}: {kind}, ms": value for kind, value in result["kinds_ms"].items()}
        yield {f"{model}: gaps, ms": result["gaps_ms"], f"{model}: replay alone, ms": result["replay_ms"]}


def job(day):
    """Time a run of 10 epochs and 2 evaluations; yield its times, and an estimate of the time of a full run."""
    epochs = 2 if day.quick else 10
    day.data()
    seconds = day.run("job", *day.train("job", epochs, eval_every=epochs - 1))
    rows = day.rows_of("job")
    epoch = statistics.median(row["train_seconds"] for row in rows[1:])
    first, later = (row["val_seconds"] * IMAGENET_VAL / day.val for row in rows if row["val_seconds"])
    start = seconds - sum(row["train_seconds"] + (row["val_seconds"] or 0) for row in rows) + rows[0]["train_seconds"]
    whole = start + (WHOLE_JOB[0] - 1) * epoch + first + (WHOLE_JOB[1] - 1) * later
    yield {"epoch, s": epoch, "evaluation of 50,000, first, s": first, "evaluation of 50,000, kept, s": later}
    yield {"start and first epoch, s": start, "whole job, s": whole}


def seeds(day):
    """Time training with 1, 3 and 5 students, and yield the seconds per epoch.

    Several students are trained first in one process, and then each in a process of its own. If there is a GPU and
    NVIDIA's multi-process service (MPS) is installed, the separate processes are timed again with MPS.
    """
    day.data()
    alone = None
    epochs = 2 if day.quick else 4
    for number in (1, 3) if day.quick else (1, 5, 3):
        name = f"seeds-{number}"
        day.run(name, *day.train(name, epochs, "--seeds", *range(number)))
        one = name if number == 1 else f"{name}/{day.model}-seed0"
        together = statistics.median(row["train_seconds"] for row in day.rows_of(one)[1:])
        alone = alone or together
        yield {f"{number} side by side, epoch, s": together, f"{number} seeds / 1 seed, time": together / alone}
        if number > 1:
            for mps in [False, True] if day.device == "cuda" and shutil.which("nvidia-cuda-mps-control") else [False]:
                kind = f"{number} processes{', MPS' if mps else ''}"
                name = kind.replace(", ", "-").replace(" ", "-")
                yield {f"{kind}, epoch, s": processes(day, name, number, epochs, mps)}


def processes(day, name, number, epochs, mps):
    """Train one student in each of `number` processes at the same time; return the seconds per epoch.

    The time of a process is the median over its epochs, without the first epoch. The result is the time of the slowest
    process.
    """
    with mps_daemon(day) if mps else no_daemon() as environment:
        names = [f"{name}-{seed}" for seed in range(number)]
        words = [day.train(one, epochs, "--seed", seed) for seed, one in enumerate(names)]
        day.finish(name, [day.start(one, *more, **environment) for one, more in zip(names, words, strict=True)])
    return max(statistics.median(row["train_seconds"] for row in day.rows_of(one)[1:]) for one in names)


@contextmanager
def no_daemon():
    """Yield an empty dict: processes that train without MPS need no extra environment variables."""
    yield {}


@contextmanager
def mps_daemon(day):
    """Run the daemon of NVIDIA's multi-process service (MPS) while the context is open.

    The context yields the environment variables that make a process use this daemon.
    """
    variables = {"CUDA_MPS_PIPE_DIRECTORY": str(day.out / "mps"), "CUDA_MPS_LOG_DIRECTORY": str(day.out / "mps")}
    (day.out / "mps").mkdir(exist_ok=True)
    environment = {**os.environ, **variables}
    subprocess.run(["nvidia-cuda-mps-control", "-d"], env=environment, check=True)
    try:
        yield variables
    finally:
        subprocess.run(["nvidia-cuda-mps-control"], input="quit\n", text=True, env=environment, check=False)


def relabel(day):
    """Time relabel_FKD.py with each of its two image loaders; yield the labelled views per second.

    Each loader relabels twice, with different numbers of epochs. The difference in views is divided by the difference
    in seconds, so the start-up has no effect.
    """
    work = day.data()
    found = {}
    epochs = (1, 2) if day.quick else (1, 4)
    for loader in ("workers", "resident"):
        seconds = []
        for number in epochs:
            words = ["--data", work / "train", "-a", "resnet18", "--checkpoint", work / "teacher.pth", "-b", day.batch]
            words += ["--epochs", number, "--mix-type", "cutmix", "--use-fp16", "--loader", loader, "-j", day.workers]
            words += ["--fkd-path", work / f"relabel-{loader}-{number}", "--device", day.device, "--no-progress"]
            shutil.rmtree(work / f"relabel-{loader}-{number}", ignore_errors=True)
            seconds.append(day.run(f"relabel-{loader}-{number}", "relabel_FKD.py", *words))
        found[loader] = (epochs[1] - epochs[0]) * day.images / max(seconds[1] - seconds[0], 1e-3)
        yield {f"{loader}, views/s": found[loader]}
    yield {"resident / workers": found["resident"] / found["workers"]}


ROWS = {function.__name__: function for function in (tests, throughput, job, seeds, profile, relabel, models)}


@contextmanager
def peak_memory(cuda):
    """Measure the GPU memory that all processes together use, twice per second, while the context is open.

    The context yields a list. After the first measurement, the list holds one number: the peak in GB (10^9 bytes).

    Args:
        cuda: whether there is a GPU. If not, the list remains empty.
    """
    peak = []
    done = threading.Event()

    def sample():
        while not done.wait(0.5):
            free, total = torch.cuda.mem_get_info()
            peak[:] = [max([*peak, (total - free) / 1e9])]

    thread = threading.Thread(target=sample, daemon=True)
    if cuda:
        thread.start()
    try:
        yield peak
    finally:
        done.set()
        if cuda:
            thread.join()


def table(out):
    """Return the lines of a table of all results that are stored in the folder `out`."""
    lines = [f"{'row':<12}{'figure':<46}{'value':>12}   aim"]
    for name in ROWS:
        file = Path(out) / f"{name}.json"
        if not file.exists():
            continue
        result = json.loads(file.read_text())
        for figure, value in result["figures"].items():
            lines.append(f"{name:<12}{figure:<46}{value:>12.4g}   {judged(figure, value, result['quick'])}".rstrip())
        if result.get("error"):
            lines.append(f"{name:<12}FAILED: {result['error']}")
    return lines


def judged(figure, value, quick):
    """Return text for the table: the aim of a result and whether `value` meets this aim.

    Args:
        figure: name of the result. If AIMS does not contain this name, the text is empty.
        value: the measured value.
        quick: whether the benchmark ran with --quick. Its results are not compared with the aim.
    """
    if figure not in AIMS:
        return ""
    aim, sense = AIMS[figure]
    met = value >= aim if sense == "at least" else value <= aim
    return f"{sense} {aim}: {'not judged (--quick)' if quick else 'met' if met else 'NOT MET'}"


def main(argv=None):
    """Run the benchmarks, write their results and print the table; return 1 if a benchmark failed, else 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", help="folder for all results")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="run only these rows")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that every row runs, not how fast")
    parser.add_argument("--limit", type=float, default=200, help="maximum seconds of one command")
    parser.add_argument("--seconds", type=float, default=540, help="maximum seconds of all rows together")
    args = parser.parse_args(argv)
    day = Day(args.out, args.device, args.quick, args.limit, args.seconds)
    failed = False
    for name in args.rows:
        started = time.monotonic()
        result = {"quick": args.quick, "device": args.device, "versions": versions(), "figures": {}}
        with peak_memory(args.device == "cuda") as peak:
            try:
                for figures in ROWS[name](day):
                    result["figures"] |= figures
            except Exception as error:  # continue with the next benchmark
                result["error"] = f"{type(error).__name__}: {error}"[:300]
                failed = True
        result["figures"] |= {"peak of all on the device, GB": peak[0]} if peak else {}
        result["seconds"] = time.monotonic() - started
        (day.out / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
        print(f"{name}: {'FAILED' if result.get('error') else 'done'} in {result['seconds']:.0f} s", flush=True)
    lines = table(day.out)
    (day.out / "table.txt").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
