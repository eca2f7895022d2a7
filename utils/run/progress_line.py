"""Progress bar for a whole run: time left, images/s, last and best top-1."""

import time
from collections.abc import Iterable, Iterator, Sequence

from tqdm import tqdm

from utils.data.batch import Batch
from utils.run.checkpoint import Progress

FORMAT = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"


class ProgressLine:
    """One line on stderr for the remaining epochs of a run; hidden if stderr is no terminal.

    Args:
        epochs: number of epochs of the whole run.
        enabled: False hides the line on a terminal too.
    """

    def __init__(self, epochs: int, enabled: bool) -> None:
        self.epochs, self.enabled = epochs, enabled
        self.name = ""
        self.speed = ""
        self.top1 = ""
        self.bar = tqdm(disable=True)

    def start(self, batches: int) -> None:
        """Show the line; `batches` is the number that remains in the run."""
        hide = None if self.enabled else True  # None: tqdm hides the bar if stderr is no terminal
        self.bar = tqdm(total=batches, leave=False, disable=hide, bar_format=FORMAT, smoothing=0, dynamic_ncols=True)

    def training(self, epoch: int, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches of an epoch, and advance the bar after each."""
        self.name = f"epoch {epoch + 1}/{self.epochs}"
        self.bar.set_description_str(self.name, refresh=False)
        images = 0
        started = time.time()
        for batch in batches:
            yield batch
            images += batch.whole
            self.speed = f"{images / (time.time() - started):.0f} images/s"
            self._show()
            self.bar.update()

    def evaluating(self) -> None:
        """Show that validation is running."""
        self.bar.set_description_str(f"{self.name}, validation")

    def evaluated(self, students: Sequence[Progress]) -> None:
        """Show the last and the best top-1, each the maximum over all students."""
        last = [row["val_top1"] for one in students for row in one.history[-1:] if row["val_top1"] is not None]
        best = [one.best_top1 for one in students if one.best_top1 is not None]
        if last and best:
            self.top1 = f", top-1 {max(last):.2f}%, best {max(best):.2f}%"
            self._show()

    def _show(self) -> None:
        self.bar.set_postfix_str(self.speed + self.top1, refresh=False)

    def close(self) -> None:
        """Remove the line."""
        self.bar.close()
