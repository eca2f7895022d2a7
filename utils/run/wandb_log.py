"""Log to Weights & Biases; a failure of W&B never stops a run."""

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

from utils.system.errors import InputError, printable, printable_all
from utils.system.log import log

INIT_SECONDS, FINISH_SECONDS = 15, 60  # time limits for W&B at the start and at the end of a run
REACH_SECONDS = 2  # if the server does not answer within this time, the run is logged offline
NAME_LETTERS, TAG_LETTERS = 128, 64  # maximum lengths that W&B accepts for a group and for a tag


class NoTracker:
    """Tracker that sends nothing. It replaces `WandbTracker` if W&B is disabled or cannot be started."""

    run_id = None

    def log(self, row: dict) -> None:
        """Ignore the metrics of an epoch, because this run does not use W&B."""

    def headline(self, summary: dict, curves: Path) -> None:
        """Ignore the final results, because this run does not use W&B."""

    def finish(self) -> None:
        """Do nothing, because there is no W&B run to close."""


@dataclass(frozen=True)
class RunMetadata:
    """Name, group and tags of a run at W&B.

    Attributes:
        name: name of the run.
        group: name of the group at W&B. By default, runs that differ only in the seed get the same group.
        job_type: `train` or `report`.
        tags: words by which runs can be filtered at W&B.
        several: whether this process trains several students at once, each with its own W&B run.
    """

    name: str
    group: str
    job_type: str
    tags: tuple[str, ...] = ()
    several: bool = False


def run_metadata(settings: Mapping[str, Any]) -> RunMetadata:
    """Return the W&B metadata of a training run; `settings` is the content of its args.json."""
    fkd_path, model, loss = settings.get("fkd_path"), settings["model"], settings["loss_type"]
    if fkd_path:
        labels = Path(fkd_path).name
    elif settings["teachers"]:
        labels = "live teacher"
    else:
        labels = "hard labels"
    images = Path(settings["train_dir"]).name
    group = settings["wandb_group"] or f"{model}, {images}, {labels}, {loss}, {settings['epochs']} epochs"
    words = [*(settings["wandb_tags"] or []), model, images, labels, loss]
    tags = tuple(dict.fromkeys(word[:TAG_LETTERS] for word in words))
    name = Path(settings["output_dir"]).name
    return RunMetadata(name, group[:NAME_LETTERS], "train", tags, settings["side_by_side"] > 1)


