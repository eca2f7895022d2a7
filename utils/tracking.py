"""What a run leaves behind: log, metrics.csv, summary.json, curves.png, W&B; and progress bars."""

import contextlib
import csv
import io
import logging
import netrc
import os
import platform
import subprocess
import sys
import time
import urllib.parse
from pathlib import Path

import torch
import torchvision
from tqdm import tqdm

from utils.errors import InputError
from utils.files import FolderLock, atomic_file, write_json, write_text

log = logging.getLogger("validator")

COLUMNS = (
    "epoch lr train_loss train_top1 train_top5 train_seconds train_images_per_second "
    "val_loss val_top1 val_top5 val_seconds"
).split()
INIT_SECONDS, FINISH_SECONDS = 15, 60  # what an unreachable W&B may cost a run at its start and its end
CHECKPOINT, BEST, VIEWS = "checkpoint.pth.tar", "model_best.pth.tar", "views.png"
RUN_FILES = (CHECKPOINT, BEST, "args.json", "metrics.csv", "summary.json", "curves.png", "train.log")


def progress_bar(batches, description, total, enabled=True):
    """Wrap an iterable in a tqdm bar on stderr; silent when stderr is not a terminal."""
    return tqdm(batches, description, total, leave=False, disable=None if enabled else True)


class RunFolder:
    """The --output-dir of one run.

    Args:
        path: the folder; made when `claimed` is entered.
        overwrite: replace a run that is there.
        resume: continue a run that is there.
        writes: this process is the one that writes; no other looks at what is there.

    Raises:
        InputError: the folder holds a run, and neither was asked for.
    """

    def __init__(self, path, overwrite=False, resume=False, writes=True):
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"--output-dir {path} is a file; give a folder")
        self.previous = [name for name in RUN_FILES if writes and (self.path / name).exists()]
        if self.previous and not (overwrite or resume):
            raise InputError(
                f"--output-dir {path} holds a run already; add --resume to continue it, --overwrite to replace it, "
                "or give another folder"
            )
        self.fresh = not resume

    def file(self, name):
        """Path of one of the run's files."""
        return self.path / name

    def checkpoint_age(self):
        """Seconds since the last checkpoint was written; infinite before the first."""
        path = self.file(CHECKPOINT)
        return time.time() - path.stat().st_mtime if path.exists() else float("inf")

    @contextlib.contextmanager
    def claimed(self, public_arguments):
        """Own the folder until the block ends: make it, lock it, remove a run that is to be overwritten,
        open train.log, write args.json.

        Raises:
            InputError: another process owns it, or it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FolderLock(self.path)
        except OSError as error:
            raise InputError(f"--output-dir {self.path} cannot be written ({error.strerror}); give another") from None
        try:
            self.remove_leftovers()
            with self.log_file():
                write_json(self.file("args.json"), public_arguments)
                yield
        finally:
            lock.release()

    def remove_leftovers(self):
        """Remove a run that is to be overwritten, and temporary files of one that was killed."""
        for leftover in self.path.glob(".*.tmp"):
            leftover.unlink()
        for name in self.previous if self.fresh else []:
            self.file(name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def log_file(self):
        """Write the log to train.log as well."""
        handler = logging.FileHandler(self.file("train.log"))
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        handler.handleError = lambda _record: None  # a full disk is reported once, by what matters
        log.addHandler(handler)
        try:
            yield
        finally:
            log.removeHandler(handler)
            with contextlib.suppress(OSError):
                handler.close()

    def write_metrics(self, history):
        """Write metrics.csv whole from the history, so that it always agrees with the checkpoint."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in history:
            writer.writerow({name: format_value(row.get(name)) for name in COLUMNS})
        write_text(self.file("metrics.csv"), text.getvalue())

    def write_summary(self, summary):
        """Write summary.json."""
        write_json(self.file("summary.json"), summary)

    def draw_curves(self, history):
        """Draw loss and top-1 over epochs to curves.png."""
        draw_curves(self.file("curves.png"), history)


def start_log(speaks=True):
    """Send the log to stdout, or nowhere; a handler of an earlier run in this process is closed."""
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    log.addHandler(logging.StreamHandler(sys.stdout) if speaks else logging.NullHandler())
    log.setLevel(logging.INFO)
    log.propagate = False


def format_value(value):
    """A metrics.csv cell: empty for None, seven significant digits for floats."""
    if value is None:
        return ""
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def describe_epoch(row, epochs):
    """One log line for an epoch's row of metrics."""
    text = (
        f"epoch {row['epoch']:>3}/{epochs}  lr {row['lr']:.2e}  train loss {row['train_loss']:.4f}  "
        f"top-1 {row['train_top1']:5.2f}%  {row['train_images_per_second']:.0f} images/s"
    )
    if row["val_top1"] is not None:
        text += f"  |  val loss {row['val_loss']:.4f}  top-1 {row['val_top1']:.2f}%  top-5 {row['val_top5']:.2f}%"
    return text


