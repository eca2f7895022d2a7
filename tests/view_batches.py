"""Batches of replayed views of the fixture `uneven_images`, from each of the loaders."""

import torch
from helpers import CPU

from utils.config import IMAGENET_MEAN, IMAGENET_STD
from utils.data.replay import Normalise
from utils.data.workers import ViewDataset
from utils.labels.views import DrawnViews, ViewPolicy

SIZES = [(37, 53), (64, 64), (20, 90), (71, 33), (16, 16), (48, 40), (90, 25)]  # (H, W)


class Answered(DrawnViews):
    """Drawn views with random logits: a label store in memory."""

    def read(self, epoch, batch):
        drawn = super().read(epoch, batch)
        logits = torch.randn(len(drawn.index), 5, generator=torch.Generator().manual_seed(10 * epoch + batch)).half()
        return drawn.labelled(logits, [SIZES[i] for i in self.file_numbers[drawn.index].tolist()])


def dataset_of(folder, mix_type, size=32, answered=True):
    """Return the views of `uneven_images`, with random logits of 5 classes unless `answered` is false."""
    source = (Answered if answered else DrawnViews)(ViewPolicy(3, size, 0.08, 1.0, mix_type, 0.8, 1.0), len(SIZES), 3)
    source.file_numbers = torch.tensor([int(path.rsplit("/", 1)[1][:-4]) for path, _ in folder.samples])
    return ViewDataset(folder.samples, source, size)


def normalise_on(device):
    """Return the normalisation by ImageNet's mean and standard deviation."""
    return Normalise(IMAGENET_MEAN, IMAGENET_STD, device)


def batches_of(kind, dataset, device=CPU, epochs=2):
    """Return all batches of a loader class over some epochs."""
    batches = kind(dataset, range(epochs), normalise_on(device), 0, device)
    return [batch for epoch in range(epochs) for batch in batches.epoch(epoch)]
