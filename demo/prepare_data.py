"""Turn scikit-learn's digits (1,797 real handwritten digits, 8 x 8 pixels) into image folders.

    python demo/prepare_data.py demo/work

Writes 32 px PNG files to `train` (1,000 images), `val` (797 images), and `distilled`: ten training
images per class, the stand-in for a distilled set. They are real images, not distilled ones; the
demo shows the pipeline, not a distillation method.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

IMAGES_PER_CLASS = 10
SIDE = 32


def save(folder, number, pixels, digit):
    """Write one digit (values 0 to 16) as an RGB PNG file."""
    image = Image.fromarray(np.uint8(pixels * 255 / 16)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    path = Path(folder) / f"digit_{digit}" / f"{number:04d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    image.convert("RGB").save(path)


def main(work):
    """Write the three image folders below `work`."""
    digits = load_digits()
    numbers = np.arange(len(digits.target))
    train, val = train_test_split(numbers, train_size=1000, stratify=digits.target, random_state=0)
    taken = dict.fromkeys(range(10), 0)
    for number in sorted(train):
        digit = digits.target[number]
        save(f"{work}/train", number, digits.images[number], digit)
        if taken[digit] < IMAGES_PER_CLASS:
            save(f"{work}/distilled", number, digits.images[number], digit)
            taken[digit] += 1
    for number in val:
        save(f"{work}/val", number, digits.images[number], digits.target[number])
    print(
        f"{len(train)} training, {len(val)} validation and {sum(taken.values())} distilled (stand-in) images in {work}"
    )


if __name__ == "__main__":
    main(sys.argv[1])