def draw_curves(path, history):
    """Draw two panels over epochs: loss, and top-1 on training views and on the validation set."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    evaluated = [row for row in history if row["val_top1"] is not None]
    for axes, quantity, label in zip(figure.subplots(1, 2), ("loss", "top1"), ("loss", "top-1 (%)"), strict=True):
        axes.plot([row["epoch"] for row in history], [row[f"train_{quantity}"] for row in history], label="train")
        points = [row["epoch"] for row in evaluated], [row[f"val_{quantity}"] for row in evaluated]
        axes.plot(*points, "o-", label="validation")
        axes.set(xlabel="epoch", ylabel=label)
        axes.legend()
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def versions():
    """Versions that a figure should be published with."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "device_name": device,
    }


def git_commit():
    """Commit of this program, with `-dirty` where files were changed; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    return None


def summarise(progress, arguments, labels, num_train):
    """Build summary.json: the last epoch is the headline, best is marked as picked on the validation set."""
    evaluated = [row for row in progress.history if row["val_top1"] is not None]
    last = evaluated[-1] if evaluated else None
    best = max(evaluated, key=lambda row: row["val_top1"], default=None)
    train_seconds = sum(row["train_seconds"] for row in progress.history)
    return {
        "last": evaluation_of(last),
        "best": evaluation_of(best) | {"note": "picked on the validation set"} if best else None,
        "epochs_done": progress.epoch,
        "train_images_per_second": num_train * len(progress.history) / train_seconds if train_seconds else None,
        "seconds": progress.seconds,
        "args": arguments,
        "labels": labels,
        "versions": versions(),
        "git_commit": git_commit(),
    }


def evaluation_of(row):
    """The part of a history row that an evaluation produced."""
    if row is None:
        return None
    return {"epoch": row["epoch"], "top1": row["val_top1"], "top5": row["val_top5"], "loss": row["val_loss"]}


class NoTracker:
    """Stands in for W&B where it is disabled."""

    run_id = None

    def log(self, row):
        """Do nothing."""

    def finish(self):
        """Do nothing."""


class WandbTracker:
    """Logs epochs to W&B; any failure is reported once and never stops the run."""

    def __init__(self, project, mode, folder, config, run_id):
        import wandb

        limits = {"init_timeout": INIT_SECONDS, "finish_timeout": FINISH_SECONDS}
        known = getattr(wandb.Settings, "model_fields", {})  # old versions have not all of them
        self.run = wandb.init(
            project=project,
            name=Path(folder).name,
            id=run_id,
            resume="allow" if run_id else None,
            mode=mode,
            dir=str(folder),
            config=config,
            settings=wandb.Settings(console="off", silent=True, **{k: v for k, v in limits.items() if k in known}),
        )
        self.run_id = self.run.id

    def log(self, row):
        """Log one history row under the reference's metric names."""
        values = {
            f"{part}/{name}": row[f"{part}_{column}"]
            for part, names in (("train", ("loss", "Top1", "Top5")), ("val", ("loss", "top1", "top5")))
            for name, column in ((n, n.lower()) for n in names)
        }
        values |= {"train/lr": row["lr"], "train/epoch": row["epoch"], "val/epoch": row["epoch"]}
        if row["val_top1"] is None:
            values = {name: value for name, value in values.items() if not name.startswith("val/")}
        self._guard(lambda: self.run.log(values, step=row["epoch"]))

    def finish(self):
        """Flush and close the run."""
        self._guard(lambda: self.run.finish())  # looked up after the guard: it may be gone

    def _guard(self, call):
        if self.run is None:
            return
        try:
            call()
        except Exception as error:
            log.info("W&B failed (%s); the run goes on without it", type(error).__name__)
            self.run = None


def start_tracker(project, mode, api_key, folder, config, run_id=None):
    """Start W&B as the flags say, or return `NoTracker`; never prompts, never writes a key.

    Args:
        project: --wandb-project; None disables W&B unless a mode asks for it.
        mode: --wandb-mode: auto, online, offline or disabled.
        api_key: --wandb-api-key or None.
        folder: the run's folder, where W&B keeps its files.
        config: public arguments.
        run_id: W&B run to continue.
    """
    mode = wandb_mode(project, mode, api_key)
    if mode == "disabled":
        return NoTracker()
    if api_key:
        os.environ["WANDB_API_KEY"] = api_key
    try:
        return WandbTracker(project, mode, folder, config, run_id)
    except ImportError:
        raise InputError(
            "--wandb-project needs the wandb package; pip install wandb, or --wandb-mode disabled"
        ) from None
    except Exception as error:
        log.info("W&B could not be started (%s); the run goes on without it", type(error).__name__)
        return NoTracker()


def wandb_mode(project, mode, api_key):
    """Resolve --wandb-mode to online, offline or disabled; say so in one line where it is not obvious."""
    if mode == "auto":
        if not project:
            return "disabled"
        if api_key or os.environ.get("WANDB_API_KEY") or has_netrc_key():
            return "online"
        log.info("W&B: no API key found, so this run is logged offline; `wandb sync` uploads it later")
        return "offline"
    if mode != "disabled" and not project:
        raise InputError(f"--wandb-mode {mode} needs --wandb-project; name the project")
    return mode


def has_netrc_key():
    """Whether the user's netrc file has an entry for the W&B server."""
    host = urllib.parse.urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    path = os.environ.get("NETRC", os.path.expanduser("~/.netrc"))
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
