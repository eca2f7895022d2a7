"""Batches of replayed views: of the fixture `uneven_images` from each loader, or made here from image files."""

import numpy as np
import torch
from helpers import CPU, SIDE
from PIL import Image

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


def views_from_files(samples, drawn):
    """Return the mixed, normalised views of a batch, made with PIL and numpy: float32 [B, 3, S, S]."""
    images = []
    for slot, index in enumerate(drawn.index.tolist()):
        image = Image.open(samples[index][0]).convert("RGB")
        (top, left, height, width), flip = drawn.view(slot, (image.height, image.width))
        view = image.crop((left, top, left + width, top + height)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        pixels = np.asarray(view, dtype=np.float32)[:, :: -1 if flip else 1] / 255
        images.append((pixels - IMAGENET_MEAN) / IMAGENET_STD)
    images, mix = np.stack(images).transpose(0, 3, 1, 2), drawn.mix
    mixed = images.copy()
    if mix.box is not None:
        y1, x1, y2, x2 = mix.box
        mixed[:, :, y1:y2, x1:x2] = images[mix.partner.numpy(), :, y1:y2, x1:x2]
    elif mix.partner is not None:
        mixed = mix.lam * images + (1 - mix.lam) * images[mix.partner.numpy()]
    return torch.from_numpy(mixed).float()
