"""Read `torch.save` files, and pickles of numpy arrays, from untrusted sources.

A `torch.save` file is a zip archive. Its record `NAME/data.pkl` is a pickle that describes the object, and each
record `NAME/data/K` holds the raw bytes of storage K. Before PyTorch 1.6, the file had another format. It began with
five pickles: a magic number, a version, the byte order, the object, and the list of storage names. After the pickles,
the file held the length (int64) and the raw bytes of each storage.

Unpickling can run any code, and `torch.load` trusts the sizes in the pickle. Therefore this module reads both formats
itself, with these precautions:

* The pickle may only name classes and functions on an allow-list. Most functions on the list are replaced by small
  functions of this module, which check their arguments. Any other name raises an error that contains the name.
* A checkpoint may hold settings beside the weights, as objects of some known classes. Each settings object is replaced
  by an `Inert` object, which has no content and does nothing.
* The unpickler is the pure-Python one of the standard library. Opcodes that allocate memory before the data is read
  are removed from it.
* A tensor must lie inside its storage, and a storage must be as long as its record. Records must be uncompressed. All
  records together must not be longer than the file.

The module works with every supported PyTorch version, and reads pickles of numpy 1 and numpy 2.
"""

import io
import os
import pickle
import re
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from utils.system.errors import InputError, clause
from utils.system.files import atomic_file

MAX_PICKLE_BYTES = 64 * 2**20


# allow-list for unpickling: (module, name) as in the pickle -> the class, function or value that is used in its place
Globals = Mapping[tuple[str, str], Any]


STORAGE_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class ForbiddenPickle(pickle.UnpicklingError):
    """Error raised if a pickle uses a class, function or value that is not allowed.

    Args:
        what: the thing that is not allowed, for the error message.
        module: if a class or function is not on the allow-list, its module; otherwise empty.
    """

    def __init__(self, what: str, module: str = "") -> None:
        super().__init__(what)
        self.module = module


NUMBER_CODES = ("i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "f8", "f4", "f2", "b1")


# The type hints below are true for valid pickles. A malicious pickle may pass arguments of any type.


class _NumpyDtype:
    """Replacement for `numpy.dtype` in unpickling; holds only the type code, such as `i8`, and the byte order."""

    def __init__(self, code: str | bytes, *_flags: object):
        self.code = code.decode("latin1") if isinstance(code, bytes) else code  # Python 2 pickles hold bytes
        self.order = "<"

    def set_state(self, state: Sequence[Any]) -> None:
        order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        self.order = "<" if order == "|" else order

    def of_numbers(self) -> np.dtype:
        """Return the numpy dtype; raise ForbiddenPickle unless it is a supported type of numbers or bools."""
        if self.code not in NUMBER_CODES:
            raise ForbiddenPickle(f"a numpy value of type {self.code!r:.40}")
        return np.dtype(self.order + self.code)


class PickledArray:
    """Replacement for `numpy.ndarray` in unpickling; it holds an array of numbers.

    Attributes:
        array: the array, read-only; None until the unpickler has called `set_state`.
    """

    array: np.ndarray | None = None

    def set_state(self, state: Sequence[Any]) -> None:
        """Set `array` from the pickled state: (version, shape, dtype, True for Fortran order, bytes).

        Raises:
            UnpicklingError: the state holds no numbers, or the shape is invalid.
            ForbiddenPickle: the dtype is not a supported type of numbers or bools.
            ValueError: the number of bytes does not match the shape.
        """
        _version, shape, dtype, fortran, data = state
        if not isinstance(dtype, _NumpyDtype) or not isinstance(data, bytes):
            raise pickle.UnpicklingError("a numpy array without numbers")
        if any(type(n) is not int or n < 0 for n in shape):
            raise pickle.UnpicklingError("a numpy array with an impossible shape")
        self.array = np.frombuffer(data, dtype.of_numbers()).reshape(shape, order="F" if fortran else "C")


def _reconstruct(kind: type, *_shape_and_code: object) -> PickledArray:
    """Return an empty `PickledArray`. The unpickler calls this function in place of numpy's `_reconstruct`.

    Raises:
        ForbiddenPickle: the pickle asks for an array of a class other than `numpy.ndarray`.
    """
    if kind is not PickledArray:
        raise ForbiddenPickle("an array of another class than numpy.ndarray")
    return PickledArray()


def _numpy_scalar(dtype: _NumpyDtype, data: bytes) -> int | float | bool:
    """Return the Python number that the bytes of a pickled numpy scalar encode.

    In unpickling, this function replaces numpy's function `scalar`.

    Raises:
        ForbiddenPickle: `dtype` is not one of the supported types of numbers and bools.
        UnpicklingError: `data` holds no number, or several numbers.
    """
    array = np.frombuffer(data, dtype=dtype.of_numbers())
    if array.size != 1:
        raise pickle.UnpicklingError("a numpy scalar of the wrong length")
    return array[0].item()


def _encode(text: str, encoding: str) -> bytes:
    """Return `text` encoded as Latin-1. In unpickling, this function replaces `_codecs.encode`.

    Pickle protocol 2 stores bytes as text, which `_codecs.encode` turns back into bytes.

    Raises:
        ForbiddenPickle: `encoding` is not latin1.
    """
    if encoding != "latin1":
        raise ForbiddenPickle(f"_codecs.encode to {encoding!r}")
    return text.encode("latin1")


def _rebuild_tensor(
    storage: torch.Tensor,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    _requires_grad: object = False,
    _hooks: object = None,
    _meta: object = None,
) -> torch.Tensor:
    """Return a tensor of the given size and stride that is a view of `storage`.

    In unpickling, this function replaces `torch._utils._rebuild_tensor_v2`.

    Raises:
        UnpicklingError: the shape is invalid, or the tensor does not lie inside its storage.
    """
    numbers = (offset, *size, *stride)
    if any(type(n) is not int or n < 0 for n in numbers) or len(size) != len(stride):
        raise pickle.UnpicklingError("a tensor with an impossible shape")
    numel = 1
    for n in size:
        numel *= n
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if numel > storage.numel() or (numel and last >= storage.numel()):
        raise pickle.UnpicklingError("a tensor larger than its storage")
    # In files from before PyTorch 1.6, `storage` may be a slice of a longer storage. `as_strided` counts from the start
    # of the longer storage, so the start of the slice is added to `offset`.
    return storage.as_strided(size, stride, storage.storage_offset() + offset) if numel else storage.new_empty(size)


def _rebuild_parameter(tensor: torch.Tensor, _requires_grad: object, _hooks: object) -> torch.Tensor:
    """Return `tensor` unchanged. In unpickling, this function replaces `torch._utils._rebuild_parameter`."""
    return tensor


LABEL_GLOBALS: Globals = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
    ("numpy", "dtype"): _NumpyDtype,
    ("numpy.core.multiarray", "scalar"): _numpy_scalar,
    ("numpy._core.multiarray", "scalar"): _numpy_scalar,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    **{("torch", name): dtype for name, dtype in STORAGE_DTYPES.items()},
}

