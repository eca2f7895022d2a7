"""Measure how fast students train: one alone, several in one process, or several with one process each.

    python benchmarks/side_by_side.py                                   on a GPU: 1, 3 and 5 ResNet-18
    python benchmarks/side_by_side.py --ways processes --json mps.json  only the processes, for instance under MPS
    python benchmarks/side_by_side.py --quick --model shufflenet_v2_x0_5 --students 1 3

Images and labels are random, as in throughput.py. Students use the default precision and the `resident` loader.
The table shows:

* `images/s`: images per second, summed over students. A batch of 50 images for 5 students counts as 250 images.
* `time`: wall-clock time, divided by that of one student alone.
* `of the cores`: CPU time, divided by that of one student alone. Other programs on the machine affect it less.
* `device`: peak GPU memory.
"""

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from itertools import islice
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from benchmarks.throughput import EveryClass, make_images, make_labels, make_student, own_batches, take_step
from utils.data.batch import Batch
from utils.run.student import Student
from utils.run.summary import versions
from utils.system.machine import keep_freed_memory
from utils.training.precision import pick_device
from utils.training.streams import Streams

WAYS = ("side-by-side", "processes")
# default values of some flags: QUICK if --quick is given, else FULL
QUICK = {"steps": 3, "warm_up": 1, "images": 100}
FULL = {"steps": 200, "warm_up": 20, "images": 10000}


def serve(count: int, setting: dict, pipe: Connection) -> None:
    """Train `count` students in a child process, which receives orders from the parent process.

    Each order is the number of steps that every student takes. The reply to an order is (CPU seconds of this process,
    peak bytes of reserved GPU memory). The order None ends the function.

    Args:
        count: number of students.
        setting: model, batch size, data folders and so on; `main` fills this dict.
        pipe: connection to the parent process.
    """
    device = pick_device(setting["device"])
    if device.type == "cpu":
        keep_freed_memory()
        torch.set_num_threads(setting["threads"])
    students = [
        make_student(setting["model"], setting["batch_size"], setting["accumulation"], device) for _ in range(count)
    ]
    batches = own_batches("resident", EveryClass(Path(setting["images"])).samples, setting, students[0].precision)
    streams = Streams(device, several=count > 1)
    while (steps := pipe.recv()) is not None:
        started = time.process_time()
        for student in students:
            student.start_epoch(0)
        take_steps(students, islice(batches, steps), streams)
        memory = torch.cuda.max_memory_reserved() if device.type == "cuda" else 0
        pipe.send((time.process_time() - started, memory))


def take_steps(students: Sequence[Student], batches: Iterable[Batch], streams: Streams) -> None:
    """Train every student on every batch, one step per batch, in the same way as train_FKD_parallel.py."""
    for batch in batches:
        shared = streams.share(batch)
        for student in students:
            with streams.stream_of(student):
                take_step(student, shared)
        streams.hold(shared)
    streams.finish()


class Together:
    """Child processes that train students at the same time.

    Args:
        counts: number of students of each process; one process is started per entry.
        setting: passed to `serve`, the function that each process runs.
    """

    def __init__(self, counts: list[int], setting: dict) -> None:
        context = get_context("spawn")
        self.members = []
        for count in counts:
            pipe, theirs = context.Pipe()
            process = context.Process(target=serve, args=(count, setting, theirs))
            process.start()
            # close this end in the parent, so that `recv` raises EOFError if the child process dies
            theirs.close()
            self.members.append((process, pipe))

    def run(self, steps: int) -> tuple[float, float, int]:
        """Train every student for `steps` steps, in all processes at the same time.

        Returns:
            (wall-clock seconds, CPU seconds of all processes, peak bytes of GPU memory reserved by all processes).
        """
        started = time.perf_counter()
        for _, pipe in self.members:
            pipe.send(steps)
        cores, memory = zip(*(pipe.recv() for _, pipe in self.members), strict=True)
        return time.perf_counter() - started, sum(cores), sum(memory)

    def close(self) -> None:
        """Tell the child processes to end, and wait until they have ended."""
        for process, pipe in self.members:
            # a child process that died has printed its error; sending to it raises OSError
            with contextlib.suppress(OSError):
                pipe.send(None)
            process.join()


