"""Make a data set of many classes without a download: 200 glyphs from the fonts that come with matplotlib.

    python benchmarks/glyphs.py OUT [--classes 200 --train 40 --distilled 5 --val 8 --side 32 --seed 0]

Each class is one glyph: a letter (Latin, accented, Greek or Cyrillic), a digit or a symbol. The typefaces are from the
DejaVu and STIX families. All glyphs are drawn at one size on one baseline, so that upper and lower case differ. Every
image is rotated, sheared, scaled and shifted at random, and has its own foreground and background colour.

The script writes the folders `train`, `val` and `distilled`, each with one subfolder per class. `distilled` holds
copies of the first training images of each class, and stands in for a distilled set. Three of the typefaces, a wave
distortion and noise occur only in `val`.
"""

import argparse
import math
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GLYPHS = (
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
    "αβγδεζηθλμξπρσςτφχψωΓΔΘΛΞΠΣΦΨΩ"
    "БДЖИЙЛУЦЧШЩЪЫЬЭЮЯбджзйлцчшщъыьэюя"
    "ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÐÑÒÓÔÕÖØÙÚÛÜÝÞßàáâãäåæçèéêëìíîïðñòóôõöøùúûüýþÿ"
    "#$%&*+/<=>?@[]{}£¥§©®±¶¿×÷¬«»°½¼¾∂∏√∞∫≈≠≤≥◊ŁłŒœŠšŽž"
)
TRAIN_FACES = "DejaVuSans DejaVuSans-Bold DejaVuSans-Oblique DejaVuSerif DejaVuSerif-Bold DejaVuSansMono STIXGeneral"
VAL_FACES = "DejaVuSerif-Italic DejaVuSansMono-Bold STIXGeneralBol"
CANVAS = 96  # side in pixels of the square image on which a glyph is drawn before it is distorted


@cache
def face(name):
    """Return the PIL font of a typeface that matplotlib includes, at a size that fits the canvas."""
    import matplotlib

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/{name}.ttf", round(0.62 * CANVAS))


def draw_plain(glyph, name):
    """Return a CANVAS x CANVAS grey image of a glyph in typeface `name`, white on black.

    The baseline is the same for all glyphs. Each glyph is centred horizontally.
    """
    canvas = Image.new("L", (CANVAS, CANVAS))
    ImageDraw.Draw(canvas).text((CANVAS / 2, 0.7 * CANVAS), glyph, fill=255, font=face(name), anchor="ms")
    return canvas


def distort(canvas, rng, side):
    """Return a grey image rotated (up to 0.2 rad), sheared, scaled and shifted at random, at `side` x `side` pixels."""
    angle, shear = rng.uniform(-0.2, 0.2), rng.uniform(-0.2, 0.2)
    width, height = rng.uniform(0.85, 1.15, 2)
    cos, sin = math.cos(angle), math.sin(angle)
    a, b, d, e = cos / width, (sin + shear) / width, -sin / height, cos / height
    centre, (x, y) = CANVAS / 2, CANVAS / 2 + rng.uniform(-0.06, 0.06, 2) * CANVAS
    matrix = a, b, centre - a * x - b * y, d, e, centre - d * x - e * y
    return canvas.transform(canvas.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC).resize((side, side))


def warp(canvas, rng):
    """Return a grey image whose rows and columns are shifted in random waves. Only validation images are warped."""
    pixels = np.asarray(canvas)
    lines = np.arange(CANVAS)
    # shift rows and transpose, twice: the second pass shifts the columns and restores the orientation
    for _ in range(2):
        wave = rng.uniform(0.01, 0.03) * CANVAS * np.sin(lines / CANVAS * rng.uniform(4, 9) + rng.uniform(0, 6.28))
        shifts = np.round(wave).astype(int)
        pixels = np.stack([np.roll(line, shift) for line, shift in zip(pixels, shifts, strict=True)]).T
    return Image.fromarray(pixels)


def colour(mask, rng, noise):
    """Return an RGB image of a grey mask (white is ink), in random colours and with Gaussian noise.

    On a scale from 0 to 1, ink and paper differ by at least 0.4 in every channel. `noise` is a standard deviation.
    """
    dark, light = rng.uniform(0, 0.3, 3), rng.uniform(0.7, 1, 3)
    ink, paper = (dark, light) if rng.random() < 0.5 else (light, dark)
    share = np.asarray(mask, np.float64)[:, :, None] / 255
    pixels = share * ink + (1 - share) * paper + rng.normal(0, noise, share.shape)
    return Image.fromarray(np.uint8(pixels.clip(0, 1) * 255))


def make_image(glyph, names, rng, side, held_out):
    """Return a distorted image of a glyph in random colours, in a typeface chosen at random from `names`.

    If `held_out`, this is a validation image, which also gets a wave distortion and noise.
    """
    canvas = draw_plain(glyph, names[rng.integers(len(names))])
    mask = distort(warp(canvas, rng) if held_out else canvas, rng, side)
    return colour(mask, rng, noise=0.05 if held_out else 0.0)


def write_class(out, number, counts, side, seed):
    """Write the images of the glyph GLYPHS[number]; `counts` is the number of (train, distilled, val) images."""
    train, distilled, val = counts
    parts = [("train", TRAIN_FACES, train), ("val", VAL_FACES, val)]
    for part, (name, faces, count) in enumerate(parts):
        rng = np.random.default_rng((seed, number, part))
        for i in range(count):
            image = make_image(GLYPHS[number], faces.split(), rng, side, held_out=name == "val")
            for target in [name, *(["distilled"] if name == "train" and i < distilled else [])]:
                folder = Path(out) / target / f"{number:03d}_u{ord(GLYPHS[number]):04x}"
                folder.mkdir(parents=True, exist_ok=True)
                image.save(folder / f"{i:03d}.png")


def main(argv=None):
    """Write the image folders `train`, `distilled` and `val` as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", help="folder to write to")
    parser.add_argument("--classes", type=int, default=200, help=f"number of classes, of {len(GLYPHS)} glyphs")
    parser.add_argument("--train", type=int, default=40, help="training images per class")
    parser.add_argument(
        "--distilled", type=int, default=5, help="how many of them are copied to `distilled`, per class"
    )
    parser.add_argument("--val", type=int, default=8, help="validation images per class")
    parser.add_argument("--side", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if not 0 < args.classes <= len(GLYPHS):
        parser.error(f"--classes {args.classes} is not between 1 and {len(GLYPHS)}")
    for number in range(args.classes):
        write_class(args.out, number, (args.train, args.distilled, args.val), args.side, args.seed)
    print(f"{args.classes} classes of {args.train} training and {args.val} validation images in {args.out}")


if __name__ == "__main__":
    main()
