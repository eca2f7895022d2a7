"""Compare this project's training speed with that of code like the reference's, and with an upper bound.

    python benchmarks/throughput.py --quick                   on a CPU, a few minutes
    python benchmarks/throughput.py --quick --data-only       only the loaders, no model
    python benchmarks/throughput.py -j 16 --json OUT.json     on a GPU: 10,000 images, three students

The rows of the table are:

* `reference-like`: code like the reference's. It loads float images one by one, and trains in fp32 with unfused AdamW.
* `workers`: this project. Worker processes decode the images.
* `resident`: this project. Decoded images stay in memory.
* `resident, eager`: like `resident`, but without a CUDA graph. Measured only on a GPU.
* `ceiling`: the upper bound. This project's training step is repeated on one batch, and nothing is loaded.

Speeds are in images per second. The table shows medians over --rounds. Each row is measured in its own process.

Images and labels are random. They are made in a temporary folder. --data FOLDER keeps them for later calls.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from itertools import cycle, islice
from multiprocessing import get_context, set_start_method
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional as TF

import utils  # noqa: F401  sets OMP_WAIT_POLICY, which the processes of the rows inherit
from train_FKD_parallel import evaluate, train_step
from utils.config import IMAGENET_MEAN, IMAGENET_STD, Findings, FKDConfig
from utils.data.batch import Batch
from utils.data.replay import Normalise
from utils.data.validation import ValidationBatches
from utils.data.workers import ViewDataset
from utils.labels.formats import open_labels
from utils.labels.sre2l import TarWriter
from utils.labels.views import DrawnViews, ViewPolicy
from utils.run.folder import RunFolder
from utils.run.loading import batch_class
from utils.run.student import Student
from utils.run.summary import versions
from utils.system.distributed import ALONE
from utils.system.machine import cores, keep_freed_memory
from utils.system.process import end_workers
from utils.training.models import build_student
from utils.training.precision import Precision, pick_device

CLASSES, SIDE, ENDLESS = 1000, 224, 10**6
SETTLE = 1.0  # seconds to wait before each turn, while the previous row's worker processes finish prefetching
TRAINING = ("reference-like", "workers", "resident", "ceiling")
# default values of some flags: QUICK with --quick, FULL without
QUICK = {"steps": 3, "warm_up": 1, "images": 300, "models": ["resnet18"], "settings": ["50/2"]}
FULL = {
    "steps": 200,
    "warm_up": 20,
    "images": 10000,
    "models": ["resnet18", "resnet50", "resnet101"],
    "settings": ["50/2", "1024/1"],
}
# device -> extra rows that train without a CUDA graph, to show how much a graph gains
GRAPHS = {"cuda": ("resident, eager",), "cpu": ()}


# Functions that make random images and labels


def make_images(folder, count, classes=CLASSES):
    """Write `count` random JPEG files of SIDE x SIDE pixels, spread over `classes` class folders.

    The pixels are smooth with added noise, so that the files have about as many bytes as photos.
    """
    for number in range(classes):
        (folder / f"new{number:03d}").mkdir(parents=True)

    def make(number):
        rng = np.random.default_rng(number)
        coarse = Image.fromarray(rng.integers(0, 256, (28, 28, 3), dtype=np.uint8)).resize((SIDE, SIDE))
        pixels = np.asarray(coarse) + rng.normal(0, 8, (SIDE, SIDE, 3))
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        image.save(folder / f"new{number % classes:03d}" / f"{number:05d}.jpg", quality=90)

    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(make, range(count)))


def once(folder, make, *arguments):
    """Return `folder`; if the folder is missing, first call `make(path, *arguments)`.

    `path` is temporary: the finished folder is renamed to `folder`. An interrupted call leaves no incomplete `folder`.
    """
    if not folder.exists():
        unfinished = folder.with_name(f".{folder.name}")
        shutil.rmtree(unfinished, ignore_errors=True)
        make(unfinished, *arguments)
        unfinished.rename(folder)
    return folder


class EveryClass(Dataset):
    """Data set of random images; `samples` lists (path, class) for each image.

    The class is the number in the name of the image's folder. Empty class folders are allowed.
    """

    def __init__(self, folder):
        paths = sorted(folder.glob("*/*.jpg"))
        self.samples = [(str(path), int(path.parent.name[3:])) for path in paths]


def make_labels(folder, count, batch_size, epochs):
    """Write soft labels for `count` images to `folder`: `epochs` epochs of cutmix views with random logits."""
    views = DrawnViews(ViewPolicy(42, SIDE, 0.08, 1.0, "cutmix", 0.8, 1.0), count, batch_size)
    writer = TarWriter(folder)
    for epoch in range(epochs):
        drawn = [views.read(epoch, batch) for batch in range(views.batches_per_epoch)]
        answers = [torch.randn(len(one.index), CLASSES) for one in drawn]
        writer.write(epoch, [a.labelled(b, [(SIDE, SIDE)] * len(b)) for a, b in zip(drawn, answers, strict=True)])


# Classes and functions of the row `reference-like`


class ReferenceDataset(Dataset):
    """Dataset like the reference's: workers decode, crop, resize, flip and normalise one float image at a time."""

    def __init__(self, samples, labels, batch_size):
        self.samples, self.labels, self.batch_size = samples, labels, batch_size
        self.batch = None

    def __getitem__(self, position):
        epoch, place = divmod(position, len(self.samples))
        batch, slot = divmod(place, self.batch_size)
        if slot == 0:
            self.batch = torch.load(f"{self.labels}/epoch_{epoch}/batch_{batch}.tar", weights_only=True)
        coords, flip, *_, index = self.batch
        path, target = self.samples[index[slot]]
        with open(path, "rb") as file:
            image = Image.open(file).convert("RGB")
        top, left, height, width = (round(c * SIDE) for c in coords[slot].tolist())
        image = TF.resized_crop(image, top, left, height, width, [SIDE, SIDE])
        image = TF.hflip(image) if flip[slot] else image
        return TF.normalize(TF.to_tensor(image), IMAGENET_MEAN, IMAGENET_STD), target

    def collate(self, rows):
        """Return (images, classes, cutmix partners, lambda, box, logits); the last four come from the batch file."""
        images, targets = torch.utils.data.default_collate(rows)
        return images, targets, *self.batch[2:6]


