"""The fast path: a distilled set is small, so its images are decoded once and stay in memory.

* On the CPU (`ResidentBatches`) the decoded images stay in host memory, and each view is replayed by
  the very function that the workers use: the tensors are equal.
* On a GPU (`DeviceBatches`) the images stay in device memory as uint8, and the views of a batch are
  replayed together: antialiased crop + resize + flip is separable, so it is two matrix products per
  image. No value differs from PIL's by more than 1/255. Shapes depend on nothing but the batch size,
  so the replay can be part of a CUDA graph.

Shapes: N images, B images in a batch, H and W the largest height and width, S the --input-size,
C classes.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from itertools import islice

import torch
from PIL import Image
from prefetch_generator import BackgroundGenerator
from torchvision.transforms import functional as TF

from utils.augment import finish_views, replay_view
from utils.data import Batch, WorkerBatches, free_host_memory, load_rgb, parts_of
from utils.errors import InputError
from utils.tracking import log

DECODED_AHEAD = 256  # images that may wait between decoding and their place in memory
PIL_BYTES = 4  # per pixel of a decoded RGB image in PIL


def build_batches(loader, dataset, epochs, normalise, workers, device):
    """Return the training batches of --loader {auto,workers,resident}.

    Args:
        loader: as for `pick_loader`.
        dataset, epochs, normalise, workers, device: as for `WorkerBatches`.

    Raises:
        InputError: an image cannot be read, or `resident` was asked for and does not fit.
    """
    make = pick_loader(loader, dataset.samples, workers, device)
    return make(dataset, epochs, normalise, workers, device)


def pick_loader(loader, samples, workers, device):
    """Return the class of training batches for --loader {auto,workers,resident}, and log which and why.

    `auto` takes resident where the decoded images fit in half of the free memory.
    """
    free, place = free_memory(device)
    needed = 0 if loader == "workers" else decoded_bytes(samples, device, limit=free)
    fits = needed < (free if loader == "resident" else free / 2)
    if loader == "resident" and not fits:
        raise InputError(
            f"--loader resident needs more than the {gigabytes(free)} free in {place} memory for the decoded images; "
            "use --loader workers"
        )
    if loader == "workers" or not fits:
        reason = "as asked" if loader == "workers" else f"decoded images exceed half of the free {place} memory"
        log.info("loader  workers: %s; %d processes (-j)", reason, workers)
        return WorkerBatches
    log.info("loader  resident: decoded images take %s of %s free %s memory", gigabytes(needed), gigabytes(free), place)
    return DeviceBatches if device.type == "cuda" else ResidentBatches


def free_memory(device):
    """Return (bytes free where decoded images would stay, `device` or `host`)."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0], "device"
    return free_host_memory(), "host"


def gigabytes(count):
    """A number of bytes for a log line."""
    return f"{count / 1e9:.2f} GB"


def decoded_bytes(samples, device, limit):
    """Estimate the memory of all decoded images from their headers; stop counting beyond `limit`.

    On the host each image has its own size; on a device all are padded to the largest.
    """
    total = height = width = 0
    for number, (path, _) in enumerate(samples, start=1):
        w, h = header_size(path)
        total += w * h * PIL_BYTES
        height, width = max(height, h), max(width, w)
        needed = 3 * number * height * width if device.type == "cuda" else total
        if needed >= limit:
            break
    return needed


def header_size(path):
    """Return (width, height) of an image file without decoding it."""
    try:
        with Image.open(path) as image:
            return image.size
    except Exception as error:
        raise InputError(f"{path} cannot be decoded ({error or type(error).__name__}); replace the image") from None


def decode_all(samples, workers):
    """Yield every image as PIL RGB, in order, decoded by threads (PIL lets go of the GIL)."""
    paths = iter([path for path, _ in samples])
    with ThreadPoolExecutor(max(workers, len(os.sched_getaffinity(0)))) as pool:
        while ahead := list(islice(paths, DECODED_AHEAD)):
            yield from pool.map(load_rgb, ahead)


class ResidentBatches:
    """Training batches from images decoded once in host memory; equal to those of `WorkerBatches`.

    Args: as for `WorkerBatches`.
    """

    def __init__(self, dataset, epochs, normalise, workers, device):
        self.source, self.size = dataset.source, dataset.input_size
        self.batches_per_epoch = self.source.batches_per_epoch
        self.normalise, self.device = normalise, device
        self.targets = torch.tensor([target for _, target in dataset.samples])
        self.images = list(decode_all(dataset.samples, workers))
        self.pool = ThreadPoolExecutor(torch.get_num_threads())  # between two steps, when the cores are free

    def view(self, labels, slot):
        """Replay one view: uint8 [S, S, 3]."""
        image = self.images[labels.index[slot]]
        box, flip = labels.view(slot, (image.height, image.width))
        return replay_view(image, box, flip, self.size)

    def read(self, epoch, batch):
        """Return one `Batch`."""
        labels = self.source.read(epoch, batch)
        views = torch.stack(list(self.pool.map(partial(self.view, labels), range(len(labels.index)))))
        mixing = labels.mix_index, labels.mix_lam, labels.mix_bbox
        images = finish_views(views.to(self.device), self.normalise, *mixing)
        soft_labels = None if labels.logits is None else labels.logits.to(self.device).float()
        parts = parts_of(self.source, batch)
        return Batch(images, soft_labels, self.targets[labels.index].to(self.device)).own(parts)

    def epoch(self, epoch, first_batch=0):
        """Yield the batches of `epoch`, from `first_batch` on."""
        return (self.read(epoch, batch) for batch in range(first_batch, self.batches_per_epoch))