ARRAY_GLOBALS: Globals = {
    ("_codecs", "encode"): _encode,
    ("numpy", "dtype"): _NumpyDtype,
    ("numpy", "ndarray"): PickledArray,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
}


class _Parameter:
    """Replacement for `torch.nn.Parameter` in pickles of PyTorch 0.3; its constructor returns the plain tensor."""

    def __new__(cls, tensor: torch.Tensor, *_requires_grad: object) -> Any:
        return tensor


WEIGHT_GLOBALS: Globals = {
    **LABEL_GLOBALS,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,  # pickles of PyTorch 0.3 use this name
    ("torch.nn.parameter", "Parameter"): _Parameter,
}


class Inert:
    """Object without content that replaces each settings object when a checkpoint is unpickled.

    The unpickler may pass it constructor arguments, list items, dict items and a state. All of them are discarded.
    """

    __slots__ = ()

    def __new__(cls, *_arguments: object, **_named: object) -> "Inert":
        return super().__new__(cls)

    def __init__(self, *_arguments: object, **_named: object) -> None:
        """Discard the arguments that the pickle passes to the constructor."""

    def __setitem__(self, _key: object, _value: object) -> None:
        """Discard an item; the unpickler calls this method to fill an object that is a dict."""

    def append(self, _item: object) -> None:
        """Discard an item; the unpickler calls this method to fill an object that is a list."""

    def extend(self, _items: object) -> None:
        """Discard several items; the unpickler calls this method to fill an object that is a list."""


