"""Read `torch.save` files from untrusted sources.

A `torch.save` file is a zip: `NAME/data.pkl`, a pickle that describes the object, and `NAME/data/K`,
the raw bytes of storage K. Before PyTorch 1.6 it was five pickles one after another (a magic number, a
version, the byte order, the object, the list of storage names), then each storage: its length as int64
and its raw bytes. Unpickling can run any code, and `torch.load` trusts the sizes that the pickle
states. So this module reads such files itself, with these limits:

* The pickle can only use names on an exact allow-list, mostly of small functions of this module that check
  their arguments. Any other name is refused, and the error names it.
* A checkpoint may hold settings of some known classes beside the weights. Each settings object becomes an
  `Inert`, which keeps no content and does nothing.
* The unpickler is Python's own implementation, without the opcodes that allocate memory before reading it.
* A tensor must lie inside its storage, a storage must be as long as its record, records must be
  uncompressed, and no more bytes are read than the file holds.

Works on every supported PyTorch, and reads pickles of numpy 1 and numpy 2.
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


Globals = Mapping[tuple[str, str], Any]  # allow-list of a pickle: (module, name) -> stand-in


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
    """Error of a pickle that asks for anything outside the allow-list; `module` is the name's module, or empty."""

    def __init__(self, what: str, module: str = "") -> None:
        super().__init__(what)
        self.module = module


# The type hints below hold for valid pickles. A malicious pickle may pass values of any type.


class _NumpyDtype:
    """Stand-in for `numpy.dtype`: a code such as `i8`, and the byte order from the pickled state."""

    def __init__(self, code: str, *_flags: object):
        self.code = code
        self.order = "<"

    def set_state(self, state: Sequence[Any]) -> None:
        self.order = "<" if state[1] == "|" else state[1]


def _numpy_scalar(dtype: _NumpyDtype, data: bytes) -> int | float | bool:
    """Return a plain Python number: stand-in for numpy's `scalar(dtype, bytes)`."""
    if dtype.code not in ("i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "f8", "f4", "f2", "b1"):
        raise ForbiddenPickle(f"a numpy value of type {dtype.code!r:.40}")
    array = np.frombuffer(data, dtype=np.dtype(dtype.order + dtype.code))
    if array.size != 1:
        raise pickle.UnpicklingError("a numpy scalar of the wrong length")
    return array[0].item()


def _encode(text: str, encoding: str) -> bytes:
    """Encode text as Latin-1: stand-in for `_codecs.encode`, which pickle protocol 2 uses to store bytes."""
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
    """Return a tensor after a check that it lies inside its storage: stand-in for `torch._utils._rebuild_tensor_v2`."""
    numbers = (offset, *size, *stride)
    if any(type(n) is not int or n < 0 for n in numbers) or len(size) != len(stride):
        raise pickle.UnpicklingError("a tensor with an impossible shape")
    numel = 1
    for n in size:
        numel *= n
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if numel > storage.numel() or (numel and last >= storage.numel()):
        raise pickle.UnpicklingError("a tensor larger than its storage")
    # as_strided counts from the start of the memory, but a storage in an old file may be a part that starts later
    return storage.as_strided(size, stride, storage.storage_offset() + offset) if numel else storage.new_empty(size)


def _rebuild_parameter(tensor: torch.Tensor, _requires_grad: object, _hooks: object) -> torch.Tensor:
    """Return the plain tensor: stand-in for `torch._utils._rebuild_parameter`."""
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


class _Parameter:
    """Stand-in for `torch.nn.Parameter` in pickles of PyTorch 0.3; the constructor returns the plain tensor."""

    def __new__(cls, tensor: torch.Tensor, *_requires_grad: object) -> Any:
        return tensor


WEIGHT_GLOBALS: Globals = {
    **LABEL_GLOBALS,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,  # in pickles of PyTorch 0.3
    ("torch.nn.parameter", "Parameter"): _Parameter,
}


class Inert:
    """Stand-in for a settings object; accepts any arguments, items and state, and keeps none of them."""

    __slots__ = ()

    def __new__(cls, *_arguments: object, **_named: object) -> "Inert":
        return super().__new__(cls)

    def __init__(self, *_arguments: object, **_named: object) -> None:
        """Ignore the arguments."""

    def __setitem__(self, _key: object, _value: object) -> None:
        """Ignore an item of a dict."""

    def append(self, _item: object) -> None:
        """Ignore an item of a list."""

    def extend(self, _items: object) -> None:
        """Ignore items of a list."""


# Classes of plain data that training scripts save beside the weights: module -> names. None of the classes is used: an
# `Inert` takes the place of each object.
_PATHS = "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath"
_PLAIN = "set frozenset slice range complex bytearray int float str bool list tuple dict bytes object"
_DTYPES = "float32 float16 bfloat16 float64 int64 int32 int16 int8 uint8 bool"
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
    "numpy.core.multiarray": "_reconstruct",  # numpy's constructor of pickled arrays
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
    """Python's own unpickler with an allow-list of callables, and without the opcodes in _REMOVED."""

    stack: list[Any]  # an attribute of the base class that its type stub lacks

    def __init__(self, file: Any, allowed: Globals, load_storage: Callable[..., torch.Tensor]):
        super().__init__(file, encoding="utf-8")  # for strings that Python 2 pickled
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
        """Set a dtype's byte order (opcode BUILD); ignore other states: of state dicts, tensors and settings."""
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, _NumpyDtype):
            target.set_state(state)
        elif not isinstance(target, OrderedDict | torch.Tensor | Inert):
            raise ForbiddenPickle(f"the state of a {type(target).__name__}")


