"""Read parquet tables of images with classes, in the form that the Hugging Face hub uses.

A table has a column of images, whose type is binary or a struct {bytes, path}, and a column of classes. The names of
the classes are in the metadata that the library `datasets` writes into the schema. A set is a folder of files such as
`train-00000-of-00005.parquet`, often in a sub-folder `data`.

A file consists of groups of rows. Each process has its own cache of the groups that it used last, and shares no open
file with other processes.
"""

import json
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from utils.data.images import Container, ImageSet
from utils.data.readers.labels import labelled_set
from utils.data.readers.parts import files_with, of_part
from utils.system.errors import InputError, clause, listing

OLDEST_PYARROW = (14, 0, 1)  # earlier versions may run code that a file holds (CVE-2023-47248)
IMAGES = ("image", "img", "images", "jpg", "jpeg", "png", "webp")  # preferred names of the column of images, best first
# preferred names of the column of classes, best first
LABELS = ("label", "labels", "fine_label", "cls", "class", "class_id", "target")
# limit of a process's cache of row groups, in bytes per set; a single larger group may exceed the limit
CACHE_BYTES = 64 * 2**20
NO_IMAGE = "its row holds no image"
FEW_FOLDERS = 5  # sub-folders are searched for tables only if there are at most this many


@dataclass
class Groups:
    """Cache of row groups in the memory of one process.

    Attributes:
        process: id of the process.
        lock: held while a group is read; threads of the process share the groups.
        columns: index of a group -> the group's column of images; the group that was used last is at the end.
    """

    process: int
    lock: Lock = field(default_factory=Lock)
    columns: OrderedDict[int, Any] = field(default_factory=OrderedDict)


@dataclass(frozen=True)
class Columns:
    """Names of the columns that hold the images and classes of a table, and names of the classes.

    Attributes:
        image: column of the images' bytes; `image.bytes` is the field `bytes` of a struct `image`.
        label: column of the classes.
        classes: name of each class; None if the table does not list them.
    """

    image: str
    label: str
    classes: list[str] | None


