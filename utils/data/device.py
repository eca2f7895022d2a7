"""Keep all training images in device memory, and crop, resize, flip and mix them there, batch by batch."""

from collections.abc import Iterator, Sequence
from copy import copy
from functools import cached_property
from itertools import product, starmap

import torch
from prefetch_generator import BackgroundGenerator
from torchvision.transforms import functional as TF

from utils.data.batch import Batch, StepTensors
from utils.data.images import Samples, height_and_width, image_sizes
from utils.data.replay import Normalise, mix_by_mask, resize_views
from utils.data.resident import decode_all
from utils.data.workers import ViewDataset
from utils.labels.store import ViewSource
from utils.labels.training_views import TrainingViews
from utils.labels.types import Answers, Mix, answers_of, tensors_of
from utils.labels.views import Views, index_of
from utils.system.distributed import Parts


class DeviceBatches:
    """Source of training batches that keeps all images on the device (uint8), and crops, resizes and mixes them there.

    A background thread uploads the labels of the next batches to the device while earlier batches are in use.
    The class also works on the CPU, but more slowly than `ResidentBatches`.

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
        self.gallery = Gallery.decoded(dataset.samples, dataset.input_size, normalise, device, dataset.channels)
        self.show(dataset.source, epochs, at_once)

    def show(self, source: TrainingViews[ViewSource], epochs: Sequence[int], at_once: int | None) -> None:
        """Use the labels of `source` from now on, and start to upload them; the images on the device do not change.

        Args:
            source: views and labels.
            epochs: epochs that will be requested, in this order.
            at_once: number of batches whose labels are uploaded together; None: all batches of an epoch.
        """
        self.source, self.batches_per_epoch = source, source.batches_per_epoch
        starts = range(0, self.batches_per_epoch, at_once or self.batches_per_epoch)
        self.parts = [range(start, min(start + starts.step, self.batches_per_epoch)) for start in starts]
        self.uploads = BackgroundGenerator(starmap(self.upload, product(epochs, self.parts)), max_prefetch=1)

    def of_same_images(self, dataset: ViewDataset, epochs: range) -> "DeviceBatches":
        """Return a `DeviceBatches` for other views and labels of the same images. The images are not copied.

        If this object uploads the labels of an epoch in k parts, the new object uses at most k parts.

        Args:
            dataset: `ViewDataset` of the same images.
            epochs: epochs that will be requested, in this order.
        """
        other = copy(self)
        other.show(dataset.source, epochs, -(-dataset.source.batches_per_epoch // len(self.parts)))
        return other

    def upload(self, epoch: int, batches: range) -> list[tuple]:
        """Read the labels of some batches of an epoch, and copy them to the device.

        Returns:
            for each batch, a tuple (geometry, mixing, logits, parameters):

            * geometry: int64 [B, 7 or more], see `geometry_of`.
            * mixing: float32 [5], see `mixing_of`.
            * logits: the teacher's logits; None without soft labels.
            * parameters: float32 [B, P], parameters of the augmentation; None without augmentation.
        """
        labels = [self.source.read(epoch, batch) for batch in batches]
        geometry = geometry_of(labels, self.gallery.sizes)
        mixing = torch.stack([mixing_of(one.mix) for one in labels])
        answers = [one.logits for one in labels if one.logits is not None]
        logits = self.put_answers(answers) if answers else [None] * len(labels)
        rows = [len(one) for one in labels]
        by_batch = self.put(geometry).split(rows)
        drawn = [one.augment for one in labels if one.augment is not None]
        parameters = self.put(torch.cat(drawn)).split(rows) if drawn else [None] * len(labels)
        return list(zip(by_batch, self.put(mixing), logits, parameters, strict=True))

    def put_answers(self, batches: Sequence[Answers]) -> list[Answers | None]:
        """Copy the logits of several batches to the device; return the logits of each batch, now on the device.

        For each kind of tensor, the tensors of all batches are concatenated and then copied at once. `TopK` has three
        kinds: values, classes and rest. `Weighted` has one kind more, the weights.
        """
        kinds = []
        # `tensors`: one tensor from each batch, all of the same kind, for example the values of `TopK`
        for tensors in zip(*map(tensors_of, batches), strict=True):
            missing = tensors[0] is None
            kinds.append(tensors if missing else self.put(torch.cat(tensors)).split([len(one) for one in tensors]))
        return [answers_of(tensors) for tensors in zip(*kinds, strict=True)]

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        """Start to copy a tensor to the GPU, and return the copy without waiting; on the CPU, return the tensor."""
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """Yield the training batches of `epoch`, from `first_batch` on; epochs must be requested in order."""
        for batches in self.parts:
            for batch, (geometry, mixing, logits, parameters) in zip(batches, next(self.uploads), strict=True):
                if batch >= first_batch:
                    parts = self.source.parts(epoch, batch)
                    yield DeviceBatch(self.gallery, geometry, mixing, logits, parts, parameters)


class Gallery:
    """All training images in device memory.

    Args:
        images: uint8 or float32 [N, H, C, W], each padded with zeros to H x W pixels. With this layout, `resize_views`
            need not transpose the images.
        sizes: int64 [N, 2] on the host, (height, width) of each image before padding.
        targets: int64 [N] on the device, class of each image.
        input_size: S, side of the model's input in pixels.
        normalise: `Normalise` on the device.
    """

    def __init__(
        self, images: torch.Tensor, sizes: torch.Tensor, targets: torch.Tensor, input_size: int, normalise: Normalise
    ) -> None:
        self.images, self.sizes, self.targets = images, sizes, targets
        self.input_size, self.normalise = input_size, normalise

    @classmethod
    def decoded(
        cls,
        samples: Samples,
        input_size: int,
        normalise: Normalise,
        device: torch.device,
        channels: int = 3,
    ) -> "Gallery":
        """Decode the images of `samples`, a list of (image, class); return them on the device, as a `Gallery`."""
        targets = torch.tensor([target for _, target in samples], device=device)
        sizes = image_sizes(samples).long()
        height, width = sizes.amax(dim=0).tolist()
        dtype = torch.uint8 if normalise.values == "bytes" else torch.float32
        images = torch.zeros(len(samples), height, channels, width, dtype=dtype, device=device)
        for place, image in zip(images, decode_all(samples, channels), strict=True):
            h, w = height_and_width(image)
            pixels = image if isinstance(image, torch.Tensor) else TF.pil_to_tensor(image)  # [C, h, w]
            place[:h, :, :w] = pixels.to(device).transpose(0, 1)
        return cls(images, sizes, targets, input_size, normalise)

    def replay(
        self, geometry: torch.Tensor, mixing: torch.Tensor, parameters: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the augmented images of a batch: cropped, resized, flipped, normalised and mixed.

        Args:
            geometry: int64 [B, 7 or more], images, crops, flips, mix partners and strips, see `geometry_of`.
            mixing: float32 [5], mixing weight and cutmix box, see `mixing_of`.
            parameters: random parameters of the augmentation, float32 [B, P]; None without augmentation.

        Returns:
            float32 [B, C, S, S].
        """
        index, top, left, height, width, flip, partner = geometry[:, :7].unbind(dim=1)
        strips = (geometry[:, 7:9], geometry[:, 9:].unflatten(1, (2, -1))) if geometry.shape[1] > 7 else None
        views = resize_views(self.images[index], top, left, height, width, flip, self.input_size, strips=strips)
        return mix_by_mask(self.normalise(views, parameters), partner, mixing)