# Opcodes that allocate memory before they read, or that bypass the allow-list.
_REMOVED = "BYTEARRAY8 NEXT_BUFFER READONLY_BUFFER EXT1 EXT2 EXT4 INST OBJ".split()


_Unpickler.dispatch = {
    **pickle._Unpickler.dispatch,
    pickle.BUILD[0]: _Unpickler.load_build,  # type: ignore[dict-item]  # the stub only knows methods of the base class
}


for _name in _REMOVED:
    del _Unpickler.dispatch[getattr(pickle, _name)[0]]


class _Archive:
    """An open zip file, and the storages already read from it."""

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
        """Return storage `key` as a flat tensor; its record must hold exactly `numel` elements."""
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
VERSION = 1001  # value of the second pickle in such a file


class _OldArchive:
    """An open file from before PyTorch 1.6, and the storages that its pickle names."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.size = os.fstat(file.fileno()).st_size
        self.budget = self.size  # bytes that storages may still take
        self.storages: dict[str, tuple[bytearray, torch.Tensor]] = {}

    def read(self, count: int) -> bytes:
        """Read up to `count` bytes; memory is only allocated for bytes that the file still holds."""
        return self.file.read(max(0, min(count, self.size - self.file.tell())))

    def readline(self) -> bytes:
        """Read a line; the unpickler calls this."""
        line = self.file.readline(MAX_PICKLE_BYTES)
        if not line.endswith(b"\n"):
            raise pickle.UnpicklingError("the file ends in its pickle")
        return line

    def pickled(self, allowed: Globals) -> Any:
        """Return the object in the next pickle."""
        start = self.file.tell()
        value = _Unpickler(self, allowed, self.storage).load()
        if self.file.tell() - start > MAX_PICKLE_BYTES:
            raise pickle.UnpicklingError("a pickle of absurd size")
        return value

    def storage(
        self, kind: str, dtype: torch.dtype, key: str, _location: object, numel: int, view: Any = None
    ) -> torch.Tensor:
        """Return storage `key`, or the part of it that `view` gives, as a flat tensor that `load` fills in later."""
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

    torch.save gets an open file: with a path, it would write the name of the temporary file into the archive, and
    PyTorch 2.0 would refuse names that are not UTF-8.

    Raises:
        InputError: the disk is full or the folder cannot be written.
    """
    with atomic_file(path) as temporary, open(temporary, "wb") as file:
        torch.save(content, file)


def load_archive(
    path: Path | str, allowed: Globals = LABEL_GLOBALS, remedy: str = "get the file from its author again"
) -> Any:
    """Load the object in a `torch.save` file of any PyTorch version: containers, numbers and CPU tensors.

    Args:
        path: the file.
        allowed: allow-list of the pickle, `{(module, name): stand-in}`.
        remedy: advice to the user in the error about a file that asks for anything outside `allowed`.

    Raises:
        InputError: the file is missing, damaged, or asks for anything outside `allowed`. No code from the file
            has run.
    """
    try:
        with open(path, "rb") as file:
            old = file.read(1) == pickle.PROTO  # a zip begins with PK
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


def _is_model(path: Path | str, error: ForbiddenPickle) -> bool:
    """Return whether the refused name is most likely the class of a pickled model."""
    top = error.module.partition(".")[0]
    if not top or (top in sys.stdlib_module_names and top != "__main__") or top == "builtins":
        return False
    with open(path, "rb") as file:  # the pickle is at the start of the file, in both formats
        return b"torch.nn.modules" in file.read(2**20)
