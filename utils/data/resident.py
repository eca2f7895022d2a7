"""Decode training images only once and keep them in memory, because distilled sets are small.

* On the CPU, `ResidentBatches` (this module) keeps the decoded images in host memory. It crops, resizes
  and flips each image with the same function as the worker processes, so both give equal tensors.
* On a GPU, `DeviceBatches` (device.py) keeps the images in device memory as uint8, and crops, resizes and
  flips all images of a batch together. Antialiased resizing is separable, so two matrix products per image
  are enough. With pixels in [0, 1], no value differs from PIL's by more than 1/255. Tensor shapes depend
  only on the batch size, so a CUDA graph can capture this computation together with the training step.

Shapes: N images, B images in a batch, H and W the largest height and width, S the --input-size,
C classes.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from functools import partial

import numpy as np
import torch

from utils.data.batch import Batch
from utils.data.images import Pixels, Samples, height_and_width, load_image, map_images
from utils.data.replay import Normalise, finish_views, replay_view, shuffle_patches
from utils.data.workers import ViewDataset
from utils.labels.types import each
from utils.labels.views import Views, index_of


def decode_all(samples: Samples, channels: int = 3) -> Iterator[Pixels]:
    """Yield every image, decoded to `channels` channels, in order."""
    return map_images(partial(load_image, channels=channels), samples)


class ResidentBatches:
    """Source of training batches that decodes all images once and keeps them in host memory.

    The batches are equal to those of `WorkerBatches`. The arguments are explained there.
    """

    def __init__(
        self, dataset: ViewDataset, epochs: Sequence[int], normalise: Normalise, workers: int, device: torch.device
    ) -> None:
        self.source, self.size = dataset.source, dataset.input_size
        self.batches_per_epoch = self.source.batches_per_epoch
        self.normalise, self.device = normalise, device
        self.targets = torch.tensor([target for _, target in dataset.samples])
        self.images = list(decode_all(dataset.samples, dataset.channels))
        # threads that crop and resize images: as many as PyTorch's threads, which are idle at that time
        self.pool = ThreadPoolExecutor(torch.get_num_threads())

    def of_same_images(self, dataset: ViewDataset, _epochs: range) -> "ResidentBatches":
        """Return a `ResidentBatches` that shares the decoded images and reads the views and labels of `dataset`."""
        other = copy(self)
        other.source, other.batches_per_epoch = dataset.source, dataset.source.batches_per_epoch
        return other

    def views(self, labels: Views) -> torch.Tensor:
        """Return the images of a batch, cropped, resized and flipped, but not yet mixed: [B, S, S, C]."""
        images = [self.images[number] for number in index_of(labels).tolist()]
        if labels.strips is not None:
            images = list(self.pool.map(shuffle_patches, images, labels.strips))
        crops = labels.crops(np.array([height_and_width(image) for image in images]))
        boxes, flips = crops[:, :4].tolist(), (crops[:, 4] == 1).tolist()
        return torch.stack(list(self.pool.map(partial(replay_view, size=self.size), images, boxes, flips)))

    def read(self, epoch: int, batch: int) -> Batch:
        """Return one training batch of `epoch`, mixed, normalised and on the device."""
        labels = self.source.read(epoch, batch)
        images = finish_views(self.views(labels).to(self.device), self.normalise, labels.mix, labels.augment)
        soft_labels = each(labels.logits, lambda tensor: tensor.to(self.device))
        parts = self.source.parts(epoch, batch)
        return Batch(images, soft_labels, self.targets[index_of(labels)].to(self.device)).own(parts)

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """Yield the training batches of `epoch`, from `first_batch` on."""
        return (self.read(epoch, batch) for batch in range(first_batch, self.batches_per_epoch))
