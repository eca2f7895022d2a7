"""Draws a random subset of real images, as a baseline for a distilled set.

    python -m utils.report.random_images REAL --like DISTILLED --seed 0 --output RANDOM

The command draws images without replacement. Each class gets as many images as it has in DISTILLED. Classes of REAL
and DISTILLED are paired by the names of their folders; classes that only REAL has are ignored. The folder RANDOM gets
links to the drawn files, in class folders with the names of DISTILLED. RANDOM.txt lists the links, in lines
`CLASS/NAME<tab>PATH`. RANDOM.json records how the images were drawn, and a digest of the images. A report uses the
digest to check that a run was trained on exactly these images.

If RANDOM exists, the command fails. With --again it succeeds if RANDOM already has the images that would be drawn.
"""

import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.config import RandomImagesConfig
from utils.data.folders import open_folder
from utils.data.identity import know_images
from utils.data.image_sets import open_images
from utils.data.images import ImageSet, Samples
from utils.run.classes import Sides, pair_names
from utils.system.errors import InputError, listing
from utils.system.files import write_json, write_text
from utils.system.log import log, start_log
from utils.system.process import run_script

SIDES = Sides("REAL", "--like", "REAL_FOLDER<tab>LIKE_FOLDER")


def draw_images(
    samples: Samples, wanted: dict[int, int], seed: int, classes: Sequence[str] | None = None
) -> list[tuple[str, int]]:
    """Draw `wanted[c]` images of each class c, without replacement. The same arguments give the same images.

    Args:
        samples: (path, class) of all images to draw from.
        wanted: class -> number of images to draw.
        seed: seed of the draw. Each class has its own random stream; other classes do not affect its draw.
        classes: names of the classes, for error messages.

    Returns:
        (path, class) of the drawn images, in the order of `samples`.

    Raises:
        InputError: a class has fewer images than wanted.
    """
    drawn = []
    for target, number in sorted(wanted.items()):
        of_class = [sample for sample in samples if sample[1] == target]
        if len(of_class) < number:
            raise InputError(
                f"class {classes[target] if classes else target} of the real images has {len(of_class)} files, and "
                f"{number} are wanted; "
                "give the whole training set"
            )
        picks = np.random.default_rng((seed, target)).choice(len(of_class), number, replace=False)
        drawn += [of_class[pick] for pick in sorted(picks)]
    return drawn


def name_links(drawn: list[tuple[str, int]], classes: list[str]) -> dict[str, str]:
    """Name a link for each drawn image; return a dict from link `CLASS/NAME` to the path of the image.

    NAME is the name of the image file. If a link `CLASS/NAME` exists already, the new link is `CLASS/NUMBER-NAME`.

    Args:
        drawn: (path, class) of the drawn images.
        classes: names of the classes, indexed by class.
    """
    links: dict[str, str] = {}
    for path, target in drawn:
        folder, name, number = classes[target], os.path.basename(path), len(links)
        link = f"{folder}/{name}"
        while link in links:
            link, number = f"{folder}/{number}-{name}", number + 1
        links[link] = path
    return links


def pair_classes(real: ImageSet, like: ImageSet, class_map: str | None) -> tuple[Samples, str]:
    """Pair the class folders of REAL with those of --like, and give the images of REAL the class numbers of --like.

    Args:
        real: folder of real images; images of classes that `like` lacks are left out of the result.
        like: image folder whose classes are wanted.
        class_map: value of --class-map: a file that pairs class folders, `sorted` to pair them by position, or None to
            pair them by name.

    Returns:
        (list of (path, class in `like`) of the real images, description of how the classes were paired).

    Raises:
        InputError: the classes cannot be paired, or REAL lacks a class of --like.
    """
    where = f"REAL {real.root} and --like {like.root}"
    places, how = pair_names(real.classes, like.classes, class_map, where, SIDES)
    lacking = [name for place, name in enumerate(like.classes) if place not in places]
    if lacking:
        raise InputError(f"{where}: no folder of REAL belongs to class {listing(lacking, 3)}; give real images of it")
    found = [(path, places[target]) for path, target in real.samples]
    return [(path, place) for path, place in found if place is not None], how


def record_of(output: Path) -> Path:
    """Return the path of the JSON file that records how the images in the folder `output` were drawn."""
    return output.with_name(f"{output.name}.json")


def main(argv: list[str] | None = None) -> None:
    """Run the command: draw random real images and link them into the folder --output."""
    config = RandomImagesConfig.parse(argv)
    start_log()
    real = open_images(config.real, "REAL")
    like = open_images(config.like, "--like")
    output = Path(config.output)
    samples, how = pair_classes(real, like, config.class_map)
    drawn = draw_images(samples, Counter(like.targets), config.seed, like.classes)
    links = name_links(drawn, like.classes)
    listed = "".join(f"{link}\t{path}\n" for link, path in links.items())
    list_file = output.with_name(f"{output.name}.txt")
    if config.again and list_file.exists():
        refuse_another_draw(config, output, links, list_file)
        log.info("%d real images, drawn with seed %d, are in %s already", len(drawn), config.seed, output)
        return
    if output.exists():
        raise InputError(f"--output {output} exists; delete it, or give another folder")
    left_out = len(real.classes) - len({target for _, target in samples})
    if left_out:
        log.info(
            "%d of %d class folders of %s are left out: --like lacks these classes",
            left_out,
            len(real.classes),
            config.real,
        )
    log.info("classes are paired %s", how)
    for link, path in links.items():
        (output / link).parent.mkdir(parents=True, exist_ok=True)
        (output / link).symlink_to(os.path.abspath(path))
    found = open_folder(output, "--output")
    digest = know_images(str(output), found.samples, workers=1).digests.digest()
    made = {
        "real": config.real,
        "like": config.like,
        "seed": config.seed,
        "class_map": config.class_map,
        "digest": digest,
    }
    write_json(record_of(output), made)
    write_text(list_file, listed)  # must be written last, because this file marks the set as complete
    log.info("%d of %d real images, drawn with seed %d, in %s", len(drawn), len(real.samples), config.seed, output)


def refuse_another_draw(config: RandomImagesConfig, output: Path, links: dict[str, str], list_file: Path) -> None:
    """Raise InputError unless the folder `output` holds exactly the current draw, which `links` lists."""
    before = {line.partition("\t")[0] for line in list_file.read_text().splitlines()}
    try:
        same = before == set(links) and all(os.path.samefile(output / link, path) for link, path in links.items())
    except OSError:  # a link, or the file that it points to, does not exist
        same = False
    if not same:
        raise InputError(
            f"--output {output} does not hold the draw of seed {config.seed} from {config.real} like {config.like}; "
            f"give the REAL, --like and --seed of before, or delete {output}, {list_file} and what was made of them"
        )


if __name__ == "__main__":
    sys.exit(run_script(main))
