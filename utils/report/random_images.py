# PYTHON_ARGCOMPLETE_OK: the Tab key of a shell completes flags, see docs/flags.md
"""Draw a random subset of real images, as a baseline for a distilled set.

    python -m utils.report.random_images REAL --like DISTILLED --seed 0 --output RANDOM

The command draws images without replacement. Each class gets as many images as it has in DISTILLED, or N images with
--per-class N in place of --like. Classes of REAL and DISTILLED are paired by name; classes that only REAL has are
ignored. With --classes, only the listed classes are drawn, as in training. REAL and DISTILLED may have any layout of
docs/images.md.

The folder RANDOM gets links to the drawn image files, in class folders with the names of DISTILLED. Drawn images that
are stored in an archive, a table or a tensor become new image files. If the images of REAL are floating-point numbers,
RANDOM gets two tensors in place of class folders, `images_best.pt` and `labels_best.pt`. RANDOM.txt lists the images,
in lines `CLASS/NAME<tab>PATH`. RANDOM.json records how the images were drawn, and a digest of the images, with which a
report checks that a run was trained on exactly these images.

If RANDOM exists, the command fails. With --again, the command succeeds if RANDOM holds the images of the same draw.
"""

import os
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from utils.config import RandomImagesConfig
from utils.system.process import check_command_line, run_script

if __name__ == "__main__":  # --help and wrong flags are answered before the imports below, which take seconds
    check_command_line(RandomImagesConfig.parse)

import numpy as np

from utils.data.identity import know_images
from utils.data.image_sets import open_images
from utils.data.images import ImageRef, ImageSet, Member, Samples
from utils.data.write import class_folders, holds_tensors, name_files, new_folder, write_image, write_tensors
from utils.report.runs import record_of
from utils.run.classes import Sides, pair_sets, select_classes, select_pair
from utils.system.errors import InputError, listing, printable
from utils.system.files import write_json, write_text
from utils.system.log import log, start_log

SIDES = Sides("REAL", "--like", "REAL_FOLDER<tab>LIKE_FOLDER")


def draw_images(samples: Samples, wanted: dict[int, int], seed: int, classes: Sequence[str] | None = None) -> Samples:
    """Draw `wanted[c]` images of each class c, without replacement. The same arguments give the same images.

    Args:
        samples: (image, class) of all images to draw from.
        wanted: class -> number of images to draw.
        seed: seed of the draw. Each class has its own random stream, so its draw does not depend on other classes.
        classes: names of the classes, for error messages.

    Returns:
        (image, class) of the drawn images, class by class, each class in the order of `samples`.

    Raises:
        InputError: a class has fewer images than wanted.
    """
    images_of = defaultdict(list)
    for sample in samples:
        images_of[sample[1]].append(sample)
    drawn = []
    for target, number in sorted(wanted.items()):
        of_class = images_of[target]
        if len(of_class) < number:
            raise InputError(
                f"class {classes[target] if classes else target} of the real images has {len(of_class)} files, and "
                f"{number} are wanted; "
                "give the whole training set"
            )
        picks = np.random.default_rng((seed, target)).choice(len(of_class), number, replace=False)
        drawn += [of_class[pick] for pick in sorted(picks)]
    return drawn


def pair_classes(real: ImageSet, like: ImageSet, class_map: str | None) -> tuple[ImageSet, str]:
    """Pair the classes of REAL with those of --like, and renumber the images of REAL by the classes of --like.

    Args:
        real: set of real images; images of classes that `like` lacks are left out of the result.
        like: the image set to match.
        class_map: value of --class-map: a file that pairs class folders, `sorted` to pair them by position, or None to
            pair them by name.

    Returns:
        (images of REAL with the class numbers of `like`, description of how the classes were paired). The class names
        come from `like`, or from REAL if `like` does not name its classes.

    Raises:
        InputError: the classes cannot be paired, or REAL lacks a class of --like.
    """
    where = f"REAL {real.root} and --like {like.root}"
    places, how = pair_sets(real, like, class_map, where, SIDES)
    lacking = [name for place, name in enumerate(like.classes) if place not in places]
    if lacking:
        raise InputError(f"{where}: no folder of REAL belongs to class {listing(lacking, 3)}; give real images of it")
    classes = like.classes if like.named else [real.classes[places.index(n)] for n in range(len(like.classes))]
    found = [(image, places[target]) for image, target in real.samples]
    samples = [(image, place) for image, place in found if place is not None]
    # `answers=None` drops the soft labels of REAL, which refer to other classes than the result has
    return replace(real, classes=classes, samples=samples, named=like.named or real.named, answers=None), how


