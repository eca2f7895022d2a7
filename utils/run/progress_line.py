"""Show one progress bar for a whole training run: time left, images/s, last and best top-1."""

import time
from collections.abc import Iterable, Iterator, Sequence

from utils.data.batch import Batch
from utils.run.checkpoint import Progress
from utils.system.log import ProgressBar

FORMAT = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"


class ProgressLine:
    """Progress on stderr that covers all remaining batches of a run; see `ProgressBar`.

    Args:
        epochs: number of epochs of the whole run.
        enabled: whether to show it.
    """

    def __init__(self, epochs: int, enabled: bool) -> None:
        self.epochs, self.enabled = epochs, enabled
        self.name = ""
        self.speed = ""
        self.top1 = ""
        self.bar = ProgressBar(disable=True)

    def start(self, batches: int) -> None:
        """Show the progress bar of a run that still has to train on `batches` batches."""
        self.bar = ProgressBar(
            total=batches, disable=not self.enabled, bar_format=FORMAT, smoothing=0, dynamic_ncols=True
        )

    def training(self, epoch: int, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the training batches of an epoch. After each batch, advance the progress bar and update images/s."""
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
        """Show in the progress bar that validation is running."""
        self.bar.set_description_str(f"{self.name}, validation")

    def evaluated(self, students: Sequence[Progress]) -> None:
        """Show the last and the best top-1 in the progress bar; each is the maximum over all students."""
        last = [row["val_top1"] for one in students for row in one.history[-1:] if row["val_top1"] is not None]
        best = [one.best_top1 for one in students if one.best_top1 is not None]
        if last and best:
            self.top1 = f", top-1 {max(last):.2f}%, best {max(best):.2f}%"
            self._show()

    def _show(self) -> None:
        self.bar.set_postfix_str(self.speed + self.top1, refresh=False)

    def close(self) -> None:
        """Remove the progress bar from the terminal."""
        self.bar.close()
