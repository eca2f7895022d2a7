"""Compare the size of stored labels with the top-1 of students trained on them, for 200 classes (glyphs.py).

    python benchmarks/many_classes.py WORK [--json OUT] [--csv OUT] [--figure OUT.png]

The script makes images, trains a teacher and stores the teacher's labels. It then packs these labels in several ways:
with all logits or only the 100, 50 or 10 largest of a row, and at 16, 8 or 4 bits per value. It trains several
students (--seeds) on each label set. If logits were dropped, the loss still counts the probability of the dropped
classes (--topk-mass kept). For dropped logits at 16 bits, the script also trains the same number of students with a
loss that ignores the dropped classes (--topk-mass renormalised). The table shows the bytes on disk, and the mean and
standard deviation of the last epoch's top-1.

The script can be stopped at any time. If it is called again with the same WORK folder, it reuses finished results, and
exits with an error if settings of the data or the training differ from those of the first call.
"""

import argparse
import csv
import json
import shutil
import statistics
import sys
from itertools import product
from pathlib import Path

import relabel_FKD
import train_FKD_parallel
from benchmarks import glyphs
from demo import train_teacher
from utils.labels import command
from utils.system.plotting import COLUMN, SMALL, limit_percent, new_figure, save, series, style
from utils.system.process import run_script

TOPK, BITS = (100, 50, 10), (16, 8, 4)
SIDE = 32
COLUMNS = ("kept", "bits", "mass", "bytes", "mean", "deviation", "top1")


def parse(argv):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="folder for images, teacher, labels and runs")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--csv", type=Path, help="write the rows to this file, without the top-1 of each run")
    parser.add_argument("--figure", type=Path, help="draw bytes against top-1 in this PNG file, and as PDF")
    parser.add_argument("--seeds", type=int, default=5, help="students per row")
    parser.add_argument("--model", default="resnet10t", help="teacher and student")
    parser.add_argument("--teacher-epochs", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=12, help="epochs of labels and of training")
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--adamw-lr", type=float, default=0.004, help="learning rate of the students")
    parser.add_argument("--temperature", type=float, default=4)
    parser.add_argument("--glyphs", default="", help="flags of benchmarks/glyphs.py, as one quoted word")
    parser.add_argument(
        "--topk", type=int, nargs="*", default=TOPK, help="numbers of logits to keep; all are always measured too"
    )
    parser.add_argument("--bits", type=int, nargs="+", default=BITS)
    return parser.parse_args(argv)


def call(main, words):
    """Call a script's main function with the command line `words`; if the script fails, exit with its exit code."""
    if code := run_script(main, [str(word) for word in words]):
        sys.exit(code)


def refuse_other_settings(args):
    """Write the settings to WORK/settings.json; if that file exists with other settings, exit with an error."""
    # flags that may change from call to call with the same WORK folder
    chosen = "seeds", "json", "csv", "figure", "topk", "bits"
    settings = {name: value for name, value in vars(args).items() if name not in ("work", *chosen)}
    path = args.work / "settings.json"
    if not path.exists():
        path.write_text(json.dumps(settings, indent=2) + "\n")
    made_with = json.loads(path.read_text())
    changed = [f"--{name.replace('_', '-')}" for name in settings if settings[name] != made_with.get(name)]
    if changed:
        print(f"error: {args.work} was made with other {', '.join(changed)}; give another WORK", file=sys.stderr)
        sys.exit(2)


