"""Match image folders to the classes of the labels.

A class number is an index into the soft labels, or into the live teacher's logits. The class number of a training
folder comes from --class-order, from the labels' manifest or from ImageNet's list of classes. If none of them applies,
training folders are numbered in the order of sorted names, as in torchvision's ImageFolder.

A validation folder gets the class number of the training folder with the same name. If the names cannot be matched, an
error says so. With --class-map sorted, folders are instead paired by their position in sorted order.

With --classes, the listed classes are the only classes of the run, and class k is line k. `select_pair` renumbers both
image sets. `numbers_of_classes` finds the number of each listed class among the classes of the labels or the teacher,
whose logits are then reduced to the listed classes.
"""

import difflib
import os
import re
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from utils.data.images import ImageSet
from utils.run.subsets import SUBSETS
from utils.system.errors import InputError, listing
from utils.system.log import log

IMAGENET_CLASSES = 1000
# value of --class-map that pairs validation and training folders by their position in sorted order
BY_POSITION = "sorted"
# description of the pairing rule, for the log, if at least one of two sets does not name its classes
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


def trailing_numbers(names: Sequence[str]) -> list[int] | None:
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
    numbers = numbers_in_imagenet(folders) if num_classes == IMAGENET_CLASSES else None
    if numbers is not None:
        return Numbering([*numbers], "by ImageNet's list of classes")
    return Numbering(list(range(len(folders))), "in the order of sorted folder names")


def numbers_in_imagenet(names: Sequence[str]) -> list[int] | None:
    """Return the ImageNet-1K class number of each name; None if a name is unknown, or two names have one number."""
    if trailing_numbers(names) is not None:
        return None
    known = imagenet_numbers()
    numbers = [known[plain(name)] for name in names if plain(name) in known]
    return numbers if len(set(numbers)) == len(names) else None


def pair_sets(
    own: ImageSet, other: ImageSet, class_map: str | None, where: str, sides: Sides = VALIDATION
) -> tuple[list[int | None], str]:
    """Find the class of the image set `other` that belongs to each class of the image set `own`.

    If both sets name their classes, or if a --class-map was given, the classes are paired by name. Otherwise, they are
    paired by number. The number of a class is its name if all names in the set are numbers, else its index.

    Args:
        own: the set whose classes are to be found.
        other: the set whose classes are known.
        class_map, where, sides: see `pair_names`.

    Returns:
        (for each class of `own`, its index in `other.classes`, or None; the pairing rule in words).

    Raises:
        InputError: the classes cannot be paired, or the --class-map does not fit them.
    """
    if (own.named and other.named) or class_map is not None:
        return pair_names(own.classes, other.classes, class_map, where, sides)

    def numbers(names: list[str]) -> list[str]:
        if all(name.isdecimal() for name in names):
            return [str(int(name)) for name in names]
        return [str(number) for number in range(len(names))]

    places, _ = pair_names(numbers(own.classes), numbers(other.classes), None, where, sides)
    return places, BY_NUMBER


def number_val_folders(
    val: ImageSet, train: ImageSet, numbering: Numbering, class_map: str | None, where: str
) -> Numbering:
    """Return the class number of every validation folder.

    Each validation folder gets the class number of its training folder. Folders without a training folder get None.

    Args:
        val, train: the image sets.
        numbering: class numbers of the training folders.
        class_map: --class-map, a file with a line `VALIDATION_FOLDER<tab>TRAINING_FOLDER` for each class, or `sorted`;
            None to pair folders by name.
        where: the two image folders, in words, for error messages.

    Raises:
        InputError: the folders cannot be matched by name, --class-map is wrong, or a class has no validation folder.
    """
    places, how = pair_sets(val, train, class_map, where)
    lacking = [name for place, name in enumerate(train.classes) if place not in places]
    if lacking:
        raise InputError(
            f"{where}: no validation folder belongs to class {listing(lacking, 3)}; give validation images of every "
            "class"
        )
    return Numbering([None if place is None else numbering.numbers[place] for place in places], how)


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
        return spelt, "by name, ignoring case and spaces"
    val_numbers, train_numbers = trailing_numbers(folders), trailing_numbers(train_folders)
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
            f"--class-map {class_map} assigns two folders of {sides.own} to {twice}; merge them into one folder"
        )
    return [places[pairs[name]] if name in pairs else None for name in folders]


