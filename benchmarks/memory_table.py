"""Print the tables of docs/memory.md: the GPU memory that students, images, labels and validation images need.

    python benchmarks/memory_table.py [--students resnet18 convnet3] [--size 224] [--classes 1000] [--validation 50000]
        [--ipc 10 50 200] [--batches 50/2] [--gpus 8 12 24] [--json OUT]

No GPU is needed, and none is used. The memory of training is the program's own estimate before a run
(`MemoryEstimate`): it counts what a forward pass of two and of four images saves for the backward pass, here on the CPU
in bf16. A run on a GPU makes the same passes there. Images, labels and validation images are counted as a run counts
them (`Budget`), and its `plan` decides what stays on a GPU with so much free memory. Images are assumed to be as large
as `--size`, labels to be 16-bit logits of all classes. One process trains one student.
"""

import argparse
import json
import platform
from pathlib import Path

import torch

from utils.data.validation import ROWS_ON_A_DEVICE
from utils.run.loading import GEOMETRY_BYTES, IN_FLIGHT, USABLE, Budget
from utils.system.machine import readable_size
from utils.training.memory_estimate import MemoryEstimate
from utils.training.models import build_student
from utils.training.precision import Precision

CHANNELS, LOGIT_BYTES = 3, 2
GB = 1e9


def print_table(head, rows):
    """Print a Markdown table."""
    for cells in (head, ["---"] * len(head), *rows):
        print("|", " | ".join(cells), "|")
    print()


def training_bytes(estimate, batch, accumulation, validation):
    """Return the bytes that training and evaluation need beside the weights, as `plan_on_device` adds them up."""
    passing = estimate.evaluation_bytes(min(ROWS_ON_A_DEVICE, validation))
    return estimate.training_bytes(batch, batch // accumulation) + passing


def place_of(plan, batches):
    """Return the words of the table for a `Plan`."""
    if not plan.resident:
        return "workers"
    parts = "" if plan.labels_at_once == batches else ", labels in parts"
    return ("all" if plan.validation == "device" else "no validation") + parts


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", nargs="+", default=["resnet18", "resnet50", "resnet101"])
    parser.add_argument("--stem", default="standard", choices=["standard", "small"])
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--validation", type=int, default=50_000, help="number of validation images")
    parser.add_argument("--ipc", type=int, nargs="+", default=[10, 50, 200], help="images per class")
    parser.add_argument("--batches", nargs="+", default=["50/2", "128/1", "1024/2"], help="BATCH/MICRO-BATCHES")
    parser.add_argument("--gpus", type=float, nargs="+", default=[8, 12, 24, 48, 80], help="free memory in GB")
    parser.add_argument("--json", help="also write all bytes to this file")
    args = parser.parse_args()

    precision = Precision("bf16", torch.device("cpu"))
    estimates = {}
    for name in args.students:
        model = precision.place(build_student(name, args.classes, 0, args.stem, args.size))
        estimates[name] = MemoryEstimate(model, args.size, precision)
    pairs = [tuple(map(int, batch.split("/"))) for batch in args.batches]
    print(f"PyTorch {torch.__version__}, {platform.machine()}, {args.size} px, {args.classes} classes\n")

    training = {
        name: [training_bytes(one, batch, parts, args.validation) for batch, parts in pairs]
        for name, one in estimates.items()
    }
    rows = [
        [name, readable_size(estimates[name].weight_bytes), *map(readable_size, needed)]
        for name, needed in training.items()
    ]
    print_table(["student", "weights", *(f"batch {batch} in {parts}" for batch, parts in pairs)], rows)

    pixels, validation = CHANNELS * args.size**2, CHANNELS * args.size**2 * args.validation
    images = {ipc: ipc * args.classes * pixels for ipc in args.ipc}
    labels = {ipc: ipc * args.classes * (LOGIT_BYTES * args.classes + GEOMETRY_BYTES) for ipc in args.ipc}
    rows = [[str(ipc), *(readable_size(size[ipc]) for size in (images, labels))] for ipc in args.ipc]
    print_table(["IPC", "images", "labels of an epoch"], rows)
    print(f"Validation images: {readable_size(validation)}\n")

    rows = []
    batch = pairs[0][0]
    for name in args.students:
        for ipc in args.ipc:
            batches = -(-ipc * args.classes // batch)
            needed = training[name][0]
            every = (needed + images[ipc] + IN_FLIGHT * labels[ipc] + validation) / USABLE
            budgets = [Budget(images[ipc], labels[ipc], validation, needed, int(free * GB)) for free in args.gpus]
            places = [place_of(budget.plan(batches), batches) for budget in budgets]
            rows.append([name, str(ipc), readable_size(every), *places])
    print_table(["student", "IPC", "free memory for all", *(f"{free:g} GB" for free in args.gpus)], rows)
    if args.json:
        Path(args.json).write_text(json.dumps({"training": training, "images": images, "labels": labels}, indent=1))


if __name__ == "__main__":
    main()
