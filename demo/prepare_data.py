"""Turn scikit-learn's digits (1,797 real handwritten digits, 8 x 8 pixels) into image folders.

    python demo/prepare_data.py demo/work

Writes 32 x 32 px PNG files to the folders `train` (1,000 images) and `val` (797 images) in `demo/work`, with one
sub-folder per digit.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SIDE = 32


def save(folder, number, pixels, digit):
    """Write `pixels` (values 0 to 16) as an RGB image to `folder`/digit_`digit`/`number`.png."""
    image = Image.fromarray(np.uint8(pixels * 255 / 16)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    path = Path(folder) / f"digit_{digit}" / f"{number:04d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    image.convert("RGB").save(path)


def main(work):
    """Split the digits into training and validation images, and write them to `work`/train and `work`/val."""
    digits = load_digits()
    numbers = np.arange(len(digits.target))
    train, val = train_test_split(numbers, train_size=1000, stratify=digits.target, random_state=0)
    for part, members in (("train", train), ("val", val)):
        for number in members:
            save(f"{work}/{part}", number, digits.images[number], digits.target[number])
    print(f"{len(train)} training and {len(val)} validation images in {work}")


if __name__ == "__main__":
    main(sys.argv[1])
