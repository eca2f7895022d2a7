"""Read a struct array from a MATLAB file of version 5, such as `meta.mat` of ImageNet's development kit.

scipy is not used, because it crashes on some damaged files.

A file begins with 128 bytes of text, version and byte order. Elements follow. An element has a type and a number of
bytes (two uint32), then the data, padded to a multiple of 8 bytes. If the data have at most 4 bytes, type and number of
bytes may share the first uint32, and the data replace the second. A variable is an element of type matrix, often
compressed by zlib. A matrix consists of elements: its class, its sizes and its name. In a struct array, the names of
the fields follow, then one matrix for each field of each struct.
"""

import struct
import zlib
from collections.abc import Iterator

HEADER = 128
LITTLE_ENDIAN = b"IM"  # last two bytes of the header
MATRIX, COMPRESSED = 14, 15  # element types of a matrix and of a compressed variable
STRUCT, CHARACTERS = 2, 4  # codes of the matrix classes struct array and text
# type of an element of numbers -> format character of Python's module `struct`
NUMBERS = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 9: "d", 12: "q", 13: "Q"}
# type of an element of text -> encoding
TEXTS = {1: "latin1", 2: "latin1", 4: "utf-16-le", 16: "utf-8", 17: "utf-16-le", 18: "utf-32-le"}
MAX_BYTES = 64 * 2**20  # maximum size of a decompressed variable


def elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (type, content) of each element in `data`: a file without its header, or the content of a matrix.

    Raises:
        ValueError: an element is malformed, or longer than `data`.
    """
    place = 0
    while place < len(data):
        if len(data) - place < 8:
            raise ValueError("the file ends in an element")
        kind, size = struct.unpack_from("<II", data, place)
        start = place + 8
        if kind >> 16:
            kind, size, start = kind & 0xFFFF, kind >> 16, place + 4
            place += 8
            if size > 4:
                raise ValueError("a short element of more than 4 bytes")
        else:
            place = start + size + (-size % 8 if kind != COMPRESSED else 0)
        if start + size > len(data):
            raise ValueError("an element is longer than the file")
        yield kind, data[start : start + size]


def numbers(kind: int, data: bytes) -> tuple[float, ...]:
    """Decode the numbers in an element of type `kind`; raise ValueError if elements of this type hold no numbers."""
    if kind not in NUMBERS:
        raise ValueError(f"an element of type {kind} where numbers are expected")
    letter = NUMBERS[kind]
    return struct.unpack(f"<{len(data) // struct.calcsize(letter)}{letter}", data)


def read_structs(content: bytes, name: str, fields: tuple[str, ...]) -> list[tuple[str | float, ...]]:
    """Return some fields of every struct in the struct array `name`.

    Args:
        content: content of the file.
        name: name of the variable.
        fields: names of the wanted fields, each of which holds a text or one number in each struct.

    Returns:
        values of the fields, one tuple for each struct.

    Raises:
        ValueError: the file is damaged or of another kind, or lacks the variable or a field.
        struct.error, zlib.error, UnicodeDecodeError: the file is damaged.
    """
    if content[HEADER - 2 : HEADER] != LITTLE_ENDIAN:
        raise ValueError("it is not a little-endian MATLAB file of version 5")
    for kind, data in elements(content[HEADER:]):
        if kind == COMPRESSED:
            stream = zlib.decompressobj()
            data = stream.decompress(data, MAX_BYTES)
            if stream.unconsumed_tail:
                raise ValueError("a variable of absurd size")
            kind, data = next(elements(data), (0, b""))
        parts = elements(data) if kind == MATRIX else iter(())
        (_, flags), _sizes, (_, called) = (next(parts, (0, b"")) for _ in range(3))
        if called.decode("latin1") == name and flags[:1] == bytes([STRUCT]):
            return structs_of(parts, fields)
    raise ValueError(f"it has no struct array {name}")


def structs_of(parts: Iterator[tuple[int, bytes]], fields: tuple[str, ...]) -> list[tuple[str | float, ...]]:
    """Return some fields of every struct in a struct array; `parts` yields the elements after the array's name."""
    (width,) = numbers(*next(parts, (0, b"")))
    _, names = next(parts, (0, b""))
    if width <= 0:
        raise ValueError("the names of the fields have no length")
    step = int(width)
    known = [names[i : i + step].split(b"\0")[0].decode("latin1") for i in range(0, len(names), step)]
    places = [known.index(field) for field in fields]  # `index` raises ValueError if a field is missing
    values = [data for _, data in parts]
    rows = [values[i : i + len(known)] for i in range(0, len(values), len(known))]
    if not rows or len(rows[-1]) != len(known):
        raise ValueError("the file ends in a struct")
    return [tuple(value_of(row[place]) for place in places) for row in rows]


def value_of(matrix: bytes) -> str | float:
    """Return the text or the one number that a matrix holds; raise ValueError if it holds neither."""
    parts = list(elements(matrix))
    if len(parts) < 4:
        raise ValueError("a field without value")
    (_, flags), (kind, data) = parts[0], parts[3]
    if flags[:1] == bytes([CHARACTERS]):
        if kind not in TEXTS:
            raise ValueError(f"a text of type {kind}")
        return data.decode(TEXTS[kind])
    found = numbers(kind, data)
    if len(found) != 1:
        raise ValueError("a field with several numbers")
    return found[0]
