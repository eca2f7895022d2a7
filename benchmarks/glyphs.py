"""Make a data set of many classes without a download: 200 glyphs from the fonts that come with matplotlib.

    python benchmarks/glyphs.py OUT [--classes 200 --train 40 --distilled 5 --val 8 --side 32 --seed 0]

Classes are Latin, accented, Greek and Cyrillic letters, digits and symbols. Typefaces are those of DejaVu and STIX
that have all of the glyphs. All glyphs are drawn at one size on one baseline, so that upper and lower case differ.
Every image is rotated, sheared, scaled and shifted, and has its own foreground and background colour. Writes `train`,
`val` and `distilled` (the first images of each class of `train`, in place of a distilled set) with one folder per
class. Three of the typefaces, a wave distortion and noise occur only in `val`.
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
CANVAS = 96  # pixels on which a glyph is drawn before it is distorted


@cache
def face(name):
    """Load a font of matplotlib at a size that fills the canvas."""
    import matplotlib

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/{name}.ttf", round(0.62 * CANVAS))


def draw_plain(glyph, name):
    """Draw a glyph white on black, with fixed baseline and centre; return a PIL image, CANVAS x CANVAS."""
    canvas = Image.new("L", (CANVAS, CANVAS))
    ImageDraw.Draw(canvas).text((CANVAS / 2, 0.7 * CANVAS), glyph, fill=255, font=face(name), anchor="ms")
    return canvas


def distort(canvas, rng, side):
    """Rotate by up to 12 degrees, shear, scale and shift a canvas at random; return it at `side` x `side` pixels."""
    angle, shear = rng.uniform(-0.2, 0.2), rng.uniform(-0.2, 0.2)
    width, height = rng.uniform(0.85, 1.15, 2)
    cos, sin = math.cos(angle), math.sin(angle)
    a, b, d, e = cos / width, (sin + shear) / width, -sin / height, cos / height
    centre, (x, y) = CANVAS / 2, CANVAS / 2 + rng.uniform(-0.06, 0.06, 2) * CANVAS
    matrix = a, b, centre - a * x - b * y, d, e, centre - d * x - e * y
    return canvas.transform(canvas.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC).resize((side, side))


def warp(canvas, rng):
    """Bend a canvas in waves; only validation images are warped."""
    pixels = np.asarray(canvas)
    lines = np.arange(CANVAS)
    for _ in range(2):  # rows first, then, after the transpose, columns
        wave = rng.uniform(0.01, 0.03) * CANVAS * np.sin(lines / CANVAS * rng.uniform(4, 9) + rng.uniform(0, 6.28))
        shifts = np.round(wave).astype(int)
        pixels = np.stack([np.roll(line, shift) for line, shift in zip(pixels, shifts, strict=True)]).T
    return Image.fromarray(pixels)


def colour(mask, rng, noise):
    """Return a mask as an RGB image: random ink and paper colours, at least 0.4 apart in every channel, with noise."""
    dark, light = rng.uniform(0, 0.3, 3), rng.uniform(0.7, 1, 3)
    ink, paper = (dark, light) if rng.random() < 0.5 else (light, dark)
    share = np.asarray(mask, np.float64)[:, :, None] / 255
    pixels = share * ink + (1 - share) * paper + rng.normal(0, noise, share.shape)
    return Image.fromarray(np.uint8(pixels.clip(0, 1) * 255))


def make_image(glyph, names, rng, side, held_out):
    """Draw an image of a glyph in a random one of `names`; `held_out` adds the warp and noise of validation images."""
    canvas = draw_plain(glyph, names[rng.integers(len(names))])
    mask = distort(warp(canvas, rng) if held_out else canvas, rng, side)
    return colour(mask, rng, noise=0.05 if held_out else 0.0)


def write_class(out, number, counts, side, seed):
    """Write the images of one class; `counts` are (train, distilled, val)."""
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
    """Write the three image folders."""
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