class DeviceBatch(Batch):
    """A `Batch` whose images are cropped, resized, flipped and mixed on the device when `images` is first read.

    `tensors()` returns the crops and flips instead of the finished images, so that a captured CUDA graph of the
    training step also computes the images.
    """

    gallery: Gallery
    geometry: torch.Tensor
    mixing: torch.Tensor
    parameters: torch.Tensor | None

    def __init__(
        self,
        gallery: Gallery,
        geometry: torch.Tensor,
        mixing: torch.Tensor,
        soft_labels: Answers | None,
        parts: Parts | None = None,
        parameters: torch.Tensor | None = None,
    ) -> None:
        vars(self).update(gallery=gallery, geometry=geometry, mixing=mixing, soft_labels=soft_labels, parts=parts)
        vars(self).update(parameters=parameters)

    def ready(self) -> Batch:
        """Return a plain `Batch` with the finished images, so that they are computed once for all students."""
        return Batch(self.images, self.soft_labels, self.targets, self.parts)

    def tensors(self) -> StepTensors:
        """Return crops and flips, mixing and soft labels, to be copied into the inputs of a captured CUDA graph."""
        return self.geometry, self.mixing, self.parameters, *tensors_of(self.soft_labels)

    def like(self, tensors: StepTensors) -> "DeviceBatch":
        """Return a new batch made of `tensors`. They must have the same order as the tensors from `self.tensors()`."""
        geometry, mixing, parameters, *soft_labels = tensors
        return DeviceBatch(self.gallery, geometry, mixing, answers_of(soft_labels), self.parts, parameters)

    def __len__(self) -> int:
        return len(self.geometry) if self.parts is None else sum(own for own, _ in self.parts)

    @cached_property
    def images(self) -> torch.Tensor:
        """Return this rank's augmented images, normalised and mixed: float32 [B, C, S, S]."""
        return self.gallery.replay(self.geometry, self.mixing, self.parameters)[: len(self)]

    @cached_property
    def targets(self) -> torch.Tensor:
        """Return the class of each of this rank's images: int64 [B]."""
        return self.gallery.targets[self.geometry[: len(self), 0]]


def geometry_of(batches: Sequence[Views], sizes: torch.Tensor) -> torch.Tensor:
    """Return image indices, crops, flips and mix partners of several batches in one tensor, for `Gallery.replay`.

    Args:
        batches: crops, flips and mixing of each batch, as `BatchLabels` or `DrawnBatch`.
        sizes: int64 [N, 2], (height, width) of every image.

    Returns:
        int64 [R, 7] on the host, where R is the number of rows of all batches together. The columns are: image index;
        top, left, height, width of the crop in pixels; flip (0 or 1); row of the mix partner within the batch. If
        images are cut into F strips, 2 + 2F columns follow: height and width of the image, and `BatchViews.strips`.
    """
    rows = []
    for one in batches:
        index = index_of(one)
        crops = torch.from_numpy(one.crops(sizes[index].numpy()))
        partner = torch.arange(len(one)) if one.mix.partner is None else one.mix.partner
        strips = [] if one.strips is None else [sizes[index], one.strips.flatten(1)]
        rows.append(torch.cat([index[:, None], crops, partner[:, None], *strips], dim=1))
    return torch.cat(rows)


def mixing_of(mix: Mix) -> torch.Tensor:
    """Return the mixing weight and the cutmix box of a batch as one tensor: float32 [5].

    The first item is the weight of the partner image outside the box: 0 for cutmix, 1 - lam for mixup. The other items
    are y1, x1, y2, x2 of the box, in pixels; all pixels in the box come from the partner image. Without cutmix, the box
    is empty.
    """
    if mix.box is not None:
        return torch.tensor([0.0, *mix.box])
    own = 1.0 if mix.lam is None else mix.lam
    return torch.tensor([1 - own, 0.0, 0.0, 0.0, 0.0])