class DeviceBatches:
    """Training batches replayed on the device from uint8 images that stay there.

    The labels of an epoch go up at once, those of the next one while this one trains. Works on CPU
    tensors as well, more slowly than `ResidentBatches`.

    Args: as for `WorkerBatches`.
    """

    def __init__(self, dataset, epochs, normalise, workers, device):
        self.source, self.device = dataset.source, device
        self.batches_per_epoch = self.source.batches_per_epoch
        self.gallery = Gallery(dataset.samples, dataset.input_size, normalise, workers, device)
        self.uploads = BackgroundGenerator(map(self.upload, epochs), max_prefetch=1)

    def upload(self, epoch):
        """Read the labels of one epoch and put them on the device: one (geometry, mixing, logits) per batch."""
        labels = [self.source.read(epoch, batch) for batch in range(self.batches_per_epoch)]
        geometry = torch.cat([geometry_of(one, self.gallery.sizes) for one in labels])
        mixing = torch.stack([mixing_of(one) for one in labels])
        logits = [None] * len(labels)
        if labels[0].logits is not None:
            logits = self.put(torch.cat([one.logits for one in labels])).split([len(one.logits) for one in labels])
        geometry = self.put(geometry).split([len(one.index) for one in labels])
        return list(zip(geometry, self.put(mixing), logits, strict=True))

    def put(self, tensor):
        """Copy a tensor to the device without waiting for it."""
        if self.device.type != "cuda":
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def epoch(self, _epoch, first_batch=0):
        """Yield the batches of the next epoch, from `first_batch` on."""
        for batch, tensors in enumerate(next(self.uploads)[first_batch:], start=first_batch):
            yield DeviceBatch(self.gallery, *tensors, parts_of(self.source, batch))


class Gallery:
    """All training images in device memory.

    Attributes:
        images: uint8 [N, H, 3, W], padded with zeros; so laid out, both products of a replay are
            plain batched ones.
        sizes: int64 [N, 2] on the host, (height, width) of each image.
        targets: int64 [N], folder classes.
    """

    def __init__(self, samples, input_size, normalise, workers, device):
        self.input_size, self.normalise, self.device = input_size, normalise, device
        self.targets = torch.tensor([target for _, target in samples], device=device)
        width_height = torch.tensor([header_size(path) for path, _ in samples])
        self.sizes = width_height.flip(1)
        height, width = self.sizes.amax(dim=0).tolist()
        self.images = torch.zeros(len(samples), height, 3, width, dtype=torch.uint8, device=device)
        for place, image in zip(self.images, decode_all(samples, workers), strict=True):
            pixels = TF.pil_to_tensor(image).to(device)  # [3, h, w]
            place[: image.height, :, : image.width] = pixels.transpose(0, 1)

    def replay(self, geometry, mixing):
        """Replay and mix the views of a batch: float32 [B, 3, S, S], normalised.

        Args:
            geometry: int64 [B, 7], see `geometry_of`.
            mixing: float32 [6], see `mixing_of`.
        """
        index, *box, flip, partner = geometry.unbind(dim=1)
        views = resize_views(self.images[index], *box, flip, self.input_size)
        return mix_by_mask(self.normalise(views), partner, mixing)


class DeviceBatch(Batch):
    """A `Batch` whose images are replayed on the device when first asked for.

    `tensors()` is what differs from step to step, before the replay: a CUDA graph that is fed with
    it holds the replay too.
    """

    def __init__(self, gallery, geometry, mixing, logits, parts=None):
        vars(self).update(gallery=gallery, geometry=geometry, mixing=mixing, logits=logits, parts=parts)

    def tensors(self):
        """As `Batch.tensors`."""
        return self.geometry, self.mixing, self.logits

    def like(self, tensors):
        """As `Batch.like`."""
        return DeviceBatch(self.gallery, *tensors, self.parts)

    def __len__(self):
        return len(self.geometry) if self.parts is None else sum(own for own, _ in self.parts)

    @cached_property
    def images(self):
        """float32 [B, 3, S, S], normalised and mixed."""
        return self.gallery.replay(self.geometry, self.mixing)[: len(self)]

    @cached_property
    def soft_labels(self):
        """float32 [B, C], or None."""
        return None if self.logits is None else self.logits.float()

    @cached_property
    def targets(self):
        """int64 [B]."""
        return self.gallery.targets[self.geometry[: len(self), 0]]


