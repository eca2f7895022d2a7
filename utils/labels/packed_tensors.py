"""The tensors of a packed epoch file in memory and on disk; the conversion is lossless.

The tensors of N rows in n batches of B, with k of C answers kept per row, in memory and in files of versions 3 and 4:

| in memory | stored | if |
|---|---|---|
| coords f32 [N, 4] | f16 if exact (as for LPLD's), else f32 | views are stored |
| flip bool [N] | u8 [ceil(N / 8)], the first row in the lowest bit | views are stored |
| index i32 [N] | u8 [N, b], little-endian, in the b bytes that the last image's number needs | the labels state it |
| mix_index u8 or i32 [N] | the same: u8 if B <= 256 | mixed views |
| mix_lam f64 [n] | the same | mixed views |
| mix_bbox i32 [n, 4] | the same | cutmix |
| logits f16 or f32 [N, k] | the same | 32 or 16 bits |
| levels u8 [N, k] | u8 [N, ceil(k bits / 8)], the first of two in the high half | 8 or 4 bits |
| range f32 [2, C] | the same: low and step of each column; value = low + step * level | 8 or 4 bits, k = C |
| spans f32 [N, 2] | f16: low and step of each row | 8 or 4 bits, k < C |
| classes i16 or i32 [N, k], ascending | ids u8 [N, …] (utils/labels/class_ids.py) | k < C |
| rest f32 [N, 2] | f16, or f32 with 32 bits: mean and variance of the answers not kept | k < C, and known |

Version 2 stored flip as bool, and index, mix_index and classes as i32. If k < C, it stored the k answers in descending
order, range as f32 [2, k] and rest as f32.
"""

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from utils.labels.class_ids import code_bytes, decode_ids, encode_ids
from utils.system.errors import InputError
from utils.system.files import utf8_path

Tensors = dict[str, torch.Tensor]
Expected = dict[str, tuple[tuple[torch.dtype, ...], tuple[int, ...]]]
BYTES = (torch.uint8,)
INTEGERS = (torch.int32,)
SINGLES = (torch.float32,)


