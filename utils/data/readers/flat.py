"""Read images that lie in one folder, without a sub-folder per class; a text file gives the class of each image.

Text files with these names are recognised, beside the images or one level above:

* `LOC_val_solution.csv`, ImageNet's table from Kaggle: `ImageId,PredictionString`, then lines such as
  `ILSVRC2012_val_00000001,n01751748 111 108 370 297`: the class, and boxes that are not used;
* `val_annotations.txt` of Tiny-ImageNet: `val_0.JPEG<tab>n03444034<tab>0<tab>32<tab>44<tab>62`: file, class and a box;
* `ILSVRC2012_validation_ground_truth.txt` of ImageNet's development kit: one number a line, 1 … 1000, line n for the
  image `ILSVRC2012_val_<n>`. The numbers are ILSVRC2012_IDs, which do not follow the sorted order of the classes. The
  class of each number is in `meta.mat` of the same kit, in its `map_clsloc.txt` (lines `n02119789 1 kit_fox`), or in
  `synsets.txt`, one class a line in the order of the numbers.

--val-labels takes a file of any name: a table `file, class`, or one class a line in the order of sorted file names.
"""

import csv
import os
import re
import struct
import zlib
from codecs import BOM_UTF8
from collections.abc import Sequence
from pathlib import Path

from utils.data.folders import SUFFIXES, is_debris
from utils.data.images import ImageSet, Samples, channels_of_files
from utils.data.readers.matlab import read_structs
from utils.system.errors import InputError, clause, listing
from utils.system.log import log

TRUTH = "ILSVRC2012_validation_ground_truth.txt"
TABLES = ("LOC_val_solution.csv", "val_annotations.txt", TRUTH)
CLASS_LISTS = ("meta.mat", "map_clsloc.txt", "synsets.txt")
KIT = os.path.join("ILSVRC2012_devkit_t12", "data")  # folder of TRUTH and CLASS_LISTS in the development kit
IDENTITY = ("ILSVRC2012_ID", "WNID")  # fields of a class in the kit's meta.mat: number and name
BOXES = "PredictionString"  # header of the column of LOC_val_solution.csv that holds class and boxes
MATLAB = b"MATLAB 5.0 MAT-file"
MAX_TEXT_BYTES = 256 * 2**20
NUMBERED = re.compile(r"ILSVRC2012_val_(\d{8})\.\w+")


def recognise(path: Path | str) -> bool:
    """Return whether `path` is a folder of images without class folders, and `find_file` finds a file of TABLES."""
    folder = image_folder(path)
    return folder is not None and find_file(folder, TABLES) is not None


def image_folder(path: Path | str) -> str | None:
    """Return `path`, or its only sub-folder if called `images`: the one that holds images but no sub-folders.

    Return None if neither folder holds images only.
    """
    names, folders = visible(os.fspath(path))
    if folders == ["images"] and not names:
        path = os.path.join(path, "images")
        names, folders = visible(path)
    return os.fspath(path) if names and not folders else None


def visible(folder: str) -> tuple[list[str], list[str]]:
    """Return (sorted names of image files, sorted names of sub-folders) in a folder; hidden ones are left out."""
    try:
        entries = [entry for entry in os.scandir(folder) if not is_debris(entry.name)]
        folders = {entry.name for entry in entries if entry.is_dir()}
    except OSError:
        return [], []
    files = [entry.name for entry in entries if entry.name not in folders]
    return sorted(name for name in files if name.lower().endswith(SUFFIXES)), sorted(folders)


def find_file(folder: str, names: Sequence[str]) -> str | None:
    """Return the path of the first file of `names` that exists in or near `folder`; None if none exists.

    The folders searched are `folder`, its sub-folder KIT, the folder above, and the sub-folder KIT of that.
    """
    above = os.path.dirname(os.path.abspath(folder))
    places = [os.path.join(place, *kit) for place in (folder, above) for kit in ((), (KIT,))]
    paths = [os.path.join(place, name) for name in names for place in places]
    return next(filter(os.path.isfile, paths), None)


def read(path: Path | str, flag: str, part: str, normalised: str, table: str | None = None) -> ImageSet:
    """Read images without class folders.

    Args:
        path: the folder.
        flag: command-line flag that gave the path, for error messages.
        part: has no effect, because the folder is not divided into parts.
        normalised: has no effect, because the images have 8 bits.
        table: the file that gives the classes; None to look for a file of TABLES.

    Raises:
        InputError: the folder has no images or has sub-folders; or the file of classes is missing, cannot be read or
            does not fit the images.
    """
    folder = image_folder(path)
    if folder is None:
        raise InputError(
            f"--val-labels {table} needs a folder of images without sub-folders, but {flag} {path} is not one; leave "
            "--val-labels out, or give that folder"
        )
    names, _ = visible(folder)
    table = table or find_file(folder, TABLES)
    if table is None:
        raise InputError(f"{flag} {path} holds images without classes; {REMEDY}")
    class_of = classes_of(names, table, folder)
    lacking = [name for name in names if name not in class_of]
    if lacking:
        raise InputError(
            f"{table} gives no class for {len(lacking)} of {len(names)} images in {folder} ({listing(lacking, 3)}); "
            "give the table of these images"
        )
    classes = sorted_classes(set(class_of.values()))
    number_of = {name: number for number, name in enumerate(classes)}
    samples: Samples = [(os.path.join(folder, name), number_of[class_of[name]]) for name in names]
    layout = f"images in one folder, with the classes of {table}"
    return ImageSet(folder, classes, samples, channels=channels_of_files(samples), layout=layout)