class Positions:
    """Batch sampler that visits the stored epochs of labels in order, and then starts again, without end.

    Each batch is a list of consecutive positions. Each position stands for one row of labels: with N images, position
    p stands for epoch p // N, row p % N.
    """

    def __init__(self, count, batch_size, epochs):
        self.count, self.batch_size, self.epochs = count, batch_size, epochs

    def __iter__(self):
        for epoch in cycle(range(self.epochs)):
            last = (epoch + 1) * self.count
            for start in range(epoch * self.count, last, self.batch_size):
                yield list(range(start, min(start + self.batch_size, last)))


def reference_batches(samples, setting):
    """Return an endless iterator over the batches of a plain DataLoader.

    The reference code starts new worker processes in every epoch. Here the workers are started only once.
    """
    dataset = ReferenceDataset(samples, setting["labels"], setting["batch_size"])
    positions = Positions(len(samples), setting["batch_size"], setting["epochs"])
    workers, pin = setting["reference_workers"], setting["device"] == "cuda"
    loader = DataLoader(
        dataset, batch_sampler=positions, num_workers=workers, collate_fn=dataset.collate, pin_memory=pin
    )
    return iter(loader)


def reference_cutmix(images, mix_index, box):
    """Return a copy of the images in which `box`, a rectangle, shows the partner image instead (cutmix)."""
    y1, x1, y2, x2 = box
    mixed = images.clone()
    mixed[:, :, y1:y2, x1:x2] = images[mix_index.to(images.device), :, y1:y2, x1:x2]
    return mixed