def measure(way: str, students: int, setting: dict, rounds: int, steps: int, warm_up: int) -> dict:
    """Measure the speed and memory of students that train at the same time; return one row of the table.

    Args:
        way: `side-by-side` for all students in one process, or `processes` for one process per student.
        students: number of students.
        setting: passed to `serve`.
        rounds: number of repetitions. The row holds the median over repetitions (for memory, the maximum).
        steps: training steps of each repetition.
        warm_up: training steps before the first repetition.
    """
    together = Together([students] if way == WAYS[0] else [1] * students, setting)
    try:
        together.run(warm_up)
        turns = [together.run(steps) for _ in range(rounds)]
    finally:
        together.close()
    seconds, cores, memory = zip(*turns, strict=True)
    images = students * steps * setting["batch_size"]
    return {
        "way": way,
        "students": students,
        "images_per_second": images / statistics.median(seconds),
        "seconds": statistics.median(seconds),
        "rounds": seconds,
        "core_seconds": statistics.median(cores),
        "device_bytes": max(memory),
    }


def show(row: dict, alone: dict | None) -> None:
    """Print a row of the table; add the two time ratios if `alone` (the row of one student alone) is given."""
    name = "1 alone" if row["students"] == 1 else f"{row['students']} {row['way']}"
    memory = f"  device {row['device_bytes'] / 2**30:.2f} GiB" if row["device_bytes"] else ""
    factor = ""
    if alone:
        factor = f"  time {row['seconds'] / alone['seconds']:.2f}"
        factor += f"  of the cores {row['core_seconds'] / alone['core_seconds']:.2f}"
    print(f"  {name:<18}{row['images_per_second']:>10.1f} images/s{factor}{memory}", flush=True)


def parse(argv: list[str] | None):
    """Parse the command line. The defaults of some flags are in QUICK if --quick is given, else in FULL."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few images, few steps: for a CPU")
    parser.add_argument(
        "--students",
        type=int,
        nargs="+",
        default=[1, 3, 5],
        help="numbers of students; one row for each, and each of --ways",
    )
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="one process for all, or one for each")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--setting", default="50/2", help="batch size/accumulation")
    parser.add_argument("--steps", type=int, help="optimizer steps in a turn (default: 3 with --quick, else 200)")
    parser.add_argument("--warm-up", type=int, help="steps before the first turn (default: 1 with --quick, else 20)")
    parser.add_argument("--rounds", type=int, default=3, help="timed turns of each row; the median is printed")
    parser.add_argument("--images", type=int, help="training images (default: 100 with --quick, else 10000)")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="compute threads of each process on the CPU"
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--json", metavar="OUT", help="also write the rows to this file")
    parser.set_defaults(**(QUICK if parser.parse_args(argv).quick else FULL))
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Make the data, measure and print every row of the table, and write the rows to the file given by --json."""
    args = parse(argv)
    device = pick_device(args.device).type
    batch_size, accumulation = map(int, args.setting.split("/"))
    rows = []
    print(f"{args.model} {args.setting} on {device}, medians of {args.rounds}")
    with tempfile.TemporaryDirectory() as folder:
        make_images(Path(folder) / "images", args.images)
        make_labels(Path(folder) / "labels", args.images, batch_size, epochs=2)
        setting = {
            "batch_size": batch_size,
            "accumulation": accumulation,
            "workers": 0,
            "threads": args.threads,
            "model": args.model,
            "device": device,
            "images": f"{folder}/images",
            "labels": f"{folder}/labels",
        }
        for students in args.students:
            for way in args.ways if students > 1 else args.ways[:1]:
                rows.append(measure(way, students, setting, args.rounds, args.steps, args.warm_up))
                alone = next((row for row in rows if row["students"] == 1), None)
                show(rows[-1], alone)
    if args.json:
        result = {"command": [Path(__file__).name, *(argv or sys.argv[1:])], "versions": versions(), "rows": rows}
        Path(args.json).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
