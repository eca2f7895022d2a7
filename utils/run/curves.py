"""Draw curves.png: losses, top-1 and learning rate of one run."""

from collections.abc import Sequence
from pathlib import Path

from utils.system.files import atomic_file
from utils.system.text import printable

TRAINING, VALIDATION = "#0072B2", "#D55E00"  # safe for colour-blind readers (Okabe and Ito)


def title_of(args: dict, labels: dict) -> str:
    """Return the title of a run's curves: student, seed, images and labels."""
    where = Path(labels["path"]).name if "path" in labels else labels["dialect"]
    return f"{args['model']}, seed {args['seed']}, images {Path(args['train_dir']).name}, labels {where}"


def draw_curves(path: Path, history: Sequence[dict], title: str, loss_type: str) -> None:
    """Draw training loss, validation loss, top-1 and learning rate over epochs, one panel each.

    Training and validation loss are different functions, so they do not share an axis.

    Args:
        path: PNG file to write.
        history: rows of metrics.csv; validation cells are None for epochs that were not evaluated.
        title: above all panels.
        loss_type: --loss-type, for the title of the training loss.
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
        for panel, columns, name in (
            (loss, ["train_loss"], f"training loss ({loss_type}, mean over views)"),
            (top1, ["train_top1", "val_top1"], "top-1 (%)"),
            (val_loss, ["val_loss"], "validation loss (cross-entropy, nats)"),
            (lr, ["lr"], "learning rate"),
        ):
            for column in columns:
                rows = [row for row in history if row[column] is not None]
                style: dict = {"color": TRAINING, "label": "training views"}
                if "val" in column:
                    style = {"color": VALIDATION, "label": "validation", "marker": "o", "markersize": 3}
                panel.plot([row["epoch"] for row in rows], [row[column] for row in rows], **style)
            panel.set_title(name, loc="left", fontsize=8)
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        for panel in (val_loss, lr):
            panel.set_xlabel("epoch")
        above = {"loc": "lower right", "bbox_to_anchor": (1, 1), "ncol": 2, "borderaxespad": 0.1}
        top1.legend(frameon=False, columnspacing=1, handlelength=1.5, **above)
        with atomic_file(path) as temporary:
            figure.savefig(temporary, format="png", dpi=150)