class ReferenceStep:
    """Training step in fp32 NCHW: cutmix on the device, unfused AdamW, `.item()` after every micro-batch."""

    def __init__(self, model, device, micro_batch):
        self.model = build_student(model, CLASSES, 0).to(device).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, weight_decay=0.01)
        self.device, self.micro_batch = device, micro_batch
        self.loss = 0.0
        self.hits = 0.0

    def __call__(self, item):
        images, targets, mix_index, _, box, logits = item
        images, targets = images.to(self.device), targets.to(self.device)
        mixed = reference_cutmix(images, mix_index, box)
        logits = logits.to(self.device).float()
        self.optimizer.zero_grad()
        for start in range(0, len(mixed), self.micro_batch):
            rows = slice(start, start + self.micro_batch)
            outputs = self.model(mixed[rows])
            loss = torch.nn.functional.mse_loss(outputs, logits[rows])
            loss = loss + 0.1 * torch.nn.functional.cross_entropy(outputs, targets[rows])
            (loss * len(outputs) / len(mixed)).backward()
            self.loss += loss.item()
            top = outputs.topk(5).indices == targets[rows, None]
            self.hits += top[:, 0].sum().item() + top.any(dim=1).sum().item()
        self.optimizer.step()
        return len(images)


# Classes and functions of the rows that use this project's code


def make_student(model, batch_size, accumulation, device):
    """Return a new student with AdamW and the loss `mse_gt`. The student writes no files."""
    config = FKDConfig(
        models=(model,), batch_size=batch_size, gradient_accumulation_steps=accumulation, loss_type="mse_gt"
    )
    return Student(config, Findings(input_size=SIDE), CLASSES, RunFolder("not made", writes=False), device)


def take_step(student, batch):
    """Train the student on one batch in the same way as train_FKD_parallel.py, with the CUDA graph if there is one."""
    with student.random:
        if student.graph is None:
            train_step(student, batch)
        else:
            student.graph(train_step, student, batch)
    student.sums.end_batch()


class OwnStep:
    """Callable that trains a new `Student` on a batch and returns the number of images.

    On CUDA, the step is captured as a CUDA graph, except if `eager` is True.
    """

    def __init__(self, setting, device, eager):
        if device.type == "cpu":
            keep_freed_memory()
        self.student = make_student(setting["model"], setting["batch_size"], setting["accumulation"], device)
        if eager:
            self.student.graph = None

    def __call__(self, batch):
        take_step(self.student, batch)
        return len(batch)


class Repeated:
    """Label store that repeats the epochs of another `store` without end."""

    def __init__(self, store):
        self.store = store

    def __getattr__(self, name):
        # while a worker process unpickles this object, `store` is not set yet, and `getattr` below would recurse
        if name == "store":
            raise AttributeError(name)
        return getattr(self.store, name)

    def read(self, epoch, batch):
        """Return the labels of a batch; `epoch` may be any number, and is taken modulo the number of stored epochs."""
        return self.store.read(epoch % self.store.epochs, batch)


def own_batches(loader, samples, setting, precision):
    """Yield training batches without end. `loader` is the name of the table row."""
    store = Repeated(open_labels(setting["labels"]))
    normalise = Normalise(IMAGENET_MEAN, IMAGENET_STD, precision.device, precision.memory_format)
    dataset = ViewDataset(samples, store, SIDE)
    epochs = range(ENDLESS)
    kind = batch_class(loader != "workers", precision.device)
    batches = kind(dataset, epochs, normalise, setting["workers"], precision.device)
    for epoch in epochs:
        yield from batches.epoch(epoch)


def one_batch(batch_size, precision):
    """Return an endless iterator that yields the same random batch, which stays on the device."""
    images = torch.randn(batch_size, 3, SIDE, SIDE, device=precision.device)
    logits = torch.randn(batch_size, CLASSES, device=precision.device)
    targets = torch.randint(CLASSES, (batch_size,), device=precision.device)
    return cycle([Batch(images.contiguous(memory_format=precision.memory_format), logits, targets)])


