"""Match image folders to the classes of the labels.

A class number is an index into the soft labels, or into the live teacher's logits. The class number of a training
folder comes from --class-order, from the labels' manifest or from ImageNet's list of classes. If none of them applies,
training folders are numbered in the order of sorted names, as in torchvision's ImageFolder.

A validation folder gets the class number of the training folder with the same name. If the names cannot be matched, an
error says so. With --class-map sorted, folders are instead paired by their position in sorted order.
"""

import re
from codecs import BOM_UTF8
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from utils.data.images import ImageSet
from utils.system.errors import InputError, listing

IMAGENET_CLASSES = 1000
# value of --class-map that pairs validation and training folders by their position in sorted order
BY_POSITION = "sorted"
# rule of pairing if a set does not name its classes
BY_NUMBER = "by number, because at least one of the two sets does not name its classes"
WNID = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class Numbering:
    """Class numbers of image folders.

    Attributes:
        numbers: class number of each folder, in the order of sorted folder names; None for a folder without a class,
            whose images are not used.
        how: the rule that gave the numbers, in words, for the log and the summary: for example `by name`.
    """

    numbers: list[int | None]
    how: str


@dataclass(frozen=True)
class Sides:
    """Names of two image folders, for error messages about pairing their class folders.

    Attributes:
        own: flag or argument of the image folder whose classes are to be found, such as `--val-dir`.
        other: flag of the image folder whose classes are known, such as `--train-dir`.
        line: format of a line in the --class-map file.
    """

    own: str
    other: str
    line: str


VALIDATION = Sides("--val-dir", "--train-dir", "VALIDATION_FOLDER<tab>TRAINING_FOLDER")


@cache
def imagenet_numbers() -> dict[str, int]:
    """Return a dict from class names of ImageNet-1K to class numbers.

    A class has several names: its WordNet id, its WordNet words and torchvision's category name. Each name is
    normalised by `plain`. A name that two classes share (crane, maillot) is left out.
    """
    from timm.data import ImageNetInfo
    from torchvision.models import ResNet18_Weights

    info = ImageNetInfo()
    words = ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    found: dict[str, set[int]] = {}
    for number in range(IMAGENET_CLASSES):
        synonyms = info.index_to_description(number).split(", ")
        for name in {info.index_to_label_name(number), words[number], synonyms[0], ", ".join(synonyms)}:
            found.setdefault(plain(name), set()).add(number)
    return {name: min(numbers) for name, numbers in found.items() if len(numbers) == 1}


def plain(name: str) -> str:
    """Return a class name in lower case, with one space for each run of spaces, underscores and hyphens."""
    return re.sub(r"[\s_\-]+", " ", name).strip().casefold()


def numbered(names: Sequence[str]) -> list[int] | None:
    """Return the numbers at the end of folder names, such as 0 … 999 for new000 … new999.

    Return None if the names have different text before the number, if a name has no number, if two numbers are equal,
    or if a name is a WordNet id such as n01440764.
    """
    parts = [re.fullmatch(r"(.*?)(\d+)", name, re.DOTALL) for name in names]
    if not all(parts) or len({part[1] for part in parts if part}) != 1:
        return None
    numbers = [int(part[2]) for part in parts if part]
    return numbers if len(set(numbers)) == len(numbers) and not any(map(WNID.fullmatch, names)) else None


def read_names(path: str, flag: str) -> list[str]:
    """Return the lines of a --class-order or --class-map file, without empty lines.

    Args:
        path: the file.
        flag: the flag that gave the file, for error messages.

    Raises:
        InputError: the file cannot be read, is not UTF-8 text, or holds the same line twice.
    """
    try:
        lines = Path(path).read_bytes().removeprefix(BOM_UTF8).decode("utf-8", "surrogateescape").splitlines()
    except OSError as error:
        raise InputError(f"{flag} {path} cannot be read ({error.strerror}); give a text file") from None
    if any("\0" in line for line in lines):
        raise InputError(f"{flag} {path} is not a text file in UTF-8; save it as one")
    names = [line.strip("\r\n") for line in lines if line.strip()]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{flag} {path} names {twice} twice; name each class once")
    return names


