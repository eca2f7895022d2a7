"""Compress the class ids of top-k labels to little more than their entropy.

A row of top-k labels has k different class ids x_0 < x_1 < … below C, the number of classes. The code is Elias-Fano
(P. Elias, 1974, doi 10.1145/321812.321820; R. Fano, 1971). It splits each id into its l = floor(log2(C / k)) lowest
bits and the remaining high part x_i >> l. One row is stored as two blocks of bytes:

    low bits      ceil(k * l / 8) bytes                    bit j * k + i is bit j of x_i
    high parts    ceil((k + ((C - 1) >> l)) / 8) bytes     bit (x_i >> l) + i is 1 for each i; all other bits are 0

Bit b of a block is bit b % 8 of byte b // 8, counted from the lowest bit. For example, 50 of 1,000 ids take 39 bytes.
No code can take fewer than 35.3 bytes (282 bits) on average, the entropy of a random set of 50 ids. All rows take the
same number of bytes, so no offsets are stored.
"""

import numpy as np


def code_bytes(count: int, classes: int) -> tuple[int, int]:
    """Return (bytes for the low bits, bytes for the high parts) of one encoded row of `count` ids below `classes`."""
    low = low_bits(count, classes)
    return -(-count * low // 8), -(-(count + (classes - 1 >> low)) // 8)


def low_bits(count: int, classes: int) -> int:
    """Return l, the number of bits of each id that are stored as low bits.

    A row has `count` ids below `classes`, and `count` must be from 1 to `classes`.
    """
    return (classes // count).bit_length() - 1


def encode_ids(ids: np.ndarray, classes: int) -> np.ndarray:
    """Encode the class ids of N rows with the code that this module's docstring describes.

    Args:
        ids: integers [N, k]. Each row is in ascending order, without repeats, and in [0, classes).
        classes: C, the number of classes.

    Returns:
        uint8 [N, M], where M is the sum of the two numbers from `code_bytes`.
    """
    rows, count = ids.shape
    low, high_bytes = low_bits(count, classes), code_bytes(count, classes)[1]
    planes = ids[:, None, :] >> np.arange(low)[:, None] & 1  # [N, l, k]
    high = np.zeros((rows, 8 * high_bytes), np.uint8)
    np.put_along_axis(high, (ids >> low) + np.arange(count), 1, axis=1)
    parts = planes.reshape(rows, low * count).astype(np.uint8), high
    return np.concatenate([np.packbits(part, axis=1, bitorder="little") for part in parts], axis=1)


def decode_ids(code: np.ndarray, count: int, classes: int) -> np.ndarray:
    """Decode class ids that `encode_ids` has encoded.

    Args:
        code: uint8 [N, M], where M is the sum of the two numbers from `code_bytes`.
        count: k, the number of ids in a row.
        classes: C, the number of classes.

    Returns:
        int64 [N, k], each row in ascending order.

    Raises:
        ValueError: the code is invalid: `encode_ids` cannot have returned it.
    """
    rows, low = len(code), low_bits(count, classes)
    low_bytes, high_bytes = code_bytes(count, classes)
    high = np.unpackbits(code[:, low_bytes:], axis=1, bitorder="little")
    places = np.flatnonzero(high.view(bool))
    if len(places) != rows * count:
        raise ValueError("not as many as the rows need")
    ids = places.reshape(rows, count)
    ids -= 8 * high_bytes * np.arange(rows)[:, None] + np.arange(count)
    # `ids` now holds the high parts. They ascend, so it is enough to check the first and the last of each row. The
    # check also fails if an encoded row has more or fewer than k high parts.
    inside = (ids[:, :1] >= 0).all() and (ids[:, -1] <= classes - 1 >> low).all()
    planes = np.unpackbits(code[:, :low_bytes], axis=1, count=count * low, bitorder="little").reshape(rows, low, count)
    for plane in range(low)[::-1]:
        ids <<= 1
        ids |= planes[:, plane]
    if not inside or (ids[:, -1] >= classes).any() or (ids[:, 1:] <= ids[:, :-1]).any():
        raise ValueError("they do not rise, or are not below the number of classes")
    return ids