def geometry_of(labels, sizes):
    """What the rows of a batch need, as one tensor.

    Args:
        labels: `BatchLabels` or `DrawnBatch`.
        sizes: int64 [N, 2], (height, width) of every image.

    Returns:
        int64 [B, 7] on the host: image index, top, left, height, width (pixels), flip, partner row.
    """
    views = [labels.view(slot, size) for slot, size in enumerate(sizes[labels.index].tolist())]
    boxes = torch.tensor([[*box, flip] for box, flip in views])  # [B, 5]
    partner = torch.arange(len(labels.index)) if labels.mix_index is None else labels.mix_index
    return torch.cat([labels.index[:, None], boxes, partner[:, None]], dim=1)


def mixing_of(labels):
    """How a batch is mixed, whatever the type, as one tensor: float32 [6].

    Its items: share of the row itself and of its partner outside the box, then y1, x1, y2, x2 of the
    box, inside which all is the partner's.
    """
    if labels.mix_bbox is not None:
        return torch.tensor([1.0, 0.0, *labels.mix_bbox])
    own = 1.0 if labels.mix_lam is None else labels.mix_lam
    return torch.tensor([own, 1 - own, 0.0, 0.0, 0.0, 0.0])


def mix_by_mask(images, partner, mixing):
    """`augment.mix` with shapes that do not depend on the box.

    Args:
        images: float [B, 3, S, S].
        partner: int64 [B], the row that each row is mixed with.
        mixing: float32 [6], see `mixing_of`.
    """
    own, other, y1, x1, y2, x2 = mixing.unbind()
    pixels = torch.arange(images.shape[-1], device=images.device)
    rows = (pixels >= y1) & (pixels < y2)
    columns = (pixels >= x1) & (pixels < x2)
    inside = rows[:, None] & columns[None, :]  # [S, S]
    return images * torch.where(inside, 0, own) + images[partner] * torch.where(inside, 1, other)


def resize_views(images, top, left, height, width, flip, size, dtype=None):
    """Crop, resize (antialiased bilinear, as PIL's) and flip every image of a batch.

    Args:
        images: uint8 [B, H, 3, W].
        top, left, height, width: int64 [B], crop boxes in pixels.
        flip: int64 [B], 1 to mirror left to right.
        size: S.
        dtype: of the arithmetic. float16 (the default on CUDA, for its matrix units) holds every
            pixel value exactly and results to 1/16 of a level, so rounding at the end stays within
            one level of PIL, which itself rounds in between.

    Returns:
        `dtype` [B, S, S, 3], whole numbers from 0 to 255.
    """
    dtype = dtype or (torch.float16 if images.is_cuda else torch.float32)
    batch, rows, _, columns = images.shape
    across = resize_weights(left, width, flip, size, columns).to(dtype)  # [B, S, W]
    down = resize_weights(top, height, torch.zeros_like(flip), size, rows).to(dtype)  # [B, S, H]
    narrow = images.to(dtype).view(batch, rows * 3, columns) @ across.mT  # [B, H·3, S]
    views = down @ narrow.view(batch, rows, 3 * size)  # [B, S, 3·S]
    return views.round_().view(batch, size, 3, size).transpose(2, 3)


def resize_weights(start, length, reverse, size, pixels):
    """Weights of antialiased bilinear resizing along one axis, with the crop and the flip in them.

    A triangle filter around half-pixel centres; its support is max(scale, 1) pixels, its taps are
    clamped to the crop box and renormalised (Pillow's `Resample.c`).

    Args:
        start, length: int64 [B], the crop along this axis, in pixels.
        reverse: int64 [B], 1 for outputs in reversed order.
        size: S, the number of outputs.
        pixels: the number of pixels along this axis.

    Returns:
        float32 [B, S, pixels]; each row sums to 1.
    """
    length = length[:, None].float()
    scale = length / size
    support = scale.clamp(min=1)
    output = torch.arange(size, device=start.device)
    output = torch.where(reverse[:, None] == 1, size - 1 - output, output)  # [B, S]
    centre = (output + 0.5) * scale / support
    place = torch.arange(pixels, device=start.device) + 0.5 - start[:, None]  # [B, pixels], from the crop's edge
    inside = (place > 0) & (place < length)
    place = torch.where(inside, place / support, float("inf"))  # infinitely far: no weight
    weights = (place[:, None, :] - centre[:, :, None]).abs_().neg_().add_(1).clamp_(min=0)
    return weights.div_(weights.sum(dim=2, keepdim=True))
