"""Compare this project with a plain PyTorch loop on a small distilled set of small grey images.

    python benchmarks/small_images.py                    train for 300 epochs and evaluate once; three rounds
    python benchmarks/small_images.py --quick            check in a few seconds that both run

A ConvNet-3 trains on 100 images of 28 x 28 pixels, all in one batch, and is then evaluated on 10,000 images. The plain
loop resembles the evaluation in the code of Dataset Condensation (Zhao et al., 2021): a DataLoader over normalised
images in memory yields batches of 256, and the loss and the number of correct predictions are read from the device
after every batch. The project is measured as a call of `main` of train_KD_parallel.py, with all its checks and files.

Every run has its own process. The measured time begins after the imports, with the data on disk, and ends after the
evaluation.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

import train_KD_parallel
from utils.run.summary import versions
from utils.training.models import build_student
from utils.training.precision import pick_device

ROOT = Path(__file__).parents[1]
WAYS = ("plain", "project")
SIDE, CLASSES, MEAN, STD = 28, 10, 0.2861, 0.3530
# (training images, validation images, epochs)
FULL, QUICK = (100, 10000, 300), (20, 50, 2)


def make_data(folder: Path, images: int, evaluated: int) -> None:
    """Write random images and labels as tensor files: normalised images for training, 8-bit images for validation."""
    generator = torch.Generator().manual_seed(0)
    for name, number in (("train", images), ("val", evaluated)):
        pixels = torch.randint(256, (number, 1, SIDE, SIDE), generator=generator, dtype=torch.uint8)
        (folder / name).mkdir()
        torch.save((pixels / 255 - MEAN) / STD if name == "train" else pixels, folder / name / "images_best.pt")
        torch.save(torch.arange(number) % CLASSES, folder / name / "labels_best.pt")


def run_plain(folder: Path, epochs: int, device: torch.device) -> None:
    """Train and evaluate a ConvNet-3 with a plain PyTorch loop, in fp32."""
    files = "images_best.pt", "labels_best.pt"
    (images, labels), (pixels, classes) = (
        [torch.load(folder / name / file, weights_only=True) for file in files] for name in ("train", "val")
    )
    train, val = TensorDataset(images, labels), TensorDataset((pixels / 255 - MEAN) / STD, classes)
    model = build_student("convnet3", CLASSES, 0, input_size=SIDE, in_channels=1).to(device)
    rate = 0.01
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=5e-4)
    loader = DataLoader(train, batch_size=256, shuffle=True)

    def one_epoch(batches: DataLoader, learn: bool) -> tuple[float, float]:
        model.train(learn)
        total = hits = rows = 0.0
        for images, targets in batches:
            images, targets = images.to(device), targets.to(device)
            outputs = model(images)
            loss = F.cross_entropy(outputs, targets)
            total += loss.item() * len(targets)
            hits += (outputs.argmax(dim=1) == targets).sum().item()
            rows += len(targets)
            if learn:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return total / rows, hits / rows

    for epoch in range(epochs):
        one_epoch(loader, learn=True)
        if epoch == epochs // 2:
            optimizer = torch.optim.SGD(model.parameters(), 0.1 * rate, momentum=0.9, weight_decay=5e-4)
    with torch.no_grad():
        one_epoch(DataLoader(val, batch_size=256), learn=False)


def run_project(folder: Path, epochs: int, device: torch.device) -> None:
    """Train and evaluate the same student with train_KD_parallel.py, in its default precision (--precision auto)."""
    words = f"""--train-dir {folder}/train --val-dir {folder}/val --output-dir {folder}/run --overwrite --model convnet3
        --input-size {SIDE} --mean {MEAN} --std {STD} --loss-type ce --augment none --batch-size 256 --epochs {epochs}
        --sgd -lr 0.01 --momentum 0.9 --weight-decay 5e-4 --decay-all --schedule step --milestones 0.5 --gamma 0.1
        --eval-every {epochs} --device {device.type} --no-progress"""
    train_KD_parallel.main(words.split())


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="runs of each way, in turn")
    parser.add_argument("--epochs", type=int, help=f"epochs of a run (default: {FULL[2]})")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--quick", action="store_true", help="tiny data, to check that both ways run")
    parser.add_argument("--json", help="file for the results")
    parser.add_argument("--one", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Time the plain loop and the project in alternation; print all times and the ratio of the medians."""
    args = parse(argv)
    images, evaluated, epochs = QUICK if args.quick else FULL
    epochs = args.epochs or epochs
    device = pick_device(args.device)
    if args.one:
        way, folder = args.one
        started = time.perf_counter()
        {"plain": run_plain, "project": run_project}[way](Path(folder), epochs, device)
        print(f"\nseconds {time.perf_counter() - started}")
        return
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    rounds = 1 if args.quick else args.rounds
    with tempfile.TemporaryDirectory() as folder:
        make_data(Path(folder), images, evaluated)
        for turn in range(rounds):
            for way in WAYS if turn % 2 == 0 else reversed(WAYS):
                words = [sys.executable, "-m", "benchmarks.small_images", "--one", way, folder, "--epochs", str(epochs)]
                words += ["--device", device.type]
                done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
                if done.returncode:
                    raise RuntimeError(f"{way} failed: {done.stderr[-2000:]}")
                seconds[way].append(float(done.stdout.rsplit("seconds ", 1)[1]))
                print(f"{way:8} {seconds[way][-1]:8.2f} s")
    medians = {way: statistics.median(times) for way, times in seconds.items()}
    ratio = medians["plain"] / medians["project"]
    print(
        f"{epochs} epochs and {evaluated} images on {device.type}, medians of {rounds}: plain / project = {ratio:.2f}"
    )
    if args.json:
        result = {"versions": versions(), "threads": torch.get_num_threads(), "seconds": seconds, "ratio": ratio}
        Path(args.json).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
