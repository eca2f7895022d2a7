"""The tensors of a packed epoch file. `shrink` converts them for the file; `expand` converts them back.

An epoch has N rows in n batches of B rows. Each row keeps k of C logits, with 4, 8, 16 or 32 bits each.
The table lists the tensors in memory and in files of versions 3 and 4. A tensor exists only under its condition.
Numbers are little-endian. Only `rest` may be rounded; all other conversions are exact.

| in memory | in the file | condition |
|---|---|---|
| coords f32 [N, 4] | f16 if exact (as for labels of LPLD), else f32 | views are stored |
| flip bool [N] | u8 [ceil(N / 8)], one bit per row, the first row in the lowest bit | views are stored |
| index i32 [N] | u8 [N, b]: the lowest b bytes, with b = `Shape.index_bytes` | views and image numbers are stored |
| mix_index u8 or i32 [N] | the same; u8 if B <= 256 | views are stored and mixed |
| mix_lam f64 [n] | the same | views are stored and mixed |
| mix_bbox i32 [n, 4] | the same | views are stored and mixed by cutmix |
| weights f64 [N] | the same | `Shape.has_weights`, views are stored |
| cutouts f32 [N, 7] | the same | `Shape.has_cutouts`, views are stored |
| logits f16 or f32 [N, k] | the same | 16 or 32 bits |
| levels u8 [N, k] | 8 bits: the same; 4 bits: u8 [N, ceil(k / 2)], see `pack_nibbles` | 4 or 8 bits |
| range f32 [2, C] | the same: low and step of each column; value = low + step * level | 4 or 8 bits, k = C |
| spans f32 [N, 2] | f16, always exact: low and step of each row; value = low + step * level | 4 or 8 bits, k < C |
| classes i16 or i32 [N, k], ascending | ids u8 [N, M], see `encode_ids` in utils/labels/class_ids.py | k < C |
| rest f32 [N, 2]: mean and variance of the dropped logits | 32 bits: f32; fewer bits: f16 | k < C, `Shape.has_rest` |

Files of version 2 differ:

* coords and rest are f32, flip is bool, and index, mix_index and classes are i32;
* if k < C, the k logits of a row are in descending order, and range f32 [2, k] replaces spans.
"""

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from utils.labels.class_ids import code_bytes, decode_ids, encode_ids
from utils.system.errors import InputError, listing
from utils.system.files import utf8_path

Tensors = dict[str, torch.Tensor]
Expected = dict[str, tuple[tuple[torch.dtype, ...], tuple[int, ...]]]
BYTES = (torch.uint8,)
INTEGERS = (torch.int32,)
SINGLES = (torch.float32,)


class Shape(NamedTuple):
    """The facts about an epoch file that determine the shapes and dtypes of its tensors.

    Attributes:
        rows: number of rows in the file.
        images: number of images that the labels refer to.
        classes: C, the number of classes.
        kept: k, the number of logits kept per row; C if all are kept.
        batch_size: number of rows of a full batch.
        bits: bits per stored value: 4, 8, 16 or 32.
        mix_type: `cutmix`, `mixup` or `none`.
        has_views: whether the file holds crops, flips and mixes.
        has_index: whether the file holds image numbers.
        has_rest: for k < C, whether mean and variance of the dropped logits are stored.
        version: version of the packed format.
        has_weights: whether the file holds a weight of each row (WMDD).
        has_cutouts: whether the file holds a coloured cutout of each row (LPLD and LPQLD for ImageNet-21K).
    """

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
    has_weights: bool = False
    has_cutouts: bool = False

    @property
    def index_bytes(self) -> int:
        """Return the number of bytes needed to store the highest image number."""
        return max(1, -(-(self.images - 1).bit_length() // 8))

    @property
    def mix_dtype(self) -> torch.dtype:
        """Return the dtype in which mix_index is stored: uint8 if batches have at most 256 rows, else int32.

        Version 2 always stored int32.
        """
        return torch.uint8 if self.version > 2 and self.batch_size <= 256 else torch.int32


def expected_tensors(shape: Shape) -> Expected:
    """Return the allowed dtypes and the shape of each tensor of a file: {name: (dtypes, shape)}."""
    return expected_answers(shape) | (expected_views(shape) if shape.has_views else {})


def expected_answers(shape: Shape) -> Expected:
    """Return the entries of `expected_tensors` that hold the teacher's logits and their class ids."""
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
    """Return the entries of `expected_tensors` that hold crops, flips, image numbers, mixes, weights and cutouts."""
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
    if shape.has_weights:
        expected["weights"] = (torch.float64,), (rows,)
    if shape.has_cutouts:
        expected["cutouts"] = SINGLES, (rows, 7)
    return expected


def shrink(tensors: Tensors, shape: Shape) -> Tensors:
    """Convert an epoch's tensors from the form in memory to the smaller form in files of the newest version."""
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
    """Convert the tensors of an epoch file of any version to the form in memory; this undoes `shrink`.

    Raises:
        ValueError: the encoded class ids are invalid.
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
    """Return the tensors of a safetensors file by name; their names must be exactly `expected`.

    Raises:
        InputError: the file is missing or damaged, or has tensors with other names.
    """
    try:
        with utf8_path(path) as name, safe_open(name, "pt") as file:
            if set(file.keys()) != set(expected):
                found, wanted = listing(sorted(file.keys())), listing(sorted(expected))
                raise InputError(f"{path} holds {found}, not {wanted}; copy it again")
            return {key: file.get_tensor(key) for key in expected}
    except (OSError, SafetensorError, RuntimeError, AttributeError) as error:
        # safetensors raises AttributeError if a tensor has a dtype that this PyTorch version lacks
        raise InputError(f"{path} is damaged or not readable ({error}); copy the labels again") from None


def pack_nibbles(levels: torch.Tensor) -> torch.Tensor:
    """Pack two 4-bit levels into each byte: convert uint8 [N, k] to uint8 [N, ceil(k / 2)].

    The high four bits of a byte hold a level of an even column, the low four bits hold the next column's level.
    """
    padded = torch.nn.functional.pad(levels, (0, levels.shape[1] % 2))
    return padded[:, 0::2] * 16 + padded[:, 1::2]


def unpack_nibbles(packed: torch.Tensor, columns: int) -> torch.Tensor:
    """Unpack the two 4-bit levels in each byte; return uint8 [N, columns]. This undoes `pack_nibbles`."""
    return torch.stack([packed // 16, packed % 16], dim=2).flatten(1)[:, :columns]