_PATHS = "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath"
_PLAIN = "set frozenset slice range complex bytearray int float str bool list tuple dict bytes object"
_DTYPES = "float32 float16 bfloat16 float64 int64 int32 int16 int8 uint8 bool"
# Classes of the settings that training scripts save beside the weights: Python module -> names in it. When a checkpoint
# is read, an `Inert` object replaces each object of these classes, so the classes themselves are never used.
SETTINGS = {
    "argparse": "Namespace",
    "types": "SimpleNamespace",
    "typing": "Any Dict List Optional Tuple Union",
    "collections": "defaultdict Counter deque",
    "builtins": _PLAIN,
    "__builtin__": _PLAIN,
    "pathlib": _PATHS,
    "pathlib._local": _PATHS,
    "datetime": "datetime date time timedelta timezone",
    "numpy": "ndarray",
    "numpy.core.multiarray": "_reconstruct",  # the function with which pickles construct numpy arrays
    "numpy._core.multiarray": "_reconstruct",
    "torch": f"device Size {_DTYPES}",
    "easydict": "EasyDict",
    "addict": "Dict",
    "addict.addict": "Dict",
    "yacs.config": "CfgNode",
    "fvcore.common.config": "CfgNode",
    "mmcv.utils.config": "Config ConfigDict",
    "mmengine.config.config": "Config ConfigDict",
    "ml_collections.config_dict.config_dict": "ConfigDict FrozenConfigDict",
    "omegaconf.dictconfig": "DictConfig",
    "omegaconf.listconfig": "ListConfig",
    "omegaconf.base": "Metadata ContainerMetadata",
    "omegaconf.nodes": "AnyNode BooleanNode BytesNode FloatNode IntegerNode PathNode StringNode",
    "pytorch_lightning.utilities.parsing": "AttributeDict",
    "lightning_fabric.utilities.data": "AttributeDict",
    "lightning.fabric.utilities.data": "AttributeDict",
    "lightning.pytorch.utilities.parsing": "AttributeDict",
}


CHECKPOINT_GLOBALS: Globals = {
    **{(module, name): Inert for module, names in SETTINGS.items() for name in names.split()},
    **WEIGHT_GLOBALS,
}


class _Unpickler(pickle._Unpickler):
    """Pure-Python unpickler that resolves names only through an allow-list.

    The unpickler lacks the opcodes in _REMOVED. Some of these opcodes allocate memory before the data is read, and the
    others bypass the allow-list.

    Args:
        file: the file from which the pickle is read.
        allowed: the allow-list, {(module, name): object to use}.
        load_storage: function that returns a storage as a tensor, given the pickle's reference to the storage.
        encoding: encoding of the strings in Python 2 pickles; `bytes` leaves these strings as bytes.
    """

    stack: list[Any]  # attribute of the base class; declared here because the base class's type stub lacks it

    def __init__(self, file: Any, allowed: Globals, load_storage: Callable[..., torch.Tensor], encoding: str = "utf-8"):
        super().__init__(file, encoding=encoding)
        self.allowed = allowed
        self.load_storage = load_storage

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.allowed[module, name]
        except KeyError:
            raise ForbiddenPickle(f"{module}.{name}", module) from None

    def persistent_load(self, pid: Any) -> torch.Tensor:
        return self.load_storage(*pid)

    def load_build(self) -> None:
        """Execute the opcode BUILD, which passes a state to an unpickled object.

        The state of a numpy dtype is its byte order, and the state of a numpy array its content. The state of an
        OrderedDict, a tensor or an `Inert` is discarded.

        Raises:
            ForbiddenPickle: the object has another type.
        """
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, _NumpyDtype | PickledArray):
            target.set_state(state)
        elif not isinstance(target, OrderedDict | torch.Tensor | Inert):
            raise ForbiddenPickle(f"the state of a {type(target).__name__}")


# Opcodes that allocate memory before the data is read, or that bypass the allow-list.
_REMOVED = "BYTEARRAY8 NEXT_BUFFER READONLY_BUFFER EXT1 EXT2 EXT4 INST OBJ".split()


_Unpickler.dispatch = {
    **pickle._Unpickler.dispatch,
    # mypy complains, because the type stub of `dispatch` allows only methods of the base class
    pickle.BUILD[0]: _Unpickler.load_build,  # type: ignore[dict-item]
}


for _name in _REMOVED:
    del _Unpickler.dispatch[getattr(pickle, _name)[0]]