REMEDY = (
    f"put one of {', '.join(TABLES)} beside them or one level above, give their table with --val-labels FILE, or make "
    "one sub-folder per class"
)


def sorted_classes(names: set[str]) -> list[str]:
    """Sort class names: by value if all names are numbers, else as text."""
    if all(name.isascii() and name.isdigit() and len(name) < 10 for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def classes_of(names: Sequence[str], table: str, folder: str) -> dict[str, str]:
    """Return a dict file name -> class of the images for which a file of classes gives a class.

    Args:
        names: sorted names of the image files.
        table: the file of classes: a table (image, class); a list with one class for each image; the development kit's
            file of class numbers; or the kit's list of classes, which gives the meaning of these numbers.
        folder: folder of the images.

    Raises:
        InputError: a file is missing, cannot be read, or does not fit the images.
    """
    if is_matlab(table) or os.path.basename(table) in CLASS_LISTS:
        return classes_of_numbers(names, find_truth(folder, table), table)
    rows = [line for line in read_lines(table) if line.strip()]
    if not rows:
        raise InputError(f"{table} is empty; give the table of the images")
    of_kit = os.path.basename(table) == TRUTH or all(map(NUMBERED.fullmatch, names))
    if of_kit and all(line.strip().isdecimal() for line in rows):
        classes = find_file(os.path.dirname(os.path.abspath(table)), CLASS_LISTS) or find_file(folder, CLASS_LISTS)
        if classes is None:
            raise InputError(
                f"{table} holds numbers of ImageNet's development kit, and the names of the classes are missing; put "
                f"one of {', '.join(CLASS_LISTS)} of the kit beside it"
            )
        return classes_of_numbers(names, table, classes)
    pairs = split_rows(rows, table)
    if all(len(pair) == 1 for pair in pairs):
        if len(pairs) == len(names):
            return {name: pair[0] for name, pair in zip(names, pairs, strict=True)}
        return classes_of_numbers(names, find_truth(folder, table), table)
    found = classes_of_pairs(names, pairs, table)
    truth = find_file(folder, (TRUTH,))
    if not found and truth is not None:  # the table is the kit's list of classes if it names no image
        return classes_of_numbers(names, truth, table)
    return found


def is_matlab(path: str) -> bool:
    """Return whether a file is a MATLAB file; raise InputError if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(len(MATLAB)) == MATLAB
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give a text file") from None


def read_lines(path: str) -> list[str]:
    """Return the lines of a text file; raise InputError if the file cannot be read, is too large, or is no text."""
    try:
        if os.path.getsize(path) > MAX_TEXT_BYTES:
            raise InputError(
                f"{path} is larger than {MAX_TEXT_BYTES >> 20} MiB, too large for a table of classes; give another file"
            )
        content = Path(path).read_bytes().removeprefix(BOM_UTF8)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give a text file") from None
    if b"\0" in content:
        raise InputError(f"{path} is not a text file in UTF-8; give the table of the images")
    return content.decode("utf-8", "surrogateescape").splitlines()


def split_rows(rows: Sequence[str], table: str) -> list[list[str]]:
    """Return the first two fields of each row of a table, or the only field if every row has one field.

    Fields are separated by tabs if the first row contains a tab, else by commas if it contains a comma, else by white
    space. If the second field holds a class and boxes, only the class is returned.

    Raises:
        InputError: quotes do not match; a field is empty; or some rows have one field and others more.
    """
    if "\t" in rows[0]:
        fields = [row.split("\t") for row in rows]
    elif "," in rows[0]:
        try:
            fields = list(csv.reader(rows, strict=True))
        except csv.Error as error:
            raise InputError(f"{table} has a damaged line ({clause(error)}); copy the file again") from None
    else:
        fields = [row.split(None, 1) for row in rows]
    pairs = [[field.strip() for field in row[:2]] for row in fields]
    if len(pairs[0]) > 1 and pairs[0][1] == BOXES:
        pairs = [[*pair[:1], *first_words(pair[1:])] for pair in pairs]
    wrong = [row for row, pair in zip(rows, pairs, strict=False) if len(pair) != len(pairs[0]) or not all(pair)]
    if wrong:
        raise InputError(f"{table}: the line {clause(wrong[0], 60)!r} has no class; give lines FILE<tab>CLASS")
    return pairs


def first_words(texts: Sequence[str]) -> list[str]:
    """Return the first word of each text; skip empty texts."""
    return [text.split(None, 1)[0] for text in texts if text]


def classes_of_pairs(names: Sequence[str], pairs: list[list[str]], table: str) -> dict[str, str]:
    """Return a dict file name -> class of the images that a table (image, class) lists.

    In the table, a file name may follow folder names, and may lack its suffix.

    Raises:
        InputError: the table names an image twice, with different classes.
    """
    files = {os.path.splitext(name)[0]: name for name in names} | {name: name for name in names}
    found: dict[str, str] = {}
    others = 0
    for image, label in pairs:
        name = files.get(os.path.basename(image.replace("\\", "/")))
        if name is None:
            others += 1
        elif found.setdefault(name, label) != label:
            raise InputError(f"{table} gives {name} two classes, {found[name]} and {label}; give each image one class")
    # one unknown name is not logged, because the first line may be a header
    if others > 1:
        log.info("classes %d lines of %s name images that are not in the folder", others, table)
    return found


def find_truth(folder: str, classes: str) -> str:
    """Return the path of TRUTH, the development kit's class numbers, near `folder` or near the file `classes`.

    Args:
        folder: folder of the images.
        classes: file that lists the classes of the kit.

    Raises:
        InputError: TRUTH is near neither.
    """
    truth = find_file(folder, (TRUTH,)) or find_file(os.path.dirname(os.path.abspath(classes)), (TRUTH,))
    if truth is None:
        raise InputError(
            f"{classes} lists only the names of classes, and no file gives the classes of the images in {folder}; put "
            f"{TRUTH} beside the images, or give a table with lines FILE<tab>CLASS"
        )
    return truth


def classes_of_numbers(names: Sequence[str], truth: str, classes: str) -> dict[str, str]:
    """Look up the class of each image in two files of ImageNet's development kit; return a dict file name -> class.

    Args:
        names: sorted names of the image files. Image ILSVRC2012_val_<n> belongs to line n of `truth`. If any image
            is not named like this, the k-th name belongs to line k.
        truth: the kit's file of class numbers, one a line.
        classes: the kit's file that gives the class name of each number.

    Raises:
        InputError: a file cannot be read, or the files do not fit each other or the images.
    """
    lines = [line.strip() for line in read_lines(truth) if line.strip()]
    if not all(line.isdecimal() for line in lines):
        raise InputError(f"{truth} does not hold one number a line; copy it again")
    name_of = class_names(classes)
    matches = [NUMBERED.fullmatch(name) for name in names]
    if all(matches):
        places = [int(match[1]) - 1 for match in matches if match]
    else:
        places = list(range(len(names)))
        if len(lines) != len(names):
            raise InputError(
                f"{truth} has {len(lines)} lines, but there are {len(names)} images, which are not named "
                "ILSVRC2012_val_00000001 and so on; give the images under their own names"
            )
    beyond = [name for name, place in zip(names, places, strict=True) if not 0 <= place < len(lines)]
    if beyond:
        raise InputError(f"{truth} has {len(lines)} lines, none of them for {listing(beyond, 3)}; copy it again")
    unknown = sorted({lines[place] for place in places} - name_of.keys())
    if unknown:
        raise InputError(f"{classes} does not name class {listing(unknown, 3)} of {truth}; give the kit's own file")
    return {name: name_of[lines[place]] for name, place in zip(names, places, strict=True)}


def class_names(path: str) -> dict[str, str]:
    """Return a dict class number (as text) -> class name for the class numbers of ImageNet's development kit.

    Args:
        path: `meta.mat`; or a text file with lines `CLASS NUMBER WORDS`; or a text file with one class a line, in the
            order of the numbers.

    Raises:
        InputError: the file cannot be read or is empty; or a file without numbers repeats a class, or is in sorted
            order, which is not the order of the numbers.
    """
    if is_matlab(path):
        return read_meta(path)
    rows = [line.split() for line in read_lines(path) if line.strip()]
    if rows and all(len(row) > 1 and row[1].isdecimal() for row in rows):
        return {row[1]: row[0] for row in rows}
    names = [row[0] for row in rows]
    if len(set(names)) < len(names) or not names:
        raise InputError(f"{path} does not list each class once; give one class a line")
    if names == sorted(names) and len(names) > 1:
        raise InputError(
            f"{path} lists the classes in sorted order, but the numbers in {TRUTH} follow another order; give "
            "meta.mat of the same kit"
        )
    return {str(number): name for number, name in enumerate(names, 1)}


def read_meta(path: str) -> dict[str, str]:
    """Read `meta.mat` of the development kit; return a dict ILSVRC2012_ID (as text) -> WNID (class name).

    Raises:
        InputError: the file cannot be read or is damaged.
    """
    try:
        content = Path(path).read_bytes()
        return {str(int(number)): str(wnid) for number, wnid in read_structs(content, "synsets", IDENTITY)}
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); copy it again") from None
    except (ValueError, OverflowError, struct.error, zlib.error) as error:
        raise InputError(f"{path} is damaged, or not of the kit ({clause(error)}); copy it again") from None