def number_train_folders(
    folders: Sequence[str],
    num_classes: int,
    class_order: str | None = None,
    stated: Mapping[str, int] | None = None,
) -> Numbering:
    """Return the class number of every training folder.

    The numbers come from the first of these sources that applies:

    * --class-order, if it was given;
    * the labels' manifest, if it names every folder;
    * ImageNet's list of classes, if C is 1,000 and the list contains the name of every folder;
    * otherwise the order of the sorted folder names.

    Args:
        folders: sorted folder names.
        num_classes: C, number of classes of the labels or of the teacher.
        class_order: --class-order, a file with the folder names of class 0, 1, …, one per line.
        stated: folder name -> class number, from the labels' manifest; None if the manifest names no classes.

    Raises:
        InputError: --class-order lacks a folder, or has more lines than there are classes.
    """
    if class_order is not None:
        order = read_names(class_order, "--class-order")
        if len(order) > num_classes:
            raise InputError(
                f"--class-order {class_order} has {len(order)} lines, but the labels have {num_classes} classes; give "
                "one line for each class"
            )
        missing = [name for name in folders if name not in order]
        if missing:
            raise InputError(
                f"--class-order {class_order} does not name {listing(missing, 3)} of --train-dir; give one folder name "
                "per line, in the order of the labels' classes"
            )
        places = {name: number for number, name in enumerate(order)}
        return Numbering([places[name] for name in folders], f"by {class_order}")
    if stated is not None and all(name in stated for name in folders):
        return Numbering([stated[name] for name in folders], "by the names that the labels state")
    if num_classes == IMAGENET_CLASSES and numbered(folders) is None:
        known = imagenet_numbers()
        numbers = [known.get(plain(name)) for name in folders]
        if None not in numbers and len(set(numbers)) == len(numbers):
            return Numbering(numbers, "by ImageNet's list of classes")
    return Numbering(list(range(len(folders))), "in the order of sorted folder names")


def names_to_pair(own: ImageSet, other: ImageSet, class_map: str | None = None) -> tuple[list[str], list[str]]:
    """Return the class names by which two image sets are paired: (names of `own`, names of `other`).

    If both sets name their classes, or a --class-map was given, these are `classes`. Otherwise they are numbers, so
    that class k belongs to class k: those of a set without names, and the positions of the names of the other set. (If
    its names are numbers, they count, and not their positions.)
    """
    if (own.named and other.named) or class_map is not None:
        return own.classes, other.classes

    def numbers(names: list[str]) -> list[str]:
        if all(name.isdecimal() for name in names):
            return [str(int(name)) for name in names]
        return [str(number) for number in range(len(names))]

    return numbers(own.classes), numbers(other.classes)


def number_val_folders(
    folders: Sequence[str], train_folders: Sequence[str], train: Numbering, class_map: str | None, where: str
) -> Numbering:
    """Return the class number of every validation folder.

    Each validation folder gets the class number of its training folder. Folders without a training folder get None.

    Args:
        folders: sorted names of the validation folders.
        train_folders: sorted names of the training folders.
        train: class numbers of the training folders.
        class_map: --class-map, a file with a line `VALIDATION_FOLDER<tab>TRAINING_FOLDER` for each class, or `sorted`;
            None to pair folders by name.
        where: the two image folders, in words, for error messages.

    Raises:
        InputError: the folders cannot be matched by name, --class-map is wrong, or a class has no validation folder.
    """
    places, how = pair_names(folders, train_folders, class_map, where)
    lacking = [name for place, name in enumerate(train_folders) if place not in places]
    if lacking:
        raise InputError(
            f"{where}: no validation folder belongs to class {listing(lacking, 3)}; give validation images of every "
            "class"
        )
    return Numbering([None if place is None else train.numbers[place] for place in places], how)


