"""curves.png: how one run went."""

from collections.abc import Sequence
from pathlib import Path

from utils.system.files import atomic_file
from utils.system.text import printable

TRAINING, VALIDATION = "#0072B2", "#D55E00"  # told apart by the colour-blind (Okabe and Ito)


def title_of(args: dict, labels: dict) -> str:
    """Return the title of a run's curves: student, seed, images and labels."""
    where = Path(labels["path"]).name if "path" in labels else labels["dialect"]
    return f"{args['model']}, seed {args['seed']}, images {Path(args['train_dir']).name}, labels {where}"


def draw_curves(path: Path, history: Sequence[dict], title: str, loss_type: str) -> None:
    """Draw training loss, validation loss, top-1 and learning rate over epochs, a panel each.

    The two losses are different functions, so they share no axis.

    Args:
        path: PNG file to write.
        history: rows of metrics.csv; validation cells are None where the epoch was not evaluated.
        title: over all panels.
        loss_type: what the training loss is.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with rc_context({"font.size": 8, "axes.grid": True, "grid.alpha": 0.4, "lines.linewidth": 1.2}):
        figure = Figure(figsize=(16 / 2.54, 11 / 2.54), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(printable(title), fontsize=9, wrap=True, parse_math=False)
        (loss, top1), (val_loss, lr) = figure.subplots(2, 2, sharex=True)
        for place, columns, name in (
            (loss, ["train_loss"], f"training loss ({loss_type}, mean over views)"),
            (top1, ["train_top1", "val_top1"], "top-1 (%)"),
            (val_loss, ["val_loss"], "validation loss (cross-entropy, nats)"),
            (lr, ["lr"], "learning rate"),
        ):
            for column in columns:
                rows = [row for row in history if row[column] is not None]
                look = {"color": VALIDATION, "marker": "o", "markersize": 3} if "val" in column else {"color": TRAINING}
                label = "validation" if "val" in column else "training views"
                place.plot([row["epoch"] for row in rows], [row[column] for row in rows], label=label, **look)
            place.set_title(name, loc="left", fontsize=8)
            place.xaxis.set_major_locator(MaxNLocator(integer=True))
        for place in (val_loss, lr):
            place.set_xlabel("epoch")
        above = {"loc": "lower right", "bbox_to_anchor": (1, 1), "ncol": 2, "borderaxespad": 0.1}
        top1.legend(frameon=False, columnspacing=1, handlelength=1.5, **above)
        with atomic_file(path) as temporary:
            figure.savefig(temporary, format="png", dpi=150)