class _Archive:
    """Reader of a `torch.save` file in the zip format (PyTorch 1.6 or later); caches storages that were read."""

    def __init__(self, file: BinaryIO):
        self.zip = zipfile.ZipFile(file)
        self.budget = os.fstat(file.fileno()).st_size
        roots = [m[1] for m in map(re.compile(r"([^/]+)/data\.pkl").fullmatch, self.zip.namelist()) if m]
        if len(roots) != 1:
            raise pickle.UnpicklingError("not one data.pkl in the archive")
        self.root = roots[0]
        self.storages: dict[str, torch.Tensor] = {}

    def record(self, name: str) -> bytes:
        info = self.zip.getinfo(f"{self.root}/{name}")
        self.budget -= info.file_size
        if info.compress_type != zipfile.ZIP_STORED or self.budget < 0:
            raise pickle.UnpicklingError("a compressed or overlapping record")
        return self.zip.read(info)

    def storage(self, kind: str, dtype: torch.dtype, key: str, _location: object, numel: int) -> torch.Tensor:
        """Return the storage called `key` as a 1-D tensor; the unpickler calls this method.

        Raises:
            ForbiddenPickle: the pickle refers to something other than a storage.
            UnpicklingError: the storage does not have `numel` elements; its record is compressed; or all records
                read so far are together longer than the file (overlapping records).
        """
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise ForbiddenPickle(f"a persistent {kind!r}")
        if key not in self.storages:
            data = bytearray(self.record(f"data/{key}"))
            self.storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        storage = self.storages[key]
        if storage.numel() != numel or storage.dtype != dtype:
            raise pickle.UnpicklingError(f"storage {key} is not as long as stated")
        return storage

    def load(self, allowed: Globals) -> Any:
        if f"{self.root}/byteorder" in self.zip.namelist() and self.record("byteorder") != b"little":
            raise pickle.UnpicklingError("big-endian tensors")
        if self.zip.getinfo(f"{self.root}/data.pkl").file_size > MAX_PICKLE_BYTES:
            raise pickle.UnpicklingError("a pickle of absurd size")
        return _Unpickler(io.BytesIO(self.record("data.pkl")), allowed, self.storage).load()


MAGIC = 0x1950A86A20F9469CFC6C  # value of the first pickle in a file from before PyTorch 1.6
VERSION = 1001  # value of the second pickle in a file from before PyTorch 1.6