def display_names(folders: Sequence[str], numbering: Numbering, num_classes: int) -> list[str]:
    """Return a display name for each of C classes: the name of its folder, or `class N` if class N has no folder."""
    names = [f"class {number}" for number in range(num_classes)]
    for folder, number in zip(folders, numbering.numbers, strict=True):
        if number is not None and number < num_classes:
            names[number] = folder
    return names


def listed_classes(subset: str) -> list[str]:
    """Return the class names that --classes lists, in order.

    Args:
        subset: value of --classes: the name of a subset in SUBSETS, with or without its prefix `image`; or a file with
            one folder name per line. A file named like a subset must be given with its folder, as `./meow`.

    Raises:
        InputError: there is neither such a subset nor such a file, or the file is empty, cannot be read or repeats a
            line.
    """
    name = subset.lower()
    known = SUBSETS.get(name) or SUBSETS.get(f"image{name}")
    if known is not None:
        return known
    if not os.path.lexists(subset) and os.path.basename(subset) == subset:
        near = difflib.get_close_matches(name, [*SUBSETS, *(one.removeprefix("image") for one in SUBSETS)], n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise InputError(
            f"--classes {subset} is neither a file nor one of {', '.join(SUBSETS)}{hint}; give one of them, or a file "
            "with one folder name per line"
        )
    names = read_names(subset, "--classes")
    if not names:
        raise InputError(f"--classes {subset} names no class; give one folder name per line")
    return names


def select_classes(subset: str, images: ImageSet, flag: str) -> None:
    """Reduce an image set to the classes that --classes lists; number the classes by their lines, from 0.

    Args:
        subset: value of --classes.
        images: the set; `classes` and `samples` are replaced. The images keep their order.
        flag: flag of the set, for messages.

    Raises:
        InputError: --classes is wrong, or the set lacks a listed class.
    """
    keep_classes(subset, images, flag, *find_classes(images, listed_classes(subset)))


def select_pair(
    subset: str, train: ImageSet, val: ImageSet, class_map: str | None = None, sides: Sides = VALIDATION
) -> None:
    """Reduce a training set and a validation set to the classes that --classes lists; see `select_classes`.

    Args:
        subset: value of --classes.
        train, val: the sets; `classes` and `samples` are replaced.
        class_map: value of --class-map, which pairs all folders of `val` with those of `train`; None to find the listed
            classes in each set separately.
        sides: flags of the two sets, for messages.

    Raises:
        InputError: --classes or --class-map is wrong, or a set lacks a listed class.
    """
    listed = listed_classes(subset)
    lines, how = find_classes(train, listed)
    if class_map is None:
        val_lines, val_how = find_classes(val, listed)
    else:
        where = f"{sides.own} {val.root} and {sides.other} {train.root}"
        places, val_how = pair_sets(val, train, class_map, where, sides)
        val_lines = [None if place is None else lines[place] for place in places]
    # `val_lines` lacks every class that `train` lacks, so `train` is checked first
    keep_classes(subset, train, sides.other, lines, how)
    keep_classes(subset, val, sides.own, val_lines, val_how)


def find_classes(images: ImageSet, listed: Sequence[str]) -> tuple[list[int | None], str]:
    """Find the line of --classes for each class of an image set.

    Rules are tried in this order: equal names; names that are equal but for case and spaces; equal numbers at the end
    of the names; names of the same class in ImageNet's list. If the set does not name its classes, and --classes has
    one line for each of them, class k is line k. The first rule that finds all lines is used, or else the rule that
    finds most lines.

    Returns:
        (lines, rule). `lines` has an entry for each class of the set: the index of its line, or None if it has no
        line. `rule` describes in words how the classes were found.
    """

    def by(keys: Sequence, wanted: Sequence) -> list[int | None]:
        """Return the index in `wanted` of each key; None if `wanted` lacks the key.

        All are None if `wanted` contains None or repeats a key, or if two keys have the same index.
        """
        at = {key: line for line, key in enumerate(wanted) if key is not None}
        lines = [at.get(key) for key in keys]
        found = [line for line in lines if line is not None]
        return lines if len(at) == len(wanted) and len(set(found)) == len(found) else [None] * len(keys)

    def rules() -> Iterator[tuple[list[int | None], str]]:
        names = images.classes
        yield by(names, listed), "by name"
        yield by([plain(name) for name in names], [plain(name) for name in listed]), "by name, ignoring case and spaces"
        numbers, known = trailing_numbers(names), imagenet_numbers()
        yield by(numbers or names, trailing_numbers(listed) or listed), "by the numbers in their names"
        if numbers is None or sorted(numbers) == list(range(IMAGENET_CLASSES)):
            classes: list = numbers or [known.get(plain(name)) for name in names]
            yield by(classes, [known.get(plain(name)) for name in listed]), "by ImageNet's list of classes"
        if not images.named and sorted(names, key=int) == [str(number) for number in range(len(listed))]:
            yield [int(name) for name in names], "by number, because the set does not name its classes"

    best: tuple[list[int | None], str] = [None] * len(images.classes), ""
    for lines, how in rules():
        if lines.count(None) < best[0].count(None) or not best[1]:
            best = lines, how
        if len(lines) - lines.count(None) == len(listed):
            break
    return best


def keep_classes(subset: str, images: ImageSet, flag: str, lines: Sequence[int | None], how: str) -> None:
    """Reduce an image set to the classes that --classes lists, given their lines; number the classes by their lines.

    Args:
        subset: value of --classes.
        images: the set; `classes` and `samples` are replaced. The images keep their order.
        flag: flag of the set, for messages.
        lines: for each class of the set, the index of its line, or None if it is not listed.
        how: description of how the classes were found, for the log.

    Raises:
        InputError: a listed class is not in the set.
    """
    listed = listed_classes(subset)
    lacking = [name for line, name in enumerate(listed) if line not in lines]
    if lacking:
        raise InputError(
            f"--classes {subset} lists {listing(lacking, 3)}, and {flag} {images.root} has no such class; give images "
            "of every listed class, or another list"
        )
    left_out = len(lines) - len(listed)
    if left_out:
        log.info(
            "classes %d of %d classes of %s %s are left out: --classes %s does not list them",
            left_out,
            len(lines),
            flag,
            images.root,
            subset,
        )
    if how != "by name":
        log.info("classes the %d listed classes were found in %s %s %s", len(listed), flag, images.root, how)
    images.classes = [images.classes[lines.index(line)] for line in range(len(listed))] if images.named else listed
    images.named = True
    images.renumber(lines)


def numbers_of_classes(
    subset: str,
    folders: Sequence[str],
    num_classes: int,
    whose: str,
    class_order: str | None = None,
    stated: Mapping[str, int] | None = None,
) -> list[int]:
    """Return the class number that labels, or a teacher, use for each class that --classes lists.

    The numbers come from the first of these sources that applies:

    * --class-order, if it was given: it names the classes of the labels or the teacher;
    * the labels' manifest, if it names every listed class;
    * ImageNet's list of classes, if C is 1,000 and the list contains every listed class;
    * the order of the lines, if --classes lists C classes.

    Args:
        subset: value of --classes.
        folders: name of each listed class in the image set, whose spelling may differ from that of --classes.
        num_classes: C, number of classes of the labels or the teacher.
        whose: the labels or the teacher, as the beginning of the error message, such as `the labels in DIR have`.
        class_order, stated: see `number_train_folders`.

    Raises:
        InputError: none of these sources applies, or --class-order is wrong.
    """
    listed = listed_classes(subset)
    spellings = (list(folders), listed)
    if class_order is not None:
        order = set(read_names(class_order, "--class-order"))
        names = next((names for names in spellings if order.issuperset(names)), spellings[0])
        numbering = number_train_folders(names, num_classes, class_order)
        return [number for number in numbering.numbers if number is not None]
    for names in spellings:
        if stated is not None and stated.keys() >= set(names):
            return [stated[name] for name in names]
    if num_classes == IMAGENET_CLASSES:
        for names in spellings:
            numbers = numbers_in_imagenet(names)
            if numbers is not None:
                return numbers
    if num_classes == len(listed):
        return list(range(num_classes))
    raise InputError(
        f"{whose} {num_classes} classes, and it is not known which of them are the {len(listed)} of --classes "
        f"{subset}; name all of them in order with --class-order FILE"
    )