def main(argv: list[str] | None = None) -> None:
    """Run the command: draw random real images and link them into the folder --output."""
    config = RandomImagesConfig.parse(argv)
    start_log()
    # `answers=None` drops the soft labels: the command writes only classes
    real = replace(open_images(config.real, "REAL"), answers=None)
    output = Path(config.output)
    if config.like is None:
        if config.subset is not None:
            select_classes(config.subset, real, "REAL")
        paired, how = real, "with themselves"
        wanted = dict.fromkeys(range(len(real.classes)), config.per_class or 0)
    else:
        like = replace(open_images(config.like, "--like"), answers=None)
        if config.subset is not None:
            select_pair(config.subset, like, real, config.class_map, SIDES)
            paired, how = replace(real, classes=like.classes), f"by --classes {config.subset}"
        else:
            paired, how = pair_classes(real, like, config.class_map)
        wanted = dict(Counter(like.targets))
    drawn = draw_images(paired.samples, wanted, config.seed, paired.classes)
    links = {name: image for name, image, _ in name_files(drawn, class_folders(paired))}
    listed = "".join(f"{link}\t{image}\n" for link, image in links.items())
    list_file = output.with_name(f"{output.name}.txt")
    if config.again and list_file.exists():
        refuse_another_draw(config, output, links, list_file.read_text())
        log.info("%d real images, drawn with seed %d, are in %s already", len(drawn), config.seed, output)
        return
    if os.path.lexists(output):
        raise InputError(f"--output {output} exists; delete it, or give another folder")
    left_out = len(real.classes) - len({target for _, target in paired.samples})
    if left_out:
        log.info(
            "%d of %d class folders of %s are left out: --like lacks these classes",
            left_out,
            len(real.classes),
            config.real,
        )
    if config.like is not None:
        log.info("classes are paired %s", how)
    with new_folder(output, "--output") as folder:
        if holds_tensors(paired):
            write_tensors(folder, drawn, paired.channels, answers=False)
        else:
            link_or_write(folder, links, paired.channels)
    digest = know_images(str(output), open_images(output, "--output").samples).digests.digest()
    made = {
        "real": config.real,
        "like": config.like,
        "per_class": config.per_class,
        "seed": config.seed,
        "class_map": config.class_map,
        **({} if config.subset is None else {"classes": config.subset}),
        "digest": digest,
    }
    write_json(record_of(output), made)
    write_text(list_file, listed)  # must be written last, because this file marks the set as complete
    log.info("%d of %d real images, drawn with seed %d, in %s", len(drawn), len(real.samples), config.seed, output)


def link_or_write(folder: Path, links: Mapping[str, ImageRef], channels: int) -> None:
    """Link image files into a folder; write images that are stored inside a container to new files.

    Args:
        folder: the folder.
        links: path inside the folder -> image.
        channels: 1 to write grey images, 3 for RGB.
    """
    for link, image in links.items():
        (folder / link).parent.mkdir(exist_ok=True)
        if isinstance(image, Member):
            write_image(image, folder / link, channels)
        else:
            (folder / link).symlink_to(os.path.abspath(image))


def refuse_another_draw(config: RandomImagesConfig, output: Path, links: Mapping[str, ImageRef], text: str) -> None:
    """Raise InputError unless the folder `output` holds exactly the current draw.

    Args:
        config: flags of the command.
        output: the folder.
        links: the current draw: path inside the folder -> image.
        text: content of OUTPUT.txt, which lists the images of the earlier draw.
    """
    before = dict(line.split("\t", 1) for line in text.splitlines() if "\t" in line)

    def is_same(link: str, image: ImageRef) -> bool:
        if isinstance(image, Member):
            return before[link] == printable(str(image)) and output.is_dir()
        return os.path.samefile(output / link, image)

    wanted = f"like {config.like}" if config.like else f"with {config.per_class} of each class"
    try:
        same = before.keys() == links.keys() and all(is_same(link, image) for link, image in links.items())
    except OSError:  # a link, or the file that it points to, does not exist
        same = False
    if not same:
        raise InputError(
            f"--output {output} does not hold the draw of seed {config.seed} from {config.real} {wanted}; "
            f"repeat the REAL, --like and --seed of the earlier draw, or delete {output}, {output}.txt and the results "
            "made from them"
        )


if __name__ == "__main__":
    sys.exit(run_script(main))
