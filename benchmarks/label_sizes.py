"""Compare the size of stored labels with the accuracy of students trained on them, on the demo's data.

    make demo && .venv/bin/python benchmarks/label_sizes.py --json sizes.json

For each variant of storage flags, the script relabels the demo's distilled images and trains --seeds students for
--epochs epochs on these labels. Some variants store fewer epochs of labels, so training reuses labels (--reuse-labels).
The table shows the bytes on disk and the mean and standard deviation of the last epoch's top-1 accuracy.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import relabel_FKD
import train_FKD_parallel

EPOCHS, SIDE, BATCH_SIZE = 100, 32, 50
# (name in the table, storage flags of relabel_FKD.py, number of epochs of labels that are stored)
VARIANTS = [
    ("full: f16, stored views", "--bits 16", 100),
    ("1/4: 8 bits, drawn views", "--bits 8 --views drawn", 98),
    ("1/12: 4 bits, drawn views", "--bits 4 --views drawn", 53),
    ("1/40: 4 bits, drawn views", "--bits 4 --views drawn", 15),
    ("1/40: 8 bits, drawn views", "--bits 8 --views drawn", 8),
    ("1/12: 8 bits, drawn views", "--bits 8 --views drawn", 32),
    ("1/12: f16, fewer epochs", "--bits 16", 8),
]


def relabel(work, flags, epochs, target):
    """Relabel the demo's distilled images into the folder `target`; return the size of the labels on disk in bytes."""
    command = f"--data {work}/distilled --checkpoint {work}/teacher.pth -b {BATCH_SIZE} --epochs {epochs}"
    command += (
        f" --input-size {SIDE} --min-scale-crops 0.5 --hflip 0 --mix-type cutmix -j 0 --fkd-path {target} {flags}"
    )
    relabel_FKD.main([*command.split(), "--no-progress"])
    return sum(file.stat().st_size for file in Path(target).iterdir())


def train(work, labels, seed, epochs, output):
    """Train a student on `labels`, without gradient accumulation; return the last epoch's top-1 accuracy in percent."""
    command = f"--train-dir {work}/distilled --val-dir {work}/val --fkd-path {labels} --epochs {epochs}"
    command += f" --batch-size {BATCH_SIZE} --input-size {SIDE} --cos -j 0 --seed {seed}"
    command += f" --loss-type mse_gt --ce-weight 0.1 --reuse-labels --eval-every 1000 --output-dir {output} --overwrite"
    train_FKD_parallel.main([*command.split(), "--no-progress"])
    return json.loads((Path(output) / "summary.json").read_text())["last"]["top1"]


def main():
    """Measure every variant and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", default="demo/work", help="folder that the demo wrote")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--only", default="", help="measure only variants whose name contains this text, and the size of the full one"
    )
    parser.add_argument(
        "--epochs", type=int, default=EPOCHS, help="epochs of training, and upper limit of label epochs"
    )
    parser.add_argument("--json", help="also write the rows to this file")
    args = parser.parse_args()
    rows = []
    full = None  # bytes of the full labels (first variant); the table shows full / bytes for each variant
    with tempfile.TemporaryDirectory() as scratch:
        for number, (name, flags, epochs) in enumerate(VARIANTS):
            if number and args.only not in name:
                continue
            labels = f"{scratch}/labels{number}"
            epochs = min(epochs, args.epochs)
            size = relabel(args.work, flags, epochs, labels)
            full = full or size
            if args.only not in name:
                continue
            top1 = [train(args.work, labels, seed, args.epochs, f"{scratch}/run") for seed in range(args.seeds)]
            rows.append({"name": name, "epochs": epochs, "bytes": size, "share": size / full, "top1": top1})
            if args.json:
                Path(args.json).write_text(json.dumps(rows, indent=2))
    rows.sort(key=lambda row: -row["bytes"])
    print("\nlabels                      label epochs    bytes   full / bytes   top-1, mean ± std")
    for row in rows:
        spread = statistics.stdev(row["top1"]) if args.seeds > 1 else 0.0
        print(
            f"{row['name']:<28}{row['epochs']:>12}{row['bytes']:>9}{1 / row['share']:>15.1f}"
            f"{statistics.mean(row['top1']):>12.2f} ± {spread:.2f} %"
        )


if __name__ == "__main__":
    main()