class _OldArchive:
    """Reader of a `torch.save` file from before PyTorch 1.6."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.size = os.fstat(file.fileno()).st_size
        self.budget = self.size  # file size minus the sizes of all storages so far; it must not become negative
        self.storages: dict[str, tuple[bytearray, torch.Tensor]] = {}

    def read(self, count: int) -> bytes:
        """Return the next `count` bytes of the file, or fewer if the file ends before.

        A huge `count` is harmless: no more memory is allocated than the rest of the file needs.
        """
        return self.file.read(max(0, min(count, self.size - self.file.tell())))

    def readline(self) -> bytes:
        """Return the next line of the file; the unpickler calls this method.

        Raises:
            UnpicklingError: the file ends within the line, or the line is longer than MAX_PICKLE_BYTES.
        """
        line = self.file.readline(MAX_PICKLE_BYTES)
        if not line.endswith(b"\n"):
            raise pickle.UnpicklingError("the file ends in its pickle")
        return line

    def pickled(self, allowed: Globals) -> Any:
        """Unpickle the next pickle of the file and return its object; `allowed` is the allow-list.

        Raises:
            UnpicklingError: the pickle is longer than MAX_PICKLE_BYTES.
        """
        start = self.file.tell()
        value = _Unpickler(self, allowed, self.storage).load()
        if self.file.tell() - start > MAX_PICKLE_BYTES:
            raise pickle.UnpicklingError("a pickle of absurd size")
        return value

    def storage(
        self, kind: str, dtype: torch.dtype, key: str, _location: object, numel: int, view: Any = None
    ) -> torch.Tensor:
        """Return the storage called `key`, or a slice of it, as a 1-D tensor; the unpickler calls this method.

        The tensor has no content yet. `load` reads the content when the whole pickle has been read.

        Args:
            kind: must be "storage".
            dtype: dtype of the storage.
            key: name of the storage in this file.
            numel: number of elements of the storage.
            view: None for the whole storage, or (name, first element, number of elements) of a slice.

        Raises:
            ForbiddenPickle: the pickle refers to something other than a storage.
            UnpicklingError: the storages are larger than the file, or a size is invalid.
        """
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise ForbiddenPickle(f"a persistent {kind!r:.40}")
        if type(numel) is not int or numel < 0:
            raise pickle.UnpicklingError("a storage of impossible length")
        if key not in self.storages:
            size = numel * torch.empty(0, dtype=dtype).element_size()
            self.budget -= size
            if self.budget < 0:
                raise pickle.UnpicklingError("storages larger than the file")
            data = bytearray(size)
            tensor = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
            self.storages[key] = data, tensor
        storage = self.storages[key][1]
        if storage.numel() != numel or storage.dtype != dtype:
            raise pickle.UnpicklingError(f"storage {key} is not as long as stated")
        if view is None:
            return storage
        _key, first, length = view
        if type(first) is not int or type(length) is not int or not 0 <= first <= first + length <= numel:
            raise pickle.UnpicklingError("a part that is larger than its storage")
        return storage[first : first + length]

    def load(self, allowed: Globals) -> Any:
        if self.pickled({}) != MAGIC or self.pickled({}) != VERSION:
            raise pickle.UnpicklingError("another kind of pickle")
        if self.pickled({}).get("little_endian") is not True:
            raise pickle.UnpicklingError("big-endian tensors")
        value = self.pickled(allowed)
        for key in self.pickled({}):
            data, storage = self.storages.pop(key)
            if self.read(8) != struct.pack("<q", storage.numel()):
                raise pickle.UnpicklingError(f"storage {key} is not as long as stated")
            content = self.read(len(data))
            if len(content) < len(data):
                raise pickle.UnpicklingError(f"the file ends in storage {key}")
            data[:] = content
        if self.storages or self.read(1):
            raise pickle.UnpicklingError("storages that are missing, or bytes after the last")
        return value


def save_archive(path: Path | str, content: Any) -> None:
    """Write a `torch.save` file atomically.

    The function passes an open file to `torch.save`, not a path. If it passed a path, the name of the temporary file
    would be stored in the archive, and PyTorch 2.0 would fail for names that are not valid UTF-8.

    Raises:
        InputError: the disk is full or the folder cannot be written.
    """
    with atomic_file(path) as temporary, open(temporary, "wb") as file:
        torch.save(content, file)


def load_archive(
    path: Path | str, allowed: Globals = LABEL_GLOBALS, remedy: str = "get the file from its author again"
) -> Any:
    """Load the object in a `torch.save` file of any PyTorch version, without running code from the file.

    The object consists of containers, numbers, strings and CPU tensors.

    Args:
        path: the file.
        allowed: classes and functions that the pickle may name: {(module, name): object to use in its place}.
        remedy: advice to the user in the error message, shown if the pickle uses a name that is not allowed.

    Raises:
        InputError: the file is missing or damaged, or its pickle uses names that are not in `allowed`.
    """
    try:
        with open(path, "rb") as file:
            # a file from before PyTorch 1.6 begins with the pickle opcode PROTO; a zip archive begins with PK
            old = file.read(1) == pickle.PROTO
            file.seek(0)
            return (_OldArchive(file) if old else _Archive(file)).load(allowed)
    except ForbiddenPickle as error:
        if _is_model(path, error):
            raise InputError(
                f"{path} is refused: it is a whole pickled model (its pickle asks for {clause(error)}), not weights, "
                "and reading it would run code; save torch.save(model.state_dict(), path) where its code is, and "
                "give that file"
            ) from None
        raise InputError(
            f"{path} is refused: its pickle asks for {clause(error)}, which plain tensors and numbers do not "
            f"need and which could run code; {remedy}, or write it anew"
        ) from None
    except FileNotFoundError:
        raise InputError(f"{path} is missing; copy or write it again") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:
        raise InputError(
            f"{path} is damaged or not a torch.save file ({clause(error)}); copy or write it again"
        ) from None


def load_pickle(path: Path | str, remedy: str = "get the file from its author again") -> Any:
    """Load the object in a pickle of numpy arrays, without running code from the file.

    Arrays are returned as `PickledArray`, and Python 2 strings as bytes.

    Args:
        path: the file.
        remedy: advice to the user in the error message, shown if the pickle uses a name that is not allowed.

    Raises:
        InputError: the file is missing or damaged, or its pickle uses names that are not in ARRAY_GLOBALS.
    """

    def no_storage(*_reference: object) -> torch.Tensor:
        raise ForbiddenPickle("a tensor")

    try:
        content = Path(path).read_bytes()
        return _Unpickler(io.BytesIO(content), ARRAY_GLOBALS, no_storage, encoding="bytes").load()
    except ForbiddenPickle as error:
        raise InputError(
            f"{path} is refused: its pickle asks for {clause(error)}, which arrays and numbers do not need and which "
            f"could run code; {remedy}"
        ) from None
    except FileNotFoundError:
        raise InputError(f"{path} is missing; copy it again") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:
        raise InputError(f"{path} is damaged or not a pickle ({clause(error)}); copy it again") from None


def _is_model(path: Path | str, error: ForbiddenPickle) -> bool:
    """Return whether a refused file probably holds a whole pickled model; `error` is the reason for the refusal.

    The answer is True if the refused name is not from the standard library and the file mentions `torch.nn.modules`.
    """
    top = error.module.partition(".")[0]
    if not top or (top in sys.stdlib_module_names and top != "__main__") or top == "builtins":
        return False
    # the pickle is at the start of the file in both formats of `torch.save`, so the first MiB is enough
    with open(path, "rb") as file:
        return b"torch.nn.modules" in file.read(2**20)
