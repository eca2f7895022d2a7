"""Encode the class ids of top-k labels: the k ids of a row, ascending, in little more than their entropy.

The code is Elias-Fano (P. Elias, 1974, doi 10.1145/321812.321820; R. Fano, 1971). An id below C, the number of
classes, is split into l = floor(log2(C / k)) low bits and a high part. A row of ids x_0 < x_1 < … is

    ceil(k l / 8) bytes                     bit j k + i is bit j of x_i
    ceil((k + (C - 1 >> l)) / 8) bytes      bit (x_i >> l) + i is set, for every i; the others are zero

Bits are numbered from the lowest: bit b is bit b % 8 of byte b // 8. A set of 50 of 1,000 ids takes 39 bytes (log2 of
the number of such sets is 35.3 bytes). All rows have the same size, so that they need no offsets.
"""

import numpy as np


def code_bytes(count: int, classes: int) -> tuple[int, int]:
    """Return the numbers of bytes of a row's low bits and of its high parts, for `count` ids below `classes`."""
    low = low_bits(count, classes)
    return -(-count * low // 8), -(-(count + (classes - 1 >> low)) // 8)


def low_bits(count: int, classes: int) -> int:
    """Return l, the number of low bits of each of `count` ids below `classes`; 1 <= count <= classes."""
    return (classes // count).bit_length() - 1


def encode_ids(ids: np.ndarray, classes: int) -> np.ndarray:
    """Encode sets of class ids.

    Args:
        ids: integers [N, k], each row ascending without repeats, all in [0, classes).
        classes: C.

    Returns:
        uint8 [N, sum of `code_bytes`].
    """
    rows, count = ids.shape
    low, high_bytes = low_bits(count, classes), code_bytes(count, classes)[1]
    planes = ids[:, None, :] >> np.arange(low)[:, None] & 1  # [N, l, k]
    high = np.zeros((rows, 8 * high_bytes), np.uint8)
    np.put_along_axis(high, (ids >> low) + np.arange(count), 1, axis=1)
    parts = planes.reshape(rows, low * count).astype(np.uint8), high
    return np.concatenate([np.packbits(part, axis=1, bitorder="little") for part in parts], axis=1)


def decode_ids(code: np.ndarray, count: int, classes: int) -> np.ndarray:
    """Undo `encode_ids`.

    Args:
        code: uint8 [N, sum of `code_bytes`].
        count: k.
        classes: C.

    Returns:
        int64 [N, k], each row ascending.

    Raises:
        ValueError: the code is invalid: no set of ids has it.
    """
    rows, low = len(code), low_bits(count, classes)
    low_bytes, high_bytes = code_bytes(count, classes)
    high = np.unpackbits(code[:, low_bytes:], axis=1, bitorder="little")
    places = np.flatnonzero(high.view(bool))
    if len(places) != rows * count:
        raise ValueError("not as many as the rows need")
    ids = places.reshape(rows, count)
    ids -= 8 * high_bytes * np.arange(rows)[:, None] + np.arange(count)  # `ids` now holds the high parts
    inside = (ids[:, :1] >= 0).all() and (ids[:, -1] <= classes - 1 >> low).all()  # false if a row lacks any of its k
    planes = np.unpackbits(code[:, :low_bytes], axis=1, count=count * low, bitorder="little").reshape(rows, low, count)
    for plane in range(low)[::-1]:
        ids <<= 1
        ids |= planes[:, plane]
    if not inside or (ids[:, -1] >= classes).any() or (ids[:, 1:] <= ids[:, :-1]).any():
        raise ValueError("they do not rise, or are not below the number of classes")
    return ids
