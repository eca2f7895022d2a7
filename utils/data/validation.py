"""Load the validation images; decode them only once and keep them in memory if they fit."""

import hashlib
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional as TF

from utils.config import default_val_resize
from utils.data.identity import pixel_digest
from utils.data.images import Samples, height_and_width, load_image
from utils.data.replay import Normalise, resize_floats
from utils.data.workers import guarded, start_worker
from utils.system.distributed import World

ROWS_ON_A_DEVICE = 512  # batch size of evaluation on a GPU
HOST = torch.device("cpu")


class CentreCrops(Dataset):
    """Dataset of validation images, resized to `resize` pixels on the shorter side and cropped to the central S x S.

    If `resize` is `squash`, both sides are resized to S pixels, and nothing is cropped.

    An item is (image [S, S, C], class, digest). The image is uint8, or float32 in a set of floating-point images. The
    digest is an int64 hash of the decoded pixels and the class, or 0 if the attribute `digesting` is False.
    """

    def __init__(self, samples: Samples, input_size: int, resize: int | str, channels: int = 3):
        self.samples, self.input_size, self.resize, self.channels = samples, input_size, resize, channels
        self.digesting = True

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, item: int) -> tuple[torch.Tensor, int, int]:
        ref, target = self.samples[item]
        image = load_image(ref, self.channels)
        digest = 0
        if self.digesting:
            number = hashlib.blake2b(target.to_bytes(4, "little") + pixel_digest(image), digest_size=8)
            digest = int.from_bytes(number.digest(), "little", signed=True)
        size = self.resized(*height_and_width(image))
        if isinstance(image, torch.Tensor):
            image = TF.center_crop(resize_floats(image, size), self.input_size)
        else:
            image = TF.pil_to_tensor(TF.center_crop(TF.resize(image, list(size)), self.input_size))
        return image.permute(1, 2, 0), target, digest

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Return the size (height, width) in pixels to which an image is resized before its centre is cropped."""
        if isinstance(self.resize, str):  # squash
            return self.input_size, self.input_size
        shorter = min(height, width)  # gets length `resize`; the longer side is rounded down, as in torchvision
        return self.resize * height // shorter, self.resize * width // shorter


class ValidationBatches:
    """Validation batches in file order; by default, images are decoded only once and kept in memory.

    Iterating yields (images float [B, C, S, S], targets int64 [B]) on the device. --batch-size is not used, because
    the batch size does not affect the result of an evaluation.

    Attributes:
        digest: sum of the digests of all images, modulo 2^64. The sum identifies the images and their classes,
            in any order. Before the first pass is complete, `digest` is None.

    Args:
        samples: list of (image, class).
        input_size: S, in pixels.
        normalise: `Normalise`, applied on the device.
        workers: number of worker processes that decode images.
        device: torch.device.
        batch_size: default: ROWS_ON_A_DEVICE on a GPU, 64 on the CPU.
        keep: device on which the decoded images are kept after the first pass. If None, every pass decodes the images.
        resize: pixels of the shorter side before the centre is cropped, or `squash`, see `CentreCrops` (default:
            `default_val_resize`).
        channels: C, number of channels of an image: 3 for RGB, 1 for grey.
    """

    def __init__(
        self,
        samples: Samples,
        input_size: int,
        normalise: Normalise,
        workers: int,
        device: torch.device,
        batch_size: int | None = None,
        keep: torch.device | None = HOST,
        resize: int | str | None = None,
        channels: int = 3,
    ):
        self.device, self.normalise = device, normalise
        self.images = CentreCrops(samples, input_size, resize or default_val_resize(input_size), channels)
        self.digest: int | None = None
        self.loader = DataLoader(
            self.images,
            batch_size=batch_size or (64 if device.type == "cpu" else ROWS_ON_A_DEVICE),
            num_workers=workers,
            worker_init_fn=start_worker,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),
        )
        self.keep = keep
        self.kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __len__(self) -> int:
        return len(self.loader)

    def digest_of_all(self, world: World) -> str | None:
        """Return one digest of the validation images of all ranks, 16 hex digits.

        Returns None if a rank has not yet completed a pass over its images.
        """
        digests = [digest for digest in world.all_gather_object(self.digest) if digest is not None]
        return f"{sum(digests) % 2**64:016x}" if len(digests) == world.size else None

    def decoded(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield batches (images [B, S, S, C], targets int64 [B]); decode the images unless they are kept in memory."""
        if self.kept:
            yield from self.kept
            return
        kept = []
        total = 0
        for images, targets, digests in guarded(self.loader):
            total += sum(digests.tolist())
            # keep copies of the tensors, because the workers' tensors are in shared memory, which is scarce
            if self.keep is not None:
                images, targets = images.to(self.keep, copy=True), targets.to(self.keep, copy=True)
                kept.append((images, targets))
            yield images, targets
        self.kept = kept
        if self.images.digesting:
            self.digest = total % 2**64
            self.images.digesting = False

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for images, targets in self.decoded():
            images = self.normalise(images.to(self.device, non_blocking=True))
            yield images, targets.to(self.device, non_blocking=True)
