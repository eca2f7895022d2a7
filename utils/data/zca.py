"""Whiten images by ZCA, as MTT, TESLA and DATM do before they distil and evaluate.

The transformation is fitted on the N real training images, scaled to [0, 1] but not normalised:

    T = U diag(1 / sqrt(s + 0.1)) U^T,    K = U diag(s) U^T,

where K is the covariance matrix of the images' C · S · S values, with the divisor N - 1. An image x becomes (x - m) T,
where m is the mean image. Source: kornia's ZCAWhitening with eps = 0.1, in the code of MTT (Cazenavette et al., 2022).
"""

import math
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from utils.data.identity import identify
from utils.data.images import ImageSet, Pixels, height_and_width
from utils.data.replay import replay_view
from utils.data.resident import decode_all
from utils.system.errors import InputError
from utils.system.files import atomic_file
from utils.system.log import log

EPSILON = 0.1  # added to every eigenvalue of the covariance matrix
ROWS = 1000  # number of images per step when mean and covariance are summed up
MOST_VALUES = 3 * 64 * 64  # largest C · S · S, for which the covariance matrix takes 1.2 GB in float64


class Zca:
    """Transformation that whitens images in [0, 1]: float32 [B, C, S, S] -> float32 [B, C, S, S].

    Args:
        mean: float32 [D], mean image; D = C · S · S.
        matrix: float32 [D, D], the transformation T.
        digest: digest of the images that the transformation was fitted on.
    """

    def __init__(self, mean: torch.Tensor, matrix: torch.Tensor, digest: str) -> None:
        self.mean, self.matrix, self.digest = mean, matrix, digest

    def to(self, device: torch.device) -> "Zca":
        """Return this transformation for images on another device."""
        return Zca(self.mean.to(device), self.matrix.to(device), self.digest)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return the whitened images."""
        rows = images.reshape(len(images), -1) - self.mean
        return (rows @ self.matrix).view(images.shape)


def fitted_zca(real: ImageSet, size: int, channels: int) -> Zca:
    """Fit the ZCA transformation of a set of real training images, or load it if an earlier run has saved it.

    The transformation is saved beside the set in `NAME.zca-SIZE.safetensors`, with the digest of the images.

    Args:
        real: the real training images: 8-bit pixels, or floating-point numbers in [0, 1].
        size: S; images of another size are resized to S x S pixels.
        channels: C, 1 or 3.

    Raises:
        InputError: the images are normalised already, or `size` is too large.
    """
    if real.values == "normalised":
        raise InputError(f"--zca {real.root} holds normalised images; give the real training images as they are")
    if channels * size**2 > MOST_VALUES:
        most = math.isqrt(MOST_VALUES // channels)
        raise InputError(
            f"--zca whitens {channels}-channel images of at most {most} px, not of --input-size {size}; leave it out"
        )
    digest = identify(real.samples).digest()
    path = Path(f"{str(real.root).rstrip('/')}.zca-{size}.safetensors")
    try:
        with safe_open(str(path), "pt") as file:
            known = file.metadata().get("images") == f"{digest} {channels}"
        if known:
            tensors = load_file(str(path))
            log.info("zca     read from %s", path)
            return Zca(tensors["mean"], tensors["matrix"], digest)
    except (OSError, SafetensorError, AttributeError, KeyError):
        pass  # the file is missing or damaged, so fit again and write it anew
    mean, matrix = fit(as_rows(real, size, channels))
    zca = Zca(mean, matrix, digest)
    try:
        with atomic_file(path) as temporary:
            save_file({"mean": mean, "matrix": matrix}, str(temporary), {"images": f"{digest} {channels}"})
    except (OSError, InputError):
        log.info("zca     fitted on %d images; %s cannot be written", len(real.samples), path)
    else:
        log.info("zca     fitted on %d images, kept in %s", len(real.samples), path)
    return zca


def as_rows(real: ImageSet, size: int, channels: int) -> torch.Tensor:
    """Return the images as rows of values in [0, 1], resized to `size` x `size` pixels: float32 [N, D]."""

    def row(image: Pixels) -> torch.Tensor:
        view = replay_view(image, (0, 0, *height_and_width(image)), False, size).permute(2, 0, 1).reshape(-1)
        return view if view.is_floating_point() else view.float() / 255

    return torch.stack([row(image) for image in decode_all(real.samples, channels)])


def fit(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (mean, ZCA matrix T) of rows [N, D]: float32 [D] and float32 [D, D]."""
    mean = torch.stack([part.double().sum(dim=0) for part in rows.split(ROWS)]).sum(dim=0).div(len(rows)).float()
    covariance = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    for part in rows.split(ROWS):
        centred = part - mean
        covariance += (centred.mT @ centred).double()
    values, vectors = torch.linalg.eigh(covariance / max(len(rows) - 1, 1))
    matrix = vectors * (values.clamp(min=0) + EPSILON).rsqrt() @ vectors.mT
    return mean, matrix.float()
