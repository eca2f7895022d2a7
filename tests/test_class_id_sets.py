"""Sets of class ids are stored near their entropy and read back; any other bytes are refused."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.labels.class_ids import code_bytes, decode_ids, encode_ids


def draw_sets(rng, rows, count, classes):
    """Draw `rows` sets of `count` ids, each equally likely."""
    return np.stack([np.sort(rng.permutation(classes)[:count]) for _ in range(rows)])


@given(st.integers(0, 4), st.integers(1, 40), st.integers(0, 3000), st.integers(0, 2**32))
def test_ids_round_trip(rows, count, more, seed):
    classes = count + more
    ids = draw_sets(np.random.default_rng(seed), rows, count, classes) if rows else np.zeros((0, count), np.int64)
    code = encode_ids(ids, classes)
    assert code.shape == (rows, sum(code_bytes(count, classes)))
    assert np.array_equal(decode_ids(code, count, classes), ids)


@pytest.mark.parametrize("ids", [range(50), range(950, 1000), range(0, 1000, 20), [*range(49), 999]])
def test_the_code_is_as_documented(ids):
    """The bits are read one by one, as a reader in another language would do."""
    ids = np.array([ids])
    code = encode_ids(ids, 1000)[0].tolist()

    def bit(data, b):
        return data[b // 8] >> b % 8 & 1

    lows = [sum(bit(code[:25], j * 50 + i) << j for j in range(4)) for i in range(50)]
    places = [b for b in range(14 * 8) if bit(code[25:], b)]
    assert [(place - i << 4) + low for i, (place, low) in enumerate(zip(places, lows, strict=True))] == ids[0].tolist()


@pytest.mark.parametrize(("count", "classes"), [(50, 1000), (10, 1000), (100, 1000), (10, 200), (5, 1000)])
def test_the_code_is_within_an_eighth_of_the_entropy_and_two_bytes(count, classes):
    entropy = math.log2(math.comb(classes, count)) / 8
    assert entropy <= sum(code_bytes(count, classes)) <= 1.125 * entropy + 2


def test_50_of_1000_take_39_bytes():
    assert sum(code_bytes(50, 1000)) == 39


@given(st.integers(1, 12), st.integers(0, 60), st.binary(min_size=1, max_size=200))
def test_any_bytes_are_ids_or_refused(count, more, data):
    """The result is a valid set whose code differs at most in unused bits."""
    classes = count + more
    width = sum(code_bytes(count, classes))
    code = np.frombuffer(data[: len(data) // width * width], np.uint8).reshape(-1, width)
    try:
        ids = decode_ids(code, count, classes)
    except ValueError:
        return
    assert ids.shape == (len(code), count)
    assert (np.diff(ids, axis=1) > 0).all()
    assert ids.size == 0 or 0 <= ids.min() <= ids.max() < classes
    assert np.array_equal(decode_ids(encode_ids(ids, classes), count, classes), ids)


def test_a_row_cannot_take_ids_from_the_next():
    """A code with the right total but wrong rows is refused."""
    code = encode_ids(np.array([[0, 1], [0, 1]]), 4)
    low_bytes = code_bytes(2, 4)[0]
    code[0, low_bytes:], code[1, low_bytes:] = 0b0001, 0b0111
    with pytest.raises(ValueError, match="do not rise"):
        decode_ids(code, 2, 4)
