"""Measure several students in one process, compared with one process per student and with one student alone.

    python benchmarks/side_by_side.py                                   a GPU: 1, 3 and 5 students, resnet18 at 50/2
    python benchmarks/side_by_side.py --ways processes --json mps.json  only the processes, for instance under MPS
    python benchmarks/side_by_side.py --quick --model shufflenet_v2_x0_5 --students 1 3

All train on the resident loader, in the default precision. Rates are images per second, summed over students: 5
students that share a batch count it five times. `time` is the wall-clock time relative to that of one student alone;
`of the cores` is the CPU time relative to that of one student alone, which depends less on other load of the machine.
Images and labels are made as in throughput.py.
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
QUICK = {"steps": 3, "warm_up": 1, "images": 100}  # defaults of flags with --quick
FULL = {"steps": 200, "warm_up": 20, "images": 10000}


def serve(count: int, setting: dict, pipe: Connection) -> None:
    """Run a child process: train `count` students for each number of steps that the pipe sends, until it sends None."""
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
        if device.type == "cuda":
            torch.cuda.synchronize()
        memory = torch.cuda.max_memory_reserved() if device.type == "cuda" else 0
        pipe.send((time.process_time() - started, memory))


def take_steps(students: Sequence[Student], batches: Iterable[Batch], streams: Streams) -> None:
    """Have every student take a step on every batch, as the loop of train_FKD_parallel.py does."""
    for batch in batches:
        shared = streams.share(batch)
        for student in students:
            with streams.stream_of(student):
                take_step(student, shared)
        streams.hold(shared)
    streams.join()


class Together:
    """Processes that start each turn at the same time.

    Args:
        counts: number of students of each process.
        setting: passed to `serve`.
    """

    def __init__(self, counts: list[int], setting: dict) -> None:
        context = get_context("spawn")
        self.members = []
        for count in counts:
            pipe, theirs = context.Pipe()
            process = context.Process(target=serve, args=(count, setting, theirs))
            process.start()
            theirs.close()  # so that reading fails if the process dies
            self.members.append((process, pipe))

    def run(self, steps: int) -> tuple[float, float, int]:
        """Run `steps` steps of every student.

        Returns:
            (wall-clock seconds, CPU seconds of all processes, reserved bytes of GPU memory).
        """
        started = time.perf_counter()
        for _, pipe in self.members:
            pipe.send(steps)
        cores, memory = zip(*(pipe.recv() for _, pipe in self.members), strict=True)
        return time.perf_counter() - started, sum(cores), sum(memory)

    def close(self) -> None:
        """End the processes."""
        for process, pipe in self.members:
            with contextlib.suppress(OSError):  # the process died; its error has been printed
                pipe.send(None)
            process.join()


def measure(way: str, students: int, setting: dict, rounds: int, steps: int, warm_up: int) -> dict:
    """Measure one row of the table; return medians over the rounds."""
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
    """Print one row, with times relative to one student alone."""
    name = "1 alone" if row["students"] == 1 else f"{row['students']} {row['way']}"
    memory = f"  device {row['device_bytes'] / 2**30:.2f} GiB" if row["device_bytes"] else ""
    factor = ""
    if alone:
        factor = f"  time {row['seconds'] / alone['seconds']:.2f}"
        factor += f"  of the cores {row['core_seconds'] / alone['core_seconds']:.2f}"
    print(f"  {name:<18}{row['images_per_second']:>10.1f} images/s{factor}{memory}", flush=True)


def parse(argv: list[str] | None):
    """Parse the command line; --quick changes the defaults."""
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
    """Make the data, measure every row, print, write."""
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
