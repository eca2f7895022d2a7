"""Validation images, decoded once and kept where they fit."""

from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional as TF

from utils.system.memory import host_keeps
from utils.views.folders import Samples, load_rgb
from utils.views.replay import Normalise
from utils.views.workers import guarded, start_worker

ROWS_ON_A_DEVICE = 512  # that are evaluated at once


class CentreCrops(Dataset):
    """Validation images: shorter side to `S * 256 / 224`, then the centre S x S."""

    def __init__(self, samples: Samples, input_size: int):
        self.samples, self.input_size = samples, input_size

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, item: int) -> tuple[torch.Tensor, int]:
        path, target = self.samples[item]
        image = TF.resize(load_rgb(path), round(self.input_size * 256 / 224))
        return TF.pil_to_tensor(TF.center_crop(image, self.input_size)).permute(1, 2, 0), target


class ValidationBatches:
    """Validation images in file order; decoded once and kept where they fit in memory.

    Iterating yields (images float [B, 3, S, S], targets int64 [B]) on the device. The batch size is
    independent of --batch-size, since it does not change the result. They are kept on the device if `on_device`, for
    which the caller knows that there is room, else on the host if they fit there.
    """

    def __init__(
        self,
        samples: Samples,
        input_size: int,
        normalise: Normalise,
        workers: int,
        device: torch.device,
        batch_size: int | None = None,
        on_device: bool = False,
    ):
        self.device, self.normalise = device, normalise
        dataset = CentreCrops(samples, input_size)
        self.loader = DataLoader(
            dataset,
            batch_size=batch_size or (ROWS_ON_A_DEVICE if device.type == "cuda" else 64),
            num_workers=workers,
            worker_init_fn=start_worker,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),
        )
        host = torch.device("cpu") if host_keeps(len(samples) * input_size**2 * 3) else None
        self.keep = device if on_device else host
        self.kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __len__(self) -> int:
        return len(self.loader)

    def decoded(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield (images uint8 [B, S, S, 3], targets), from memory after the first complete pass."""
        if self.kept:
            yield from self.kept
            return
        kept = []
        for images, targets in guarded(self.loader):
            if self.keep is not None:  # copied: what workers hand over is shared memory, which is scarce
                images, targets = images.to(self.keep, copy=True), targets.to(self.keep, copy=True)
                kept.append((images, targets))
            yield images, targets
        self.kept = kept

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for images, targets in self.decoded():
            images = self.normalise(images.to(self.device, non_blocking=True))
            yield images, targets.to(self.device, non_blocking=True)
