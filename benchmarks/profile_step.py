"""Profile one training step: time per kind of operator, idle gaps, and number of kernel launches.

    python benchmarks/profile_step.py --model resnet18 --setting 50/2 --json OUT.json

The images are in memory. A step crops, flips and mixes them (`replay`), then trains on them. It runs without a CUDA
graph, because the profiler sees a graph as a single kernel launch. --setting 50/2 stands for batch size 50 and 2
gradient accumulation steps. The time of an operator does not include the operators that it calls. Times are device
times on CUDA, and host times on the CPU.

The wall-clock time of a step is measured while the profiler is off. The time of the gaps is this wall-clock time, minus
the times of all operators. During a gap, a GPU waits for the host. A CUDA graph removes the gaps.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.throughput import CLASSES, SIDE, make_student, take_step
from utils.config import IMAGENET_MEAN, IMAGENET_STD
from utils.data.device import DeviceBatch, Gallery
from utils.data.replay import Normalise
from utils.run.summary import versions
from utils.training.precision import pick_device

# kind of operator -> substrings of operator names; if substrings of several kinds match, the first kind counts
KINDS = {
    "convolution": ("conv",),
    "batch norm": ("batch_norm",),
    "optimizer": ("adam", "sgd", "foreach"),
    "pooling and ReLU": ("pool", "relu", "threshold", "clamp_min"),
    "products": ("mm", "linear", "matmul"),
    "copies": ("copy", "to_copy", "fill", "zero", "memcpy", "memset"),
}
REPLAY = "replay"


def make_batch(batch_size, images, precision):
    """Put `images` random images in device memory, and return a batch of `batch_size` views of them.

    The first access to `batch.images` crops, flips and mixes the views.
    """
    device = precision.device
    normalise = Normalise(IMAGENET_MEAN, IMAGENET_STD, device, precision.memory_format)
    pixels = torch.randint(0, 256, (images, SIDE, 3, SIDE), dtype=torch.uint8, device=device)
    gallery = Gallery(pixels, torch.full((images, 2), SIDE), torch.arange(images, device=device), SIDE, normalise)
    index = torch.arange(batch_size) % images
    crop = torch.tensor([[SIDE // 4, SIDE // 4, SIDE // 2, SIDE // 2, 1]]).expand(batch_size, 5)
    geometry = torch.cat([index[:, None], crop, torch.arange(batch_size)[:, None].flip(0)], dim=1).to(device)
    mixing = torch.tensor([0.0, 0.0, 0.0, SIDE / 2, SIDE / 2], device=device)
    return DeviceBatch(gallery, geometry, mixing, torch.randn(batch_size, CLASSES, device=device))


def replay_and_step(student, batch):
    """Crop, flip and mix the images of the batch (`replay`), then take one training step.

    The profiler shows the first part under the name REPLAY.
    """
    fresh = batch.like(batch.tensors())
    with record_function(REPLAY):
        fresh.images  # noqa: B018  the access replays the views
    take_step(student, fresh)


def timed(action, device, times):
    """Return the mean wall-clock seconds of `action` over `times` calls."""

    def wait():
        if device.type == "cuda":
            torch.cuda.synchronize()

    wait()
    started = time.perf_counter()
    for _ in range(times):
        action()
    wait()
    return (time.perf_counter() - started) / times


def kind_of(name):
    """Return the kind of an operator from its name: a key of KINDS, or "other"."""
    low = name.lower()
    return next((kind for kind, parts in KINDS.items() if any(part in low for part in parts)), "other")


def own_time(event, cuda):
    """Return the milliseconds that an operator took, without the operators that it calls.

    The result is device time if `cuda`, else host time.
    """
    names = ("self_device_time_total", "self_cuda_time_total") if cuda else ("self_cpu_time_total",)
    return next(getattr(event, name) for name in names if hasattr(event, name)) / 1000


def shares_of(profiler, steps, cuda):
    """Return how many milliseconds of a step each kind of operator takes: a dict kind -> milliseconds."""
    result = dict.fromkeys([*KINDS, "other"], 0.0)
    for event in profiler.key_averages():
        # skip CUDA kernels: the operator that launched a kernel already includes the kernel's time
        if cuda and event.device_type != DeviceType.CPU:
            continue
        if event.key != REPLAY and not event.key.startswith(("Profiler", "cuda", "Optimizer", "Activity")):
            result[kind_of(event.key)] += own_time(event, cuda) / steps
    return result


def main(argv=None):
    """Profile a training step, print the times, and write them to the file given by --json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="resnet18", help="student")
    parser.add_argument("--setting", default="50/2", help="batch size/accumulation")
    parser.add_argument("--images", type=int, default=1000, help="number of images in memory")
    parser.add_argument("--steps", type=int, default=10, help="steps of each measurement")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--json", metavar="OUT", help="also write the results to this file")
    args = parser.parse_args(argv)
    device = pick_device(args.device)
    cuda = device.type == "cuda"
    batch_size, accumulation = map(int, args.setting.split("/"))
    student = make_student(args.model, batch_size, accumulation, device)
    student.graph = None  # train without a CUDA graph, which the profiler would show as a single launch
    precision = student.precision
    batch = make_batch(batch_size, args.images, precision)
    for _ in range(min(args.steps, 5)):
        replay_and_step(student, batch)
    wall = 1000 * timed(lambda: replay_and_step(student, batch), device, args.steps)
    replay = 1000 * timed(lambda: batch.like(batch.tensors()).images, device, args.steps)
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as profiler:
        for _ in range(args.steps):
            replay_and_step(student, batch)
        if cuda:
            torch.cuda.synchronize()
    kinds = shares_of(profiler, args.steps, cuda)
    launches = sum(e.count for e in profiler.key_averages() if "LaunchKernel" in e.key) / args.steps
    gaps = max(wall - sum(kinds.values()), 0.0)
    result = {"model": args.model, "setting": args.setting, "arithmetic": str(precision), "versions": versions()}
    result |= {"step_ms": wall, "replay_ms": replay, "kinds_ms": kinds, "gaps_ms": gaps, "launches": launches}
    result["peak_device_bytes"] = torch.cuda.max_memory_allocated() if cuda else None
    print(
        f"{args.model} {args.setting} in {precision} on {device}: {wall:.2f} ms a step, eager, {launches:.0f} launches"
    )
    for name, value in [*kinds.items(), ("gaps", gaps)]:
        print(f"  {name:<18}{value:>9.2f} ms{100 * value / wall:>7.1f} %")
    print(f"  replay of the views alone takes {replay:.2f} ms")
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