class Shape(NamedTuple):
    """The facts that determine the shapes and dtypes of a store's tensors."""

    rows: int
    images: int
    classes: int
    kept: int
    batch_size: int
    bits: int
    mix_type: str
    has_views: bool
    has_index: bool
    has_rest: bool
    version: int = 4

    @property
    def index_bytes(self) -> int:
        """Return the number of bytes that any image number fits in."""
        return max(1, -(-(self.images - 1).bit_length() // 8))

    @property
    def mix_dtype(self) -> torch.dtype:
        """Return the dtype of mix_index."""
        return torch.uint8 if self.version > 2 and self.batch_size <= 256 else torch.int32


def expected_tensors(shape: Shape) -> Expected:
    """Return the allowed dtypes and the shape of each tensor of a file: {name: (dtypes, shape)}."""
    return expected_answers(shape) | (expected_views(shape) if shape.has_views else {})


def expected_answers(shape: Shape) -> Expected:
    """Return the part of `expected_tensors` that describes the teacher's answers."""
    rows, kept, old, some = shape.rows, shape.kept, shape.version == 2, shape.kept < shape.classes
    expected: Expected = {}
    if shape.bits >= 16:
        expected["logits"] = (torch.float16 if shape.bits == 16 else torch.float32,), (rows, kept)
    else:
        expected["levels"] = BYTES, (rows, -(-kept * shape.bits // 8))
        by_row = some and not old
        expected |= {"spans": ((torch.float16,), (rows, 2))} if by_row else {"range": (SINGLES, (2, kept))}
    if some:
        sets = {"ids": (BYTES, (rows, sum(code_bytes(kept, shape.classes))))}
        expected |= {"classes": (INTEGERS, (rows, kept))} if old else sets
    if some and shape.has_rest:
        expected["rest"] = SINGLES if old or shape.bits == 32 else (torch.float16,), (rows, 2)
    return expected


def expected_views(shape: Shape) -> Expected:
    """Return the part of `expected_tensors` that describes the views."""
    rows, old = shape.rows, shape.version == 2
    batches = -(-rows // shape.batch_size)
    expected: Expected = {"coords": (SINGLES if old else (torch.float16, torch.float32), (rows, 4))}
    expected["flip"] = ((torch.bool,), (rows,)) if old else (BYTES, (-(-rows // 8),))
    if shape.has_index:
        expected["index"] = (INTEGERS, (rows,)) if old else (BYTES, (rows, shape.index_bytes))
    if shape.mix_type != "none":
        expected |= {"mix_index": ((shape.mix_dtype,), (rows,)), "mix_lam": ((torch.float64,), (batches,))}
    if shape.mix_type == "cutmix":
        expected["mix_bbox"] = INTEGERS, (batches, 4)
    return expected


def shrink(tensors: Tensors, shape: Shape) -> Tensors:
    """Convert tensors from the form in memory to the file form of the newest version."""
    small = dict(tensors)
    if "coords" in small:
        halves = small["coords"].half()
        small["coords"] = halves if torch.equal(halves.float(), small["coords"]) else small["coords"]
        small["flip"] = torch.from_numpy(np.packbits(small["flip"].numpy(), bitorder="little"))
    if "index" in small:
        index = small["index"].numpy().astype("<i4")[:, None].view(np.uint8)  # [N, 4]
        small["index"] = torch.from_numpy(index[:, : shape.index_bytes].copy())
    if "mix_index" in small:
        small["mix_index"] = small["mix_index"].to(shape.mix_dtype)
    if "levels" in small and shape.bits == 4:
        small["levels"] = pack_nibbles(small["levels"])
    if "spans" in small:
        small["spans"] = small["spans"].half()
    if "classes" in small:
        small["ids"] = torch.from_numpy(encode_ids(small.pop("classes").numpy(), shape.classes))
    if "rest" in small and shape.bits < 32:
        small["rest"] = small["rest"].half()
    return small


def expand(tensors: Tensors, shape: Shape) -> Tensors:
    """Undo `shrink`: convert tensors of a file of any version to the form in memory.

    Raises:
        ValueError: the class ids are impossible.
    """
    whole = dict(tensors)
    if whole.get("flip", torch.empty(0)).dtype == torch.uint8:
        flips = np.unpackbits(whole["flip"].numpy(), count=shape.rows, bitorder="little")
        whole["flip"] = torch.from_numpy(flips.view(bool))
    if whole.get("index", torch.empty(0)).dtype == torch.uint8:
        padded = torch.nn.functional.pad(whole["index"], (0, 4 - shape.index_bytes))
        whole["index"] = padded.contiguous().view(torch.int32).flatten()
    if "levels" in whole and shape.bits == 4:
        whole["levels"] = unpack_nibbles(whole["levels"], shape.kept)
    if "ids" in whole:
        classes = decode_ids(whole.pop("ids").numpy(), shape.kept, shape.classes)
        whole["classes"] = torch.from_numpy(classes.astype(np.int16 if shape.classes <= 2**15 else np.int32))
    return whole | {name: whole[name].float() for name in ("coords", "spans", "rest") if name in whole}


def read_tensors(path: Path, expected: Collection[str]) -> Tensors:
    """Read the tensors of a safetensors file, whose names must be exactly `expected`.

    Raises:
        InputError: the file is missing or damaged, or holds other tensors.
    """
    try:
        with utf8_path(path) as name, safe_open(name, "pt") as file:
            if set(file.keys()) != set(expected):
                raise InputError(f"{path} holds {sorted(file.keys())}, not {sorted(expected)}; copy it again")
            return {key: file.get_tensor(key) for key in expected}
    except (OSError, SafetensorError, RuntimeError, AttributeError) as error:  # Attribute: a dtype that torch lacks
        raise InputError(f"{path} is damaged or not readable ({error}); copy the labels again") from None


def pack_nibbles(levels: torch.Tensor) -> torch.Tensor:
    """Pack uint8 levels [N, k] below 16 into [N, ceil(k / 2)], each even column in the high four bits."""
    padded = torch.nn.functional.pad(levels, (0, levels.shape[1] % 2))
    return padded[:, 0::2] * 16 + padded[:, 1::2]


def unpack_nibbles(packed: torch.Tensor, columns: int) -> torch.Tensor:
    """Undo `pack_nibbles`."""
    return torch.stack([packed // 16, packed % 16], dim=2).flatten(1)[:, :columns]