def count_rows(batch):
    """Apply the image operations (crops, cutmix) that the loader has not applied yet, and return the number of images.

    With --data-only, this function replaces the training step, so that only data loading is measured.
    """
    if isinstance(batch, Batch):
        return len(batch.images)
    images, _, mix_index, _, box, _ = batch
    return len(reference_cutmix(images, mix_index, box))


def build_row(name, setting):
    """Return (iterator, function) for a row of the table.

    The iterator yields batches without end. The function trains on one batch and returns the number of images.
    """
    device = pick_device(setting["device"])
    precision = Precision("auto", device)
    samples = EveryClass(Path(setting["images"])).samples
    if name == "reference-like":
        torch.backends.cudnn.allow_tf32 = True  # PyTorch's default, which `pick_device` changes on a GPU
        micro_batch = setting["batch_size"] // setting["accumulation"]
        step = ReferenceStep(setting["model"], device, micro_batch) if setting["model"] else count_rows
        return reference_batches(samples, setting), step
    step = OwnStep(setting, device, name == "resident, eager") if setting["model"] else count_rows
    if name == "ceiling":
        return one_batch(setting["batch_size"], precision), step
    return own_batches(name, samples, setting, precision), step


# Measuring


def serve(name, setting, pipe):
    """Measure a row of the table in a child process, which the parent process controls through `pipe`.

    For each number received, take that many training steps and send (images per second, peak bytes of device memory).
    On the CPU, the second value is None. If None is received instead of a number, return.
    """
    # start data workers by Python's default method; otherwise they would be spawned, like this process
    set_start_method(None, force=True)
    batches, step = build_row(name, setting)
    cuda = setting["device"] == "cuda"
    while (steps := pipe.recv()) is not None:
        # if only loading is measured, first discard the batches that were prefetched while other rows were measured
        if not setting["model"]:
            for _ in islice(batches, 2 * max(setting["workers"], setting["reference_workers"])):
                pass
        if cuda:
            torch.cuda.synchronize()
        started = time.perf_counter()
        images = sum(step(batch) for batch in islice(batches, steps))
        if cuda:
            torch.cuda.synchronize()
        pipe.send((images / (time.perf_counter() - started), torch.cuda.max_memory_allocated() if cuda else None))
    end_workers()


class Row:
    """One row of the table, measured in its own process."""

    def __init__(self, name, setting):
        self.name = name
        self.rates = []
        self.host = 0  # peak bytes of host memory
        self.device = None  # peak bytes of device memory
        # number of busy-loop iterations before an idle OpenMP thread sleeps. The reference code has the default of
        # libgomp, 300000. This project has 0, because it sets OMP_WAIT_POLICY=passive.
        spins = "300000" if name == "reference-like" else "0"
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        os.environ["GOMP_SPINCOUNT"] = spins
        self.process = context.Process(target=serve, args=(name, setting, theirs))
        self.process.start()

    def run(self, steps, measured=True):
        """Have the child process take `steps` steps, and record its peak memory.

        Args:
            steps: number of training steps.
            measured: whether to record the speed as well; False for the warm-up.

        Raises:
            RuntimeError: the child process has died.
        """
        self.pipe.send(steps)
        while not self.pipe.poll(0.5):
            if not self.process.is_alive():
                raise RuntimeError(f"the row {self.name} died; its error is above")
            self.host = max(self.host, tree_memory(self.process.pid))
        rate, self.device = self.pipe.recv()
        if measured:
            self.rates.append(rate)

    def close(self):
        """Tell the child process to end, and wait until it has ended."""
        # sending to a process that has died raises OSError
        with suppress(OSError):
            self.pipe.send(None)
        self.process.join()

    def figures(self):
        """Return the results of the row as a dict: median speed, speed of each round, and peak memory."""
        return {
            "name": self.name,
            "images_per_second": statistics.median(self.rates),
            "rounds": self.rates,
            "peak_host_bytes": self.host,
            "peak_device_bytes": self.device,
        }