def once(product, make):
    """Create the folder `product` if it does not exist: call `make` with a temporary path, then rename the result."""
    if product.exists():
        return
    temporary = product.with_name(f".{product.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    make(temporary)
    temporary.rename(product)


def prepare(args):
    """Make the images, the teacher, and labels with all logits. Reuse what exists in WORK already."""
    images = args.work / "images"
    teacher = images / "teacher.pth"
    once(images, lambda path: glyphs.main([str(path), "--side", str(SIDE), *args.glyphs.split()]))
    if not teacher.exists():
        train_teacher.main(images, args.model, args.teacher_epochs)
    words = f"--data {images}/distilled -a {args.model} --checkpoint {teacher} -b {args.batch_size} --input-size {SIDE}"
    words += f" --epochs {args.epochs} --min-scale-crops 0.8 --hflip 0 --mix-type cutmix --use-fp16 --format tar -j 0"
    words += " --no-progress"
    once(args.work / "labels", lambda path: call(relabel_FKD.main, [*words.split(), "--fkd-path", path]))


def pack(args, kept, bits):
    """Return the folder of the labels in packed format; pack the labels first if the folder does not exist.

    Packed labels hold the `kept` largest logits of each row, or all logits if `kept` is None, at `bits` bits per value.
    """
    target = args.work / f"labels_{kept or 'all'}_{bits}"
    words = ["pack", args.work / "labels", None, "--bits", bits, *(["--keep-topk", kept] if kept else [])]
    once(target, lambda path: call(command.main, [path if word is None else word for word in words]))
    return target


def train(args, labels, mass, seed):
    """Return the last epoch's top-1 (%) of the student with this seed; train the student unless WORK has its result.

    `mass` is the value of --topk-mass, or "all" for labels with all logits, which do not need the flag.
    """
    output = args.work / "runs" / f"{labels.name}_{mass}_{seed}"
    summary = output / "summary.json"
    if not summary.exists():
        words = f"--train-dir {args.work}/images/distilled --val-dir {args.work}/images/val --fkd-path {labels}"
        words += f" --model {args.model} --input-size {SIDE} --batch-size {args.batch_size} --epochs {args.epochs}"
        words += f" --loss-type kl -T {args.temperature} --cos --adamw-lr {args.adamw_lr} -j 0 --seed {seed}"
        words += f" --eval-every 1000 --no-progress --output-dir {output} --overwrite"
        words += f" --topk-mass {mass}" * (mass != "all")
        call(train_FKD_parallel.main, words.split())
    return json.loads(summary.read_text())["last"]["top1"]


def ways_of(args):
    """Return the variants of labels to compare: a list of tuples (kept, bits, mass), one for each row of the table.

    `kept` is the number of logits per row, or None if all logits are stored. `mass` is the value of --topk-mass, or
    "all" if all logits are stored.
    """
    ways = [(k, bits, "kept" if k else "all") for k, bits in product((None, *args.topk), args.bits)]
    return ways + [(k, max(args.bits), "renormalised") for k in args.topk]


def measure(args):
    """Train all students on all variants of labels; return one dict per row of the table, with the keys COLUMNS."""
    ways = ways_of(args)
    top1 = {way: [] for way in ways}
    for seed, (kept, bits, mass) in product(range(args.seeds), ways):
        top1[kept, bits, mass].append(train(args, pack(args, kept, bits), mass, seed))
    return [describe(pack(args, *way[:2]), way, top1[way]) for way in ways]


def describe(labels, way, top1):
    """Return one row of the table as a dict with the keys COLUMNS.

    Args:
        labels: folder of the labels, whose size is reported.
        way: tuple (kept, bits, mass), see `ways_of`.
        top1: top-1 of every student, in percent.
    """
    deviation = statistics.stdev(top1) if len(top1) > 1 else 0.0
    size = sum(file.stat().st_size for file in labels.iterdir())
    return dict(zip(COLUMNS, (*way, size, statistics.mean(top1), deviation, top1), strict=True))


def show(rows):
    """Print the table."""
    print("\nclasses kept   bits          mass      bytes   all / bytes   top-1, mean ± std")
    for row in rows:
        smaller = rows[0]["bytes"] / row["bytes"]
        print(
            f"{row['kept'] or 'all':>12}{row['bits']:>7}{row['mass']:>14}{row['bytes']:>11,}{smaller:>14.2f}"
            f"{row['mean']:>12.2f} ± {row['deviation']:.2f} %"
        )


def draw(rows, path):
    """Plot top-1 over the bytes of the labels, with one line for each pair (bits, mass), as PNG and PDF."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    with style():
        figure = new_figure(COLUMN, 8.5)
        axes, below = figure.subplots(2, 1, gridspec_kw={"height_ratios": (6, 1)})
        ways = dict.fromkeys((row["bits"], row["mass"]) for row in rows if row["mass"] != "all")
        for number, (bits, mass) in enumerate(ways):
            line = [row for row in rows if row["bits"] == bits and row["mass"] in ("all", mass)]
            axes.errorbar(
                [row["bytes"] / 1e6 for row in line],
                [row["mean"] for row in line],
                [row["deviation"] for row in line],
                capsize=2, elinewidth=0.7, label=f"{bits} bits" + ", renormalised" * (mass != "kept"),
                **series(number),
            )  # fmt: skip
        finest = [row for row in rows if row["bits"] == rows[0]["bits"]]
        for kept in dict.fromkeys(row["kept"] for row in finest):
            same = [row for row in finest if row["kept"] == kept]
            point = same[0]["bytes"] / 1e6, max(row["mean"] + row["deviation"] for row in same)
            words, look = f"top {kept}" if kept else "all", {"ha": "center", "size": SMALL}
            axes.annotate(words, point, (0, 3), textcoords="offset points", **look)
        axes.set(xscale="log", xlabel="labels (MB)", ylabel="top-1 (%), last epoch")
        axes.xaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), minor_locator=NullLocator())
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.margins(0.08, 0.12)
        limit_percent(axes)
        below.axis("off")
        title = f"mean ± standard deviation of {len(rows[0]['top1'])} seeds"
        below.legend(*axes.get_legend_handles_labels(), title=title, loc="center", ncol=2, borderaxespad=0)
        save(figure, path)


def main(argv=None):
    """Prepare data and labels, train all students, print the table, and write it to the files given by flags."""
    args = parse(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    refuse_other_settings(args)
    prepare(args)
    rows = measure(args)
    show(rows)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")
    if args.csv:
        with open(args.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS[:-1], extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
    if args.figure:
        draw(rows, args.figure)


if __name__ == "__main__":
    main()