class Tables(Container):
    """Images in parquet files.

    Args:
        path: the file, or the folder of the files, for error messages.
        files: paths of the files.
        column: the column that holds the bytes of the images; `image.bytes` is the field `bytes` of a struct `image`.
        places: for every group of rows, (index in `files`, index of the group in this file, row of this file at which
            the group begins).
        starts: index of the first image of every group; then, as the last item, the number of all images.

    Attributes:
        lengths: index of each group that has been read once -> number of bytes of each of its images, int64 [rows];
            kept for good, so that `num_bytes` does not read the group again. 0: the row holds no image.
    """

    def __init__(self, path: str, files: list[str], column: str, places: list[tuple[int, int, int]], starts: list[int]):
        self.path, self.files, self.column, self.places, self.starts = path, files, column, places, starts
        self.groups: Groups | None = None
        self.lengths: dict[int, np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes to pickle, without the cached groups, because each process must read groups itself."""
        return self.__dict__ | {"groups": None}

    def place(self, number: int) -> tuple[int, int]:
        """Return (index of the group that holds image `number`, row of the image in the group)."""
        group = bisect_right(self.starts, number) - 1
        return group, number - self.starts[group]

    def name(self, number: int) -> str:
        """Return `FILE/ROW`: the file's name without suffix, and the row of the image in the file."""
        group, row = self.place(number)
        file, _, first = self.places[group]
        return f"{Path(self.files[file]).stem}/{first + row:07}"

    def read(self, number: int) -> bytes:
        """Return image `number` as the bytes of an image file; raise OSError if the row holds no image."""
        group, row = self.place(number)
        content = self.rows_of(group)[row].as_py()
        if not content:
            raise OSError(NO_IMAGE)
        return content

    def num_bytes(self, number: int) -> int:
        """Return the number of bytes of the image file; the group of the image is read only if it never was before."""
        group, row = self.place(number)
        if group not in self.lengths:
            self.rows_of(group)
        if not self.lengths[group][row]:
            raise OSError(NO_IMAGE)
        return int(self.lengths[group][row])

    def rows_of(self, group: int) -> Any:
        """Return the images of a group of rows, as a pyarrow array of bytes; read them if they are not in memory."""
        if self.groups is None or self.groups.process != os.getpid():
            self.groups = Groups(os.getpid())
        own = self.groups
        with own.lock:
            if group not in own.columns:
                own.columns[group], self.lengths[group] = self.read_group(group)
            own.columns.move_to_end(group)
            while len(own.columns) > 1 and sum(column.nbytes for column in own.columns.values()) > CACHE_BYTES:
                own.columns.popitem(last=False)
            return own.columns[group]

    def read_group(self, group: int) -> tuple[Any, np.ndarray]:
        """Read a row group; raise OSError if the file was damaged after the set had been opened.

        Returns:
            (images as a pyarrow array of bytes, number of bytes of each image: int64 [rows]). The number is 0 if a row
            holds no image.
        """
        file, own, _ = self.places[group]
        path = self.files[file]
        reader = pyarrow_parquet(path)
        from pyarrow import compute, types

        try:
            column = reader.ParquetFile(path).read_row_group(own, [self.column], use_threads=False)[0]
            if types.is_struct(column.type):
                (column,) = column.flatten()  # the only field that was read, `bytes`
            lengths = compute.binary_length(column).fill_null(0).to_numpy().astype(np.int64)
        except Exception as error:  # pyarrow raises many types of exceptions
            raise OSError(f"{path} is damaged: {clause(error)}") from None
        if len(column) != self.starts[group + 1] - self.starts[group]:
            raise OSError(f"{path} is damaged: a group has {len(column)} rows")
        return column, lengths


def pyarrow_parquet(path: str) -> Any:
    """Import and return the module `pyarrow.parquet`.

    Raises:
        InputError: pyarrow is missing or too old. The message names the parquet file `path`.
    """
    oldest = ".".join(map(str, OLDEST_PYARROW))
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(
            f"{path} needs pyarrow, which cannot be imported ({clause(error)}); pip install 'pyarrow>={oldest}'"
        ) from None
    if tuple(int(number) for number in pyarrow.__version__.split(".")[:3]) < OLDEST_PYARROW:
        raise InputError(
            f"{path} needs pyarrow {oldest} or later, because {pyarrow.__version__} may run code that a file holds; "
            f"pip install 'pyarrow>={oldest}'"
        )
    return parquet


def folders_with_tables(path: Path) -> list[Path]:
    """Return [`path`] if this folder holds parquet files, else the list of its sub-folders that hold parquet files.

    If there are more than FEW_FOLDERS sub-folders, the list is empty.
    """
    if files_with(path, ".parquet"):
        return [path]
    try:
        folders = sorted(Path(entry.path) for entry in os.scandir(path) if entry.is_dir() and entry.name[0] != ".")
    except OSError:
        return []
    return [folder for folder in folders if files_with(folder, ".parquet")] if len(folders) <= FEW_FOLDERS else []


def recognise(path: Path | str) -> bool:
    """Return whether `path` is a parquet file, or a folder with parquet files in it or in its sub-folders."""
    path = Path(path)
    return path.suffix == ".parquet" if path.is_file() else bool(folders_with_tables(path))


def read(path: Path | str, flag: str, part: str, normalised: str) -> ImageSet:
    """Read parquet tables.

    Args:
        path: a parquet file, or a folder with parquet files in it or in one sub-folder.
        flag: command-line flag that gave the path, for error messages.
        part: `train` or `val`; used only if the names of the files mention a part.
        normalised: has no effect, because the images have 8 bits.

    Raises:
        InputError: pyarrow is missing or too old; a file is damaged; there is no column of images or of classes; or the
            files differ in columns or classes.
    """
    files = files_of(Path(path), flag, part)
    places: list[tuple[int, int, int]] = []
    starts = [0]
    labels: list[int | str] = []
    columns: Columns | None = None
    for number, file in enumerate(files):
        try:
            table = pyarrow_parquet(file).ParquetFile(file)
            if table.metadata.num_rows > os.path.getsize(file):
                raise ValueError(f"its header states {table.metadata.num_rows} rows, more than it can hold")
            if columns is None:
                columns = columns_of(table.schema_arrow, file)
            elif columns_of(table.schema_arrow, file) != columns:
                raise InputError(
                    f"{file} has other columns or classes than {files[0]}; give a folder that holds a single set"
                )
            labels += table.read([columns.label], use_threads=False)[0].to_pylist()
            first = 0
            for group in range(table.metadata.num_row_groups):
                places.append((number, group, first))
                first += table.metadata.row_group(group).num_rows
                starts.append(starts[-1] + table.metadata.row_group(group).num_rows)
        except InputError:
            raise
        except Exception as error:  # pyarrow raises many types of exceptions
            raise InputError(f"{file} is damaged or cannot be read ({clause(error)}); copy it again") from None
        if len(labels) != starts[-1]:
            raise InputError(f"{file} holds {len(labels)} classes for {starts[-1]} images; copy it again")
        if any(type(label) not in (int, str) for label in labels):
            raise InputError(f"{file}: a row has no class in the column {columns.label}; copy it again")
    if columns is None or not labels:
        raise InputError(f"{flag} {path} holds no images; copy it again")
    container = Tables(str(path), files, columns.image, places, starts)
    layout = f"parquet, {len(files)} file{'s' if len(files) > 1 else ''}"
    return labelled_set(container, labels, layout, columns.classes)


def files_of(path: Path, flag: str, part: str) -> list[str]:
    """Return the paths of the parquet files that hold the part `part` (train or val) of the set at `path`.

    Raises:
        InputError: `path` holds no parquet files, parquet files in several sub-folders, or only files of other parts.
    """
    if path.is_file():
        return [str(path)]
    folders = folders_with_tables(path)
    if len(folders) != 1:
        found = f"several sets; give one of the folders {listing(folders)}" if folders else "no parquet files"
        raise InputError(f"{flag} {path} holds {found}")
    return [str(folders[0] / name) for name in of_part(files_with(folders[0], ".parquet"), part, path, flag)]


def columns_of(schema: Any, path: str) -> Columns:
    """Choose the column of images and the column of classes of a table, and read the names of the classes.

    Args:
        schema: the table's schema.
        path: the table's file, for error messages.

    Raises:
        InputError: one of the columns is missing or ambiguous, or two classes have the same name.
    """
    features = features_of(schema.metadata or {})
    types = {name: schema.field(name).type for name in schema.names if schema.names.count(name) == 1}
    images = {name: inside for name, kind in types.items() if (inside := bytes_in(name, kind)) is not None}
    classes = [name for name in types if features.get(name, {}).get("_type") == "ClassLabel"]
    image = preferred(IMAGES, list(images), path, "images as bytes", schema.names)
    label = preferred(LABELS, classes or [name for name in types if name in LABELS], path, "classes", schema.names)
    names = features.get(label, {}).get("names")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        return Columns(images[image], label, None)
    if len(set(names)) < len(names):
        raise InputError(f"{path} names a class twice; copy it again")
    return Columns(images[image], label, names)


def features_of(metadata: Mapping[bytes, bytes]) -> dict[str, dict[str, Any]]:
    """Return {column: description}, which the library `datasets` writes into a schema's metadata; {} if missing."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return {name: value for name, value in features.items() if isinstance(value, dict)}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}


def bytes_in(name: str, kind: Any) -> str | None:
    """Return the name of the column, or of its field, that holds bytes; None if there is none.

    Args:
        name: name of the column. It is returned if the column holds bytes.
        kind: pyarrow type of the column. If it is a struct with a field `bytes`, `name.bytes` is returned.
    """
    from pyarrow import types

    def is_bytes(kind: Any) -> bool:
        return types.is_binary(kind) or types.is_large_binary(kind)

    if is_bytes(kind):
        return name
    fields = [kind.field(number) for number in range(kind.num_fields)] if types.is_struct(kind) else []
    return f"{name}.bytes" if any(inner.name == "bytes" and is_bytes(inner.type) for inner in fields) else None


def preferred(wanted: Sequence[str], columns: list[str], path: str, what: str, all_columns: list[str]) -> str:
    """Return the first name of `wanted` that is in `columns`; if there is none, return the only name in `columns`.

    The other arguments are for error messages.

    Raises:
        InputError: `columns` is empty, or contains several names but none of `wanted`.
    """
    named = [name for name in wanted if name in columns]
    if named:
        return named[0]
    if len(columns) == 1:
        return columns[0]
    found = f"several columns of {what}, {listing(columns)}" if columns else f"no column of {what}"
    raise InputError(
        f"{path} has {found} (its columns: {listing(all_columns, 8)}); rename the column to use to "
        f"{' or '.join(wanted[:2])}"
    )
