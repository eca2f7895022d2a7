"""Apply RandAugment of timm to source images before they are cropped, as the evaluator of DELT does."""

import random
from typing import Any

import numpy as np
from PIL import Image

from utils.config import Findings, KDConfig
from utils.system.errors import InputError

# as in DELT: the colour of pixels from outside the image, and a bound in pixels that RandAugment itself does not use
DELT = {"translate_const": 117, "img_mean": (124, 116, 104)}


class RandAugment:
    """RandAugment of timm whose random numbers come from a seed for each image.

    timm draws from the global random states of Python and numpy. A call sets them from the seed and restores them
    afterwards, so that resumed runs and runs with other numbers of processes see the same images. Threads of one
    process must not call at the same time.

    Args:
        text: --auto-augment.
    """

    def __init__(self, text: str) -> None:
        from timm.data import auto_augment

        self.transform = auto_augment.rand_augment_transform(text, dict(DELT))
        for operation in self.transform.ops:
            if operation.aug_fn is auto_augment.posterize:
                operation.aug_fn = posterize

    def __call__(self, image: Image.Image, seed: int) -> Image.Image:
        """Return the changed image, of the same size and mode.

        Args:
            image: PIL image of mode RGB or L. A grey image is changed as a colour image, since timm's fill has colours.
            seed: integer from 0 to 2**32 - 1.
        """
        before, numpy_before = random.getstate(), np.random.get_state()
        random.seed(seed)
        np.random.seed(seed)
        try:
            return self.transform(image.convert("RGB")).convert(image.mode)
        finally:
            random.setstate(before)
            np.random.set_state(numpy_before)


def posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Return an image of mode RGB with only the `bits` highest bits of each value; without any, it is black.

    timm draws 0 bits at times, for which earlier versions of Pillow returned a black image. Newer ones raise an error.
    """
    mask = -(1 << (8 - min(max(bits, 0), 8)))
    return image.point([value & mask for value in range(256)] * 3)


def rand_augment_of(config: KDConfig, found: Findings) -> RandAugment | None:
    """Return the `RandAugment` of --auto-augment; None if the flag is not given.

    Raises:
        InputError: the training images are floating-point numbers.
    """
    if config.auto_augment is None:
        return None
    if found.train_values != "bytes":
        raise InputError(
            f"--auto-augment {config.auto_augment} changes images of 8 bits, but --train-dir {config.train_dir} holds "
            "floating-point numbers; leave it out"
        )
    return RandAugment(config.auto_augment)