def tree_memory(pid):
    """Return the bytes of host memory that a process and its child processes use together, or 0 if this is unknown.

    Memory that the processes share is counted once (PSS, Linux only).
    """
    try:
        pids = [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
        rollups = [Path(f"/proc/{p}/smaps_rollup").read_text() for p in pids]
    except OSError:  # a child process has just ended, or the operating system is not Linux
        return 0
    return sum(1024 * int(line.split()[1]) for text in rollups for line in text.splitlines() if line.startswith("Pss:"))


def measure(names, setting, rounds, steps, warm_up):
    """Measure the rows `names` of the table; return one dict per row, see `Row.figures`."""
    # on a GPU, run the process of only one row at a time, because a row may need all of the device memory
    if setting["device"] == "cuda":
        return [one for name in names for one in take_turns([name], setting, rounds, steps, warm_up)]
    return take_turns(names, setting, rounds, steps, warm_up)


def take_turns(names, setting, rounds, steps, warm_up):
    """Start the processes of all rows `names`, and measure the rows in turns; return one dict per row.

    In each of `rounds` rounds, every row takes `steps` steps while the others wait.
    """
    rows = [Row(name, setting) for name in names]
    try:
        for row in rows:
            row.run(warm_up, measured=False)
        for turn in range(rounds):
            first = turn % len(rows)  # each round begins with a different row
            for row in rows[first:] + rows[:first]:
                time.sleep(SETTLE)
                row.run(steps)
    finally:
        for row in rows:
            row.close()
    return [row.figures() for row in rows]


def measure_evaluation(setting, images):
    """Evaluate a student twice on `images` images, and return the speeds as two rows of the table.

    The first evaluation decodes the images. The second one uses the decoded images, which stay in memory.
    """
    device = pick_device(setting["device"])
    student = make_student(setting["model"], setting["batch_size"], setting["accumulation"], device)
    normalise = Normalise(IMAGENET_MEAN, IMAGENET_STD, device, student.precision.memory_format)
    samples = EveryClass(Path(setting["images"])).samples[:images]
    validation = ValidationBatches(samples, SIDE, normalise, setting["workers"], device, keep=device)
    rates = []
    for _ in range(2):
        started = time.perf_counter()
        [metrics] = evaluate([student], validation, ALONE)
        rates.append(metrics.samples / (time.perf_counter() - started))
    return [
        {"name": "evaluation, first", "images_per_second": rates[0]},
        {"name": "evaluation, kept", "images_per_second": rates[1]},
    ]


def ratios_of(rows):
    """Return a dict name -> ratio of the speeds of two rows, such as `resident_vs_ceiling`.

    A ratio is left out if one of the two rows was not measured. The name `loader` stands for the row `workers`.
    """
    rate = {row["name"]: row["images_per_second"] for row in rows}
    pairs = {
        "resident_vs_reference_like": ("resident", "reference-like"),
        "loader_vs_reference_like": ("workers", "reference-like"),
        "resident_vs_ceiling": ("resident", "ceiling"),
        "graph_vs_eager": ("resident", "resident, eager"),
    }
    return {name: rate[a] / rate[b] for name, (a, b) in pairs.items() if a in rate and b in rate}


def show(title, rows, ratios):
    """Print a table: its title, the speed and memory of each row, and the ratios of the speeds."""
    print(f"\n{title}")
    for row in rows:
        memory = [
            f"{kind} {row[key] / 2**30:.2f} GiB"
            for kind, key in (("host", "peak_host_bytes"), ("device", "peak_device_bytes"))
            if row.get(key)
        ]
        spread = f"  ({min(row['rounds']):.1f} to {max(row['rounds']):.1f})" if "rounds" in row else ""
        print(f"  {row['name']:<18}{row['images_per_second']:>10.1f} images/s{spread}  {', '.join(memory)}")
    for name, value in ratios.items():
        print(f"  {name:<28}{value:>8.3f}")
    sys.stdout.flush()


def parse(argv):
    """Parse the command line.

    The defaults of some flags are in QUICK if --quick is given, else in FULL. --data-only changes the defaults of
    --settings and --steps.
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few images, resnet18 at 50/2, few steps: for a CPU")
    parser.add_argument("--data-only", action="store_true", help="compare the loaders without a model")
    parser.add_argument("--json", metavar="OUT", help="also write rows and ratios to this file")
    parser.add_argument("--rounds", type=int, default=3, help="timed turns of each row; the median is printed")
    parser.add_argument("--steps", type=int, help="optimizer steps in a turn (default: 3 with --quick, else 200)")
    parser.add_argument("--warm-up", type=int, help="steps before the first turn (default: 1 with --quick, else 20)")
    parser.add_argument("--images", type=int, help="training images (default: 300 with --quick, else 10000)")
    parser.add_argument("--epochs", type=int, default=2, help="epochs of labels")
    parser.add_argument("--data", type=Path, help="folder that keeps images and labels (default: a temporary one)")
    parser.add_argument("--rows", nargs="+", choices=TRAINING + GRAPHS["cuda"], help="measure only these rows")
    parser.add_argument("--models", nargs="+", help="students (default: resnet18; without --quick also 50 and 101)")
    parser.add_argument("--settings", nargs="+", help="batch size/accumulation (default: 50/2; also 1024/1)")
    parser.add_argument("-j", "--workers", type=int, default=2, help="processes of this project's workers row")
    parser.add_argument("--reference-workers", type=int, default=4, help="processes of the reference-like row")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    args = parser.parse_args(argv)
    parser.set_defaults(**(QUICK if args.quick else FULL))
    if args.data_only:
        parser.set_defaults(settings=["50/2"], steps=10 if args.quick else 200)
    return parser.parse_args(argv)


def main(argv=None):
    """Make the data, measure and print a table for each model and setting, and write the results to --json."""
    args = parse(argv)
    device = pick_device(args.device).type
    result = {
        "command": [Path(__file__).name, *(argv or sys.argv[1:])],
        "versions": versions(),
        "device": device,
        "threads": torch.get_num_threads(),
        "rows": [],
        "ratios": {},
    }
    with tempfile.TemporaryDirectory() if args.data is None else nullcontext(args.data) as folder:
        images = once(Path(folder, f"images_{args.images}"), make_images, args.images)
        for pair in args.settings:
            batch_size, accumulation = map(int, pair.split("/"))
            labels_folder = Path(folder, f"labels_{args.images}_{batch_size}_{args.epochs}")
            labels = once(labels_folder, make_labels, args.images, batch_size, args.epochs)
            for model in [None] if args.data_only else args.models:
                setting = {
                    "model": model,
                    "batch_size": batch_size,
                    "accumulation": accumulation,
                    "epochs": args.epochs,
                    "workers": args.workers,
                    "reference_workers": args.reference_workers,
                    "device": device,
                    "images": str(images),
                    "labels": str(labels),
                }
                names = args.rows or (TRAINING[:3] if args.data_only else TRAINING + GRAPHS[device])
                rows = measure(names, setting, args.rounds, args.steps, args.warm_up)
                ratios = ratios_of(rows)
                if model:
                    rows += measure_evaluation(setting, min(args.images, 100 if args.quick else 50000))
                case = f"{model or 'data only'} {pair}"
                show(f"{case} on {device}, medians of {args.rounds}", rows, ratios)
                result["rows"] += [row | {"case": case} for row in rows]
                # `ratios` holds the ratios of the first model and setting only; `ratios_by_case` holds all ratios
                result["ratios"] = result["ratios"] or ratios
                result.setdefault("ratios_by_case", {})[case] = ratios
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
