"""Weights & Biases, which never stops a run."""

import http.client
import netrc
import os
import ssl
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.system.errors import InputError
from utils.system.log import log
from utils.system.text import printable, printable_all

INIT_SECONDS, FINISH_SECONDS = 15, 60  # what a slow W&B may cost a run at its start and its end
REACH_SECONDS = 2  # within which an online W&B must answer, else the run is logged offline
NAME_LETTERS, TAG_LETTERS = 128, 64  # W&B takes no longer group, and no longer tag


class NoTracker:
    """Stands in for W&B where it is disabled."""

    run_id = None

    def log(self, row: dict) -> None:
        """Do nothing."""

    def headline(self, summary: dict, curves: Path) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class Place:
    """What a run is called at W&B, and what it stands beside.

    Attributes:
        name: of the run.
        group: runs that belong together; those that differ in nothing but the seed, unless the user named one.
        job_type: train or report.
        tags: to filter by.
        several: other students of this process have runs of their own at the same time.
    """

    name: str
    group: str
    job_type: str
    tags: tuple[str, ...] = ()
    several: bool = False


def place_of(settings: Mapping[str, Any]) -> Place:
    """Return what a training run is called at W&B, from its settings as in args.json."""
    fkd_path, model, loss = settings.get("fkd_path"), settings["model"], settings["loss_type"]
    labels = Path(fkd_path).name if fkd_path else "live teacher" if settings["teachers"] else "hard labels"
    images = Path(settings["train_dir"]).name
    group = settings["wandb_group"] or f"{model}, {images}, {labels}, {loss}, {settings['epochs']} epochs"
    words = [*(settings["wandb_tags"] or []), model, images, labels, loss]
    tags = tuple(dict.fromkeys(word[:TAG_LETTERS] for word in words))
    name = Path(settings["output_dir"]).name
    return Place(name, group[:NAME_LETTERS], "train", tags, settings["side_by_side"] > 1)


class WandbTracker:
    """Logs epochs to W&B; any failure is reported once and never stops the run."""

    def __init__(
        self,
        project: str | None,
        mode: str,
        folder: str | Path,
        config: dict[str, Any],
        run_id: str | None,
        place: Place,
    ) -> None:
        import wandb

        limits: dict[str, Any] = {"init_timeout": INIT_SECONDS, "finish_timeout": FINISH_SECONDS}
        known = getattr(wandb.Settings, "model_fields", {})  # old versions have not all of them
        if place.several and "create_new" not in str(known.get("reinit")):
            raise InputError("--wandb-project: several students need a newer wandb; pip install --upgrade wandb")
        options: dict[str, Any] = {"mode": mode} | ({"reinit": "create_new"} if place.several else {})
        self.run: Any = wandb.init(
            project=project,
            name=printable(place.name),
            group=printable(place.group),
            job_type=place.job_type,
            tags=printable_all(place.tags),
            id=run_id,
            resume="allow" if run_id else None,
            dir=str(folder),
            config=printable_all(config),
            **options,
            settings=wandb.Settings(console="off", silent=True, **{k: v for k, v in limits.items() if k in known}),
        )
        self.run_id = self.run.id

    def log(self, row: dict[str, Any]) -> None:
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

    def headline(self, summary: dict, curves: Path) -> None:
        """Put the figures to publish where W&B shows them first, beside what they were made from, and the curves.

        Args:
            summary: summary.json, whose `last` is the headline.
            curves: PNG file.
        """
        last, best = summary["last"], summary["best"]
        figures = {"top1": last["top1"], "top5": last["top5"], "best_top1": best["top1"], "best_epoch": best["epoch"]}
        figures["train_images_per_second"] = summary["train_images_per_second"]
        facts = {name: printable_all(summary[name]) for name in ("labels", "images", "versions", "git_commit")}

        def send() -> None:
            import wandb

            self.run.config.update(facts, allow_val_change=True)
            self.run.log({"curves": wandb.Image(str(curves))}, step=last["epoch"])
            for name, value in figures.items():
                self.run.summary[name] = value

        self._guard(send)

    def report(self, tables: dict[str, tuple[list, list]], pictures: list[Path]) -> None:
        """Log tables, title -> (columns, rows), and PNG files."""

        def send() -> None:
            import wandb

            logged = {
                title: wandb.Table(columns=columns, data=rows)
                for title, (columns, rows) in printable_all(tables).items()
            }
            self.run.log(logged | {picture.stem: wandb.Image(str(picture)) for picture in pictures})

        self._guard(send)

    def finish(self) -> None:
        """Flush and close the run."""
        self._guard(lambda: self.run.finish())  # looked up after the guard: it may be gone

    def _guard(self, call: Callable[[], object]) -> None:
        if self.run is None:
            return
        try:
            call()
        except Exception as error:
            log.info("W&B failed (%s); the run goes on without it", type(error).__name__)
            self.run = None


def start_tracker(
    project: str | None,
    mode: str,
    api_key: str | None,
    folder: str | Path,
    config: dict[str, Any],
    place: Place,
    run_id: str | None = None,
) -> WandbTracker | NoTracker:
    """Start W&B as the flags say, or return `NoTracker`; never prompts, never writes a key.

    Args:
        project: --wandb-project; None disables W&B unless a mode asks for it.
        mode: --wandb-mode: auto, online, offline or disabled.
        api_key: --wandb-api-key or None.
        folder: the run's folder, where W&B keeps its files.
        config: public arguments.
        place: `Place`.
        run_id: W&B run to continue.
    """
    mode = wandb_mode(project, mode, api_key)
    if mode == "disabled":
        return NoTracker()
    if mode == "online" and not reachable(server()):
        log.info("W&B: %s does not answer, so this run is logged offline; `wandb sync` uploads it later", server())
        mode = "offline"
    if str(folder) != printable(str(folder)):
        log.info("W&B: the name of %s is not UTF-8, which W&B cannot write to; the run goes on without it", folder)
        return NoTracker()
    if api_key:
        os.environ["WANDB_API_KEY"] = api_key
    try:
        return WandbTracker(project, mode, folder, config, run_id, place)
    except ImportError:
        raise InputError(
            "--wandb-project needs the wandb package; pip install wandb, or --wandb-mode disabled"
        ) from None
    except InputError:
        raise
    except Exception as error:
        log.info("W&B could not be started (%s); the run goes on without it", type(error).__name__)
        return NoTracker()


def wandb_mode(project: str | None, mode: str, api_key: str | None) -> str:
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


def server() -> str:
    """URL of the W&B server."""
    return os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"


def reachable(url: str, seconds: float = REACH_SECONDS) -> bool:
    """Whether anything answers at `url` in so many seconds, asked as W&B would: through the proxy, if there is one.

    Asked from a thread, since looking up a name has no time limit of its own.
    """
    answers = []

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds).close()
        except urllib.error.HTTPError:
            answers.append("refuses this question, and is there")
        except urllib.error.URLError as error:
            answers.extend(["has a certificate of its own"] if isinstance(error.reason, ssl.SSLError) else [])
        except (OSError, ValueError, http.client.HTTPException):
            pass
        else:
            answers.append("answers")

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(answers)


def has_netrc_key() -> bool:
    """Whether the user's netrc file has an entry for the W&B server."""
    host = urllib.parse.urlparse(server()).hostname or ""
    path = os.environ.get("NETRC", os.path.expanduser("~/.netrc"))
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
