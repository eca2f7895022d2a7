"""A small network and batches for it, for tests of single steps."""

import torch
from torch import nn

from utils.views.batch import Batch


def small_model():
    """Return a convolution with batch normalisation and a linear layer for 8 x 8 images and 6 classes, from seed 0."""
    torch.manual_seed(0)
    first = nn.Conv2d(3, 8, 3, bias=False)  # the gradient of a bias would be rounding noise, which AdamW enlarges
    return nn.Sequential(first, nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 6))


def batches_on(device, sizes=(8, 8, 8, 3)):
    """Yield random batches of these sizes, the same in every call."""
    generator = torch.Generator().manual_seed(1)
    for size in sizes:
        images = torch.randn(size, 3, 8, 8, generator=generator)
        logits = torch.randn(size, 6, generator=generator)
        yield Batch(images.to(device), logits.to(device), torch.arange(size, device=device) % 6)