def pair_names(
    folders: Sequence[str], train_folders: Sequence[str], class_map: str | None, where: str, sides: Sides = VALIDATION
) -> tuple[list[int | None], str]:
    """Pair every validation folder with a training folder.

    Args:
        folders: sorted names of the validation folders.
        train_folders: sorted names of the training folders.
        class_map, where: see `number_val_folders`.
        sides: flags of the two image folders, for error messages.

    Returns:
        (indices, rule). `indices` has an entry for each validation folder: the index of its training folder, or None.
        `rule` says in words how the folders were paired, for example `by name`.

    Raises:
        InputError: the folders cannot be matched by name, or the --class-map does not fit them.
    """
    if class_map == BY_POSITION:
        if len(folders) != len(train_folders):
            raise InputError(
                f"--class-map {BY_POSITION} pairs folders by position, but {where}: {len(folders)} and "
                f"{len(train_folders)} class folders; give a file"
            )
        return list(range(len(folders))), "by position, as --class-map says"
    if class_map is not None:
        return map_names(folders, train_folders, class_map, sides), f"by {class_map}"

    def pair(keys: Sequence, train_keys: Sequence) -> list[int | None] | None:
        """Return the index in `train_keys` of each key in `keys`; return None if the lists do not match.

        The lists match if `keys` has all of `train_keys` and neither list repeats a key. The key None stands for an
        unknown class: `keys` may repeat None, but `train_keys` must not contain None. The index is None for the key
        None and for every key that `train_keys` lacks.
        """
        if None in train_keys or len(set(train_keys)) < len(train_keys) or not set(train_keys) <= set(keys):
            return None
        known = [key for key in keys if key is not None]
        if len(set(known)) < len(known):
            return None
        at = {key: place for place, key in enumerate(train_keys)}
        return [None if key is None else at.get(key) for key in keys]

    exact = pair(folders, train_folders)
    if exact is not None:
        return exact, "by name"
    spelt = pair([plain(name) for name in folders], [plain(name) for name in train_folders])
    if spelt is not None:
        return spelt, "by name, but for case and spaces"
    val_numbers, train_numbers = numbered(folders), numbered(train_folders)
    if val_numbers is not None and train_numbers is not None:
        same = pair(val_numbers, train_numbers)
        if same is not None:
            return same, "by the numbers in their names"
    elif WNID.fullmatch(folders[0]) or WNID.fullmatch(train_folders[0]) or len(folders) == IMAGENET_CLASSES:
        known = imagenet_numbers()
        val_classes: list = val_numbers or [known.get(plain(name)) for name in folders]
        train_classes: list = train_numbers or [known.get(plain(name)) for name in train_folders]
        # subsets of ImageNet may be renumbered: numbers in folder names count as classes only if all 1,000 occur
        whole = all(sorted(n) == list(range(IMAGENET_CLASSES)) for n in (val_numbers, train_numbers) if n is not None)
        same = pair(val_classes, train_classes) if whole else None
        if same is not None:
            return same, "by ImageNet's list of classes"
    strange = [name for name in folders if name not in train_folders]
    lacking = [name for name in train_folders if name not in folders]
    if not strange:
        raise InputError(
            f"{where}: no folder of {sides.own} belongs to class {listing(lacking, 3)}; give images of every class"
        )
    raise InputError(
        f"{where}: the class folders cannot be matched by name (only in "
        f"{sides.own}: {listing(strange, 3)}; only in {sides.other}: {listing(lacking, 3)}); rename them, "
        f"or give --class-map FILE with a line {sides.line} for each class, or --class-map "
        f"{BY_POSITION} if both are in the same order"
    )


def map_names(
    folders: Sequence[str], train_folders: Sequence[str], class_map: str, sides: Sides = VALIDATION
) -> list[int | None]:
    """Read a --class-map file; return the index of each validation folder's training folder.

    If the file does not list a validation folder, the entry of the folder is None.

    Args:
        folders: names of the validation folders.
        train_folders: names of the training folders.
        class_map: the file.
        sides: flags of the two image folders, for error messages.

    Raises:
        InputError: the file cannot be read, a line is malformed or names an unknown folder, or a folder occurs twice.
    """
    pairs: dict[str, str] = {}
    for line in read_names(class_map, "--class-map"):
        name, tab, train_name = line.partition("\t")
        name = name.strip()
        train_name = train_name.strip()
        wrong = None
        if not tab:
            wrong = "has no tab"
        elif name in pairs:
            wrong = "names a folder twice"
        elif name not in folders or train_name not in train_folders:
            exchanged = name in train_folders and train_name in folders
            wrong = "has its two names in the wrong order" if exchanged else "names no folder"
        if wrong is not None:
            raise InputError(f"--class-map {class_map}: the line {line!r} {wrong}; give lines {sides.line}")
        pairs[name] = train_name
    places = {name: place for place, name in enumerate(train_folders)}
    if len(set(pairs.values())) < len(pairs):
        twice = next(name for name in pairs.values() if list(pairs.values()).count(name) > 1)
        raise InputError(
            f"--class-map {class_map} gives {twice} two folders of {sides.own}; merge their images into one"
        )
    return [places[pairs[name]] if name in pairs else None for name in folders]


def display_names(folders: Sequence[str], numbering: Numbering, num_classes: int) -> list[str]:
    """Return a display name for each of C classes: the name of its folder, or `class N` if class N has no folder."""
    names = [f"class {number}" for number in range(num_classes)]
    for folder, number in zip(folders, numbering.numbers, strict=True):
        if number is not None and number < num_classes:
            names[number] = folder
    return names
