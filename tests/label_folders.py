"""Tiny label folders in the format of each project, all of the same views."""

from dataclasses import replace

import numpy as np
import torch
from helpers import BATCH, CLASSES, PER_CLASS, SIDE, draw_labels
from helpers import make_labels as make_prism

from utils.labels.hald import HaldWriter
from utils.labels.lpqld import FlatWriter
from utils.labels.sre2l import TarWriter
from utils.labels.types import TopK
from utils.labels.views import DrawnViews, ViewPolicy

IMAGES = CLASSES * PER_CLASS  # 12: two full batches of 5 an epoch


def epochs_of_labels(epochs=2):
    """Return the labels that `make_labels` writes: for each epoch a list of `BatchLabels`."""
    views = DrawnViews(ViewPolicy(42, 32, 0.08, 1.0, "cutmix", 0.8, 1.0), IMAGES, BATCH)
    return [[draw_labels(e, b, views) for b in range(views.batches_per_epoch)] for e in range(epochs)]


def make_flat(folder, top=None):
    """Write LPLD's folder, or LPQLD's with the `top` largest logits."""
    writer = FlatWriter(folder)
    for epoch, batches in enumerate(epochs_of_labels()):
        full = [labels for labels in batches if len(labels) == BATCH]
        if top:
            full = [replace(labels, logits=TopK(*labels.logits.topk(top, dim=1), None)) for labels in full]
        writer.write(epoch, full)
    writer.finish()


def make_hald(folder, epochs=2):
    """Write HALD's folder: probabilities at temperature 2."""
    writer = HaldWriter(folder)
    for epoch, batches in enumerate(epochs_of_labels(epochs)):
        writer.write(epoch, [replace(labels, logits=(labels.logits / 2).log_softmax(dim=1)) for labels in batches])
    writer.finish()


def make_wmdd(folder):
    """Write WMDD's folder: epochs in the order of the reference's sampler, with a weight of each image."""
    weights = torch.rand(IMAGES, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    writer = TarWriter(folder)
    for epoch, batches in enumerate(epochs_of_labels()):
        writer.write(epoch, [replace(labels, weights=weights[labels.index]) for labels in batches])
    return weights


def epochs_with_cutouts():
    """Return for each epoch a list of `BatchLabels` without flips and mixing, whose views have coloured cutouts."""
    views = DrawnViews(ViewPolicy(42, SIDE, 0.08, 1.0, "none", 0.8, 1.0, hflip=0), IMAGES, BATCH)
    epochs = [[draw_labels(e, b, views) for b in range(views.batches_per_epoch)] for e in range(2)]
    rng = np.random.default_rng(3)

    def cutouts(rows):
        centres, half = rng.integers(SIDE, size=(rows, 2)) / SIDE, np.full((rows, 2), int(SIDE / 2 + 0.5) / SIDE)
        return torch.tensor(np.concatenate([centres, half, rng.integers(256, size=(rows, 3))], axis=1)).float()

    return [[replace(labels, augment=cutouts(len(labels))) for labels in batches] for batches in epochs]


def make_cutouts(folder, top=None):
    """Write the folder of LPLD for ImageNet-21K, or LPQLD's with the `top` largest logits."""
    writer = FlatWriter(folder)
    for epoch, batches in enumerate(epochs_with_cutouts()):
        full = [labels for labels in batches if len(labels) == BATCH]
        if top:
            full = [replace(labels, logits=TopK(*labels.logits.topk(top, dim=1), None)) for labels in full]
        writer.write(epoch, full)
    writer.finish()


def make_small_epochs(folder):
    """Write LPLD's older layout: folders of six items in small dtypes, in the order of the reference's sampler."""
    make_prism(folder, epochs=2)
    for path in folder.glob("epoch_*/batch_*.tar"):
        items = torch.load(path, weights_only=False)[:6]
        items[0], items[2] = items[0].half(), items[2].to(torch.uint8)
        items[4] = [torch.tensor(n, dtype=torch.uint8) for n in items[4]]
        torch.save(items, path)


MAKERS = {
    "prism": lambda folder: make_prism(folder, epochs=2),
    "sre2l": make_small_epochs,
    "lpld": make_flat,
    "lpqld": lambda folder: make_flat(folder, 2),
    "hald": make_hald,
    "wmdd": make_wmdd,
    "lpld_21k": make_cutouts,
    "lpqld_21k": lambda folder: make_cutouts(folder, 2),
}
