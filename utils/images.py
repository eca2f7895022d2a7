# PYTHON_ARGCOMPLETE_OK: the Tab key of a shell completes flags, see docs/flags.md
"""`python -m utils.images`: describe an image set of any layout, or convert it to folders of image files.

    python -m utils.images info SET
    python -m utils.images convert SET FOLDER --part val

Converted images have exactly the same pixels: image files are copied, and other images of 8 bits become PNG files. If
the images are floating-point numbers, or if soft labels are stored with them, the set becomes two tensor files,
`images_best.pt` and `labels_best.pt`, with unrounded values.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from utils.config import ConvertConfig, ImageInfoConfig, parse_image_command
from utils.system.process import check_command_line, run_script

if __name__ == "__main__":  # --help and wrong flags are answered before the imports below, which take seconds
    check_command_line(parse_image_command)

import torch
from torchvision.transforms.functional import pil_to_tensor

from utils.data.identity import identify
from utils.data.image_sets import open_images
from utils.data.images import ImageSet, Samples, image_size, load_image
from utils.data.write import class_folders, holds_tensors, name_files, new_folder, write_image, write_tensors
from utils.system.errors import listing, printable
from utils.system.files import digest_of_text
from utils.system.log import log, progress_bar, start_log

SAMPLED = 1000  # maximum number of images whose values and sizes are examined
SHOWN = 12  # maximum number of class names, and of sizes, that are printed


def info(config: ImageInfoConfig) -> None:
    """Print facts about an image set: layout, classes, images, sizes, values, soft labels and digests."""
    images = open_images(config.path, "PATH", config.part, config.normalised, config.val_labels)
    numbers = Counter(images.targets)
    counts = [numbers[target] for target in range(len(images.classes))]
    names = listing(images.classes, SHOWN) if images.named else "numbers, without names"
    step = max(1, len(images.samples) // SAMPLED)
    sample = images.samples[::step][:SAMPLED]
    of_sample = "" if step == 1 else f" (of {len(sample)} images)"
    sizes = Counter(image_size(image) for image, _ in sample)
    shown = listing((f"{width} x {height} ({number})" for (width, height), number in sizes.most_common()), SHOWN)
    facts = {
        "layout": images.layout or "folders of image files, one per class",
        "root": images.root,
        "classes": f"{len(images.classes)}: {names}",
        "images": len(images.samples),
        "per class": str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}",
        "sizes": f"{next(iter(sizes))[0]} x {next(iter(sizes))[1]}" if len(sizes) == 1 else shown,
        **describe_values(images, sample),
        "soft labels": images.answers or "none",
        **digests(images),
    }
    for key, value in facts.items():
        wide = of_sample if key in ("sizes", "range", "mean", "std") else ""
        print(printable(f"{key:>12}  {value}{wide}"))


def describe_values(images: ImageSet, sample: Samples) -> dict[str, object]:
    """Return facts about the values of some images: number of channels, type, range, mean and standard deviation.

    Mean and standard deviation are those of each channel over all pixels; 8-bit values are divided by 255.
    """
    floats, count = False, 0
    total, squares = torch.zeros(2, images.channels, dtype=torch.float64)
    low, high = float("inf"), float("-inf")
    for image, _ in sample:
        loaded = load_image(image, images.channels)
        floats = isinstance(loaded, torch.Tensor)
        values = (loaded if isinstance(loaded, torch.Tensor) else pil_to_tensor(loaded) / 255).flatten(1).double()
        low, high = min(low, values.min().item()), max(high, values.max().item())
        total += values.sum(dim=1)
        squares += values.square().sum(dim=1)
        count += values.shape[1]
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt()
    normalised = "yes" if images.normalised else "no"
    return {
        "channels": images.channels,
        "values": "floating-point numbers" if floats else "8 bits",
        "normalised": f"{normalised}, see the lines above or give --normalised" if floats else "no, these have 8 bits",
        "range": f"{low:.4g} to {high:.4g}" if floats else f"{low * 255:.0f} to {high * 255:.0f}",
        "mean": " ".join(f"{value:.4f}" for value in mean.tolist()),
        "std": " ".join(f"{value:.4f}" for value in std.tolist()),
    }


def digests(images: ImageSet) -> dict[str, object]:
    """Return two digests of all pixels of a set.

    `digest` depends on the order of the images; summary.json and labels record this digest. `content` depends on the
    class and the pixels of each image, but not on order or layout, so that it is equal for a set and the converted set.
    """
    known = identify(images.samples)
    names = images.classes if images.named else class_folders(images)
    rows = zip(known.pixels.numpy(), images.targets, strict=True)
    lines = sorted(f"{names[target]} {pixels.tobytes().hex()}" for pixels, target in rows)
    return {"digest": known.digest(), "content": digest_of_text("\n".join(lines))}


def convert(config: ConvertConfig) -> None:
    """Write an image set as folders of image files, or as tensors if image files cannot hold all of it."""
    images = open_images(config.source, "SOURCE", config.part, config.normalised, config.val_labels)
    with new_folder(Path(config.target), "TARGET") as folder:
        if holds_tensors(images):
            write_tensors(folder, images.samples, images.channels, answers=images.answers is not None)
            if images.normalised:
                log.info(
                    "the images are written as they are, normalised; give --normalised yes when you use %s",
                    config.target,
                )
            kind = "as tensors"
        else:
            files = name_files(images.samples, class_folders(images))
            for name, image, content in progress_bar(files, "convert", len(images.samples)):
                (folder / name).parent.mkdir(exist_ok=True)
                write_image(image, folder / name, images.channels, content)
            kind = f"in {len(set(images.targets))} class folders"
    log.info("%d images of %s are in %s, %s", len(images.samples), config.source, config.target, kind)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command of `python -m utils.images`."""
    config = parse_image_command(argv)
    start_log()
    if isinstance(config, ImageInfoConfig):
        info(config)
    else:
        convert(config)


if __name__ == "__main__":
    sys.exit(run_script(main))