class WandbTracker:
    """Tracker that sends the metrics of a run to W&B.

    If W&B fails, this is logged once, and nothing more is sent to W&B. Training goes on.

    Args:
        project: name of the W&B project.
        mode: `online` or `offline`.
        folder, config, run_id, metadata: same as for `start_tracker`.

    Raises:
        ImportError: the wandb package is not installed.
        InputError: several students train in this process, but the installed wandb supports only one run per process.
    """

    def __init__(
        self,
        project: str | None,
        mode: str,
        folder: str | Path,
        config: dict[str, Any],
        run_id: str | None,
        metadata: RunMetadata,
    ) -> None:
        import wandb

        limits: dict[str, Any] = {"init_timeout": INIT_SECONDS, "finish_timeout": FINISH_SECONDS}
        # fields of wandb's Settings class; old versions of wandb lack some of the fields that are set below
        known = getattr(wandb.Settings, "model_fields", {})
        if metadata.several and "create_new" not in str(known.get("reinit")):
            raise InputError("--wandb-project: several students need a newer wandb; pip install --upgrade wandb")
        options: dict[str, Any] = {"mode": mode}
        if metadata.several:
            options["reinit"] = "create_new"
        self.run: Any = wandb.init(
            project=project,
            name=printable(metadata.name),
            group=printable(metadata.group),
            job_type=metadata.job_type,
            tags=printable_all(metadata.tags),
            id=run_id,
            resume="allow" if run_id else None,
            dir=str(folder),
            config=printable_all(config),
            **options,
            settings=wandb.Settings(console="off", silent=True, **{k: v for k, v in limits.items() if k in known}),
        )
        self.run_id = self.run.id

    def log(self, row: dict[str, Any]) -> None:
        """Send one row of metrics.csv (the metrics of one epoch) to W&B.

        Metrics are named as in the reference code of SRe2L and PRISM, for example `train/Top1` and `val/top1`.
        """
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
        """Send the final results of a run to W&B, when training has ended.

        The accuracies and the training speed go to the summary of the W&B run. Facts about labels, images, package
        versions and git commit go to the config of the W&B run. The plot of the training curves is logged as an image.

        Args:
            summary: content of summary.json. Its entry `last` holds the top-1 and top-5 of the last epoch.
            curves: path of curves.png.
        """
        last, best = summary["last"], summary["best"]
        figures = {"top1": last["top1"], "top5": last["top5"], "best_top1": best["top1"], "best_epoch": best["epoch"]}
        figures["best_note"] = best["note"]
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
        """Send the tables and figures of a report to W&B.

        Args:
            tables: {title: (column names, rows)}.
            pictures: paths of PNG files.
        """

        def send() -> None:
            import wandb

            logged = {
                title: wandb.Table(columns=columns, data=rows)
                for title, (columns, rows) in printable_all(tables).items()
            }
            self.run.log(logged | {picture.stem: wandb.Image(str(picture)) for picture in pictures})

        self._guard(send)

    def finish(self) -> None:
        """Send all remaining data and close the W&B run."""
        # self.run may be None; `_guard` checks this before it calls the lambda
        self._guard(lambda: self.run.finish())

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
    metadata: RunMetadata,
    run_id: str | None = None,
) -> WandbTracker | NoTracker:
    """Start a W&B run as the flags say, and return its tracker.

    If W&B is disabled or cannot be started, return a `NoTracker`, which sends nothing. If the W&B server does not
    answer, the run is logged offline. This function never asks for input, and never writes the API key to disk.

    Args:
        project: --wandb-project. If it is None and `mode` is auto, W&B is disabled.
        mode: --wandb-mode: auto, online, offline or disabled.
        api_key: --wandb-api-key or None.
        folder: output folder of the run, where W&B puts its files.
        config: settings of the run, without secrets, to be shown at W&B.
        metadata: name, group and tags of the run at W&B.
        run_id: id of the W&B run to continue, or None to start a new W&B run.

    Raises:
        InputError: the wandb package is missing; the package is too old for several students in one process; or
            `mode` is online or offline and there is no project.
    """
    mode = wandb_mode(project, mode, api_key)
    if mode == "disabled":
        return NoTracker()
    if mode == "online" and not reachable(server()):
        log.info("W&B: %s does not answer, so this run is logged offline; `wandb sync` uploads it later", server())
        mode = "offline"
    if str(folder) != printable(str(folder)):
        log.info("W&B: the name of %s is not UTF-8, and W&B cannot write to it; the run goes on without W&B", folder)
        return NoTracker()
    if api_key:
        os.environ["WANDB_API_KEY"] = api_key
    try:
        return WandbTracker(project, mode, folder, config, run_id, metadata)
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
    """Return the mode in which W&B runs: online, offline or disabled.

    If `mode` (--wandb-mode) is not auto, return it unchanged. In mode auto, return disabled if there is no project,
    online if there is an API key, and otherwise offline. A line is logged if the key is missing.

    Raises:
        InputError: `mode` is online or offline, but there is no project.
    """
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
    """Return the URL of the W&B server."""
    return os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"


def reachable(url: str, seconds: float = REACH_SECONDS) -> bool:
    """Return whether a server answers at `url` within `seconds`.

    Any answer counts, even an error status. Like wandb, this function uses the proxy from the environment variables.
    The request is made in a thread, because a DNS lookup has no timeout.
    """
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds).close()
            answered.set()
        except urllib.error.HTTPError:  # the server answered with an error status, which counts as an answer
            answered.set()
        except urllib.error.URLError as error:
            # the server answered, but Python does not trust its certificate; wandb may trust it
            if isinstance(error.reason, ssl.SSLError):
                answered.set()
        except (OSError, ValueError, http.client.HTTPException):
            pass

    threading.Thread(target=ask, daemon=True).start()
    return answered.wait(seconds)


def has_netrc_key() -> bool:
    """Return whether the user's netrc file has a key for the W&B server."""
    host = urllib.parse.urlparse(server()).hostname or ""
    path = os.environ.get("NETRC", os.path.expanduser("~/.netrc"))
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
