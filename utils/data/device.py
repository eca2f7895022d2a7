"""Training images that stay on the device, where the views are replayed one batch at a time."""

from collections.abc import Iterator, Sequence
from copy import copy
from functools import cached_property
from itertools import product, starmap

import torch
from prefetch_generator import BackgroundGenerator
from torchvision.transforms import functional as TF

from utils.data.batch import Batch, StepTensors
from utils.data.folders import image_sizes
from utils.data.replay import Normalise, mix_by_mask, resize_views
from utils.data.resident import decode_all
from utils.data.workers import ViewDataset
from utils.labels.store import ViewSource
from utils.labels.training_views import TrainingViews
from utils.labels.types import Answers, Mix, answers_of, tensors_of
from utils.labels.views import Views, index_of
from utils.system.distributed import Parts


class DeviceBatches:
    """Training batches replayed on the device from uint8 images that stay there.

    While one part of the labels is in use, the next part is uploaded in the background. The class also works on the
    CPU, but more slowly than `ResidentBatches`.

    Args:
        dataset, epochs, normalise, workers, device: see `WorkerBatches`.
        at_once: number of batches whose labels are uploaded together; None: all batches of an epoch.
    """

    def __init__(
        self,
        dataset: ViewDataset,
        epochs: Sequence[int],
        normalise: Normalise,
        workers: int,
        device: torch.device,
        at_once: int | None = None,
    ) -> None:
        self.device = device
        self.gallery = Gallery.decoded(dataset.samples, dataset.input_size, normalise, workers, device)
        self.show(dataset.source, epochs, at_once)

    def show(self, source: TrainingViews[ViewSource], epochs: Sequence[int], at_once: int | None) -> None:
        """Switch to the batches of another label source; the decoded images stay."""
        self.source, self.batches_per_epoch = source, source.batches_per_epoch
        starts = range(0, self.batches_per_epoch, at_once or self.batches_per_epoch)
        self.parts = [range(start, min(start + starts.step, self.batches_per_epoch)) for start in starts]
        self.uploads = BackgroundGenerator(starmap(self.upload, product(epochs, self.parts)), max_prefetch=1)

    def of_same_images(self, dataset: ViewDataset, epochs: range) -> "DeviceBatches":
        """Return the batches of another `ViewDataset` of the same images, with about as many uploads per epoch."""
        other = copy(self)
        other.show(dataset.source, epochs, -(-dataset.source.batches_per_epoch // len(self.parts)))
        return other

    def upload(self, epoch: int, batches: range) -> list[tuple[torch.Tensor, torch.Tensor, Answers | None]]:
        """Read the labels of `batches` and copy them to the device; return (geometry, mixing, logits) per batch."""
        labels = [self.source.read(epoch, batch) for batch in batches]
        geometry = geometry_of(labels, self.gallery.sizes)
        mixing = torch.stack([mixing_of(one.mix) for one in labels])
        answers = [one.logits for one in labels if one.logits is not None]
        logits = self.put_answers(answers) if answers else [None] * len(labels)
        by_batch = self.put(geometry).split([len(one) for one in labels])
        return list(zip(by_batch, self.put(mixing), logits, strict=True))

    def put_answers(self, batches: Sequence[Answers]) -> list[Answers | None]:
        """Copy the answers of several batches to the device, one copy per kind of tensor; return them per batch."""
        kinds = []
        for tensors in zip(*map(tensors_of, batches), strict=True):  # the same kind of tensor from all batches
            missing = tensors[0] is None
            kinds.append(tensors if missing else self.put(torch.cat(tensors)).split([len(one) for one in tensors]))
        return [answers_of(tensors) for tensors in zip(*kinds, strict=True)]

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        """Copy a tensor to the device without waiting for it."""
        if self.device.type != "cuda":
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """Yield the batches of `epoch`, from `first_batch` on; epochs must be requested in order."""
        for batches in self.parts:
            for batch, (geometry, mixing, logits) in zip(batches, next(self.uploads), strict=True):
                if batch >= first_batch:
                    yield DeviceBatch(self.gallery, geometry, mixing, logits, self.source.parts(epoch, batch))


class Gallery:
    """All training images in device memory.

    Args:
        images: uint8 [N, H, 3, W], padded with zeros. In this layout both matrix products of a replay are plain
            batched products.
        sizes: int64 [N, 2] on the host, (height, width) of each image.
        targets: int64 [N] on the device, folder classes.
        input_size: S.
        normalise: `Normalise` on the device.
    """

    def __init__(
        self, images: torch.Tensor, sizes: torch.Tensor, targets: torch.Tensor, input_size: int, normalise: Normalise
    ) -> None:
        self.images, self.sizes, self.targets = images, sizes, targets
        self.input_size, self.normalise = input_size, normalise

    @classmethod
    def decoded(
        cls, samples: list[tuple[str, int]], input_size: int, normalise: Normalise, workers: int, device: torch.device
    ) -> "Gallery":
        """Return the gallery of a list of (path, class); each decoded image is copied to the device on its own."""
        targets = torch.tensor([target for _, target in samples], device=device)
        sizes = image_sizes(samples).long()
        height, width = sizes.amax(dim=0).tolist()
        images = torch.zeros(len(samples), height, 3, width, dtype=torch.uint8, device=device)
        for place, image in zip(images, decode_all(samples, workers), strict=True):
            pixels = TF.pil_to_tensor(image).to(device)  # [3, h, w]
            place[: image.height, :, : image.width] = pixels.transpose(0, 1)
        return cls(images, sizes, targets, input_size, normalise)

    def replay(self, geometry: torch.Tensor, mixing: torch.Tensor) -> torch.Tensor:
        """Replay and mix the views of a batch: float32 [B, 3, S, S], normalised.

        Args:
            geometry: int64 [B, 7], see `geometry_of`.
            mixing: float32 [5], see `mixing_of`.
        """
        index, top, left, height, width, flip, partner = geometry.unbind(dim=1)
        views = resize_views(self.images[index], top, left, height, width, flip, self.input_size)
        return mix_by_mask(self.normalise(views), partner, mixing)


class DeviceBatch(Batch):
    """A `Batch` that replays its images on the device at the first access to `images`.

    `tensors()` returns the inputs of a step before view replay, so that a captured CUDA graph contains the replay too.
    """

    gallery: Gallery
    geometry: torch.Tensor
    mixing: torch.Tensor

    def __init__(
        self,
        gallery: Gallery,
        geometry: torch.Tensor,
        mixing: torch.Tensor,
        soft_labels: Answers | None,
        parts: Parts | None = None,
    ) -> None:
        vars(self).update(gallery=gallery, geometry=geometry, mixing=mixing, soft_labels=soft_labels, parts=parts)

    def ready(self) -> Batch:
        """Return a plain batch with its views replayed, so that the students' steps do not repeat the replay."""
        return Batch(self.images, self.soft_labels, self.targets, self.parts)

    def tensors(self) -> StepTensors:
        """See `Batch.tensors`."""
        return self.geometry, self.mixing, *tensors_of(self.soft_labels)

    def like(self, tensors: StepTensors) -> "DeviceBatch":
        """See `Batch.like`."""
        geometry, mixing, *soft_labels = tensors
        return DeviceBatch(self.gallery, geometry, mixing, answers_of(soft_labels), self.parts)

    def __len__(self) -> int:
        return len(self.geometry) if self.parts is None else sum(own for own, _ in self.parts)

    @cached_property
    def images(self) -> torch.Tensor:
        """Return the views, normalised and mixed: float32 [B, 3, S, S]."""
        return self.gallery.replay(self.geometry, self.mixing)[: len(self)]

    @cached_property
    def targets(self) -> torch.Tensor:
        """Return the folder classes: int64 [B]."""
        return self.gallery.targets[self.geometry[: len(self), 0]]


def geometry_of(batches: Sequence[Views], sizes: torch.Tensor) -> torch.Tensor:
    """Return image indices, crops, flips and mix partners of several batches in one tensor, for `Gallery.replay`.

    Args:
        batches: `BatchLabels` or `DrawnBatch`es, for example all batches of an epoch.
        sizes: int64 [N, 2], (height, width) of every image.

    Returns:
        int64 [R, 7] on the host: image index, top, left, height, width (pixels), flip, partner row in its batch.
    """
    rows = []
    for one in batches:
        index = index_of(one)
        crops = torch.from_numpy(one.crops(sizes[index].numpy()))
        partner = torch.arange(len(one)) if one.mix.partner is None else one.mix.partner
        rows.append(torch.cat([index[:, None], crops, partner[:, None]], dim=1))
    return torch.cat(rows)


def mixing_of(mix: Mix) -> torch.Tensor:
    """Return a `Mix` of any type, except for the partners, as one tensor: float32 [5].

    The items are the partner's weight outside the box, then y1, x1, y2, x2 of the box. Inside the box every pixel is
    the partner's.
    """
    if mix.box is not None:
        return torch.tensor([0.0, *mix.box])
    own = 1.0 if mix.lam is None else mix.lam
    return torch.tensor([1 - own, 0.0, 0.0, 0.0, 0.0])
