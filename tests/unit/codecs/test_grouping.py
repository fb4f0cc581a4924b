"""Chunks, classes, order, and the blocks they are cut into."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.codecs import grouping
from fedge.codecs.grouping import SMALLEST_BLOCK, ZERO, Chunks
from fedge.codecs.rotation import BLOCK
from fedge.errors import CodecError


@given(st.integers(1, 40_000), st.integers(1, 5000), st.data())
def test_chunks_cover_every_coordinate_once(count, length, draw):
    chunks = Chunks(length, draw.draw(st.integers(0, length - 1)))
    sizes = chunks.sizes(count)
    assert sizes.sum() == count and (sizes > 0).all()
    assert (sizes[1:-1] == length).all()


@given(st.lists(st.integers(1, 9000), min_size=1, max_size=12))
def test_blocks_cover_the_runs_and_are_neither_long_nor_short(runs):
    cut = grouping.cut(runs)
    assert cut.sizes.sum() == sum(runs) and cut.sizes.max() <= BLOCK
    assert cut.sizes.min() >= min(SMALLEST_BLOCK, sum(runs))


def test_no_two_blocks_share_a_set_of_signs():
    cut = grouping.cut([4096 * 3 + 900, 700, 8192])
    sets = [
        number * 2 + j
        for size, number in zip(cut.sizes, cut.numbers, strict=True)
        for j in range(2 + 4 * (size < BLOCK))
    ]
    assert len(set(sets)) == len(sets)


def test_a_few_coordinates_behind_full_blocks_are_shared_out_and_not_sent_raw():
    assert grouping.cut([8192 + 10]).sizes.tolist() == [4096, 2053, 2053]


def test_classes_are_octaves_below_the_strongest_chunk():
    rms = np.array([1.0, 1.9, 0.5, 0.26, 0.0, 1e-9])
    assert grouping.classes_of(rms**2 * 100, np.full(6, 100)).tolist() == [0, 0, 1, 2, ZERO, 14]


@given(st.lists(st.integers(0, ZERO), min_size=1, max_size=400))
def test_classes_come_back_and_take_the_bytes_they_were_said_to(classes):
    packed = grouping.pack_classes(np.array(classes))
    found, taken = grouping.unpack_classes(np.frombuffer(packed + b"\xff" * 9, np.uint8), len(classes))
    assert found.tolist() == classes and taken == len(packed) == grouping.packed_bytes(np.array(classes))


@pytest.mark.parametrize("data", [b"", b"\xff" * 50, b"\x01", b"\xff\xff\xff\xff\x7f"])
def test_what_are_no_classes_is_refused(data):
    with pytest.raises(CodecError, match="classes"):
        grouping.unpack_classes(np.frombuffer(data, np.uint8), 40)


def test_the_order_brings_the_strongest_chunks_first_and_keeps_neighbours():
    sizes, classes = np.array([2, 3, 3, 1]), np.array([1, 0, 2, 0])
    assert grouping.order_of(classes, sizes).tolist() == [2, 3, 4, 8, 0, 1, 5, 6, 7]
    assert grouping.runs_of(classes, sizes) == [4, 2, 3]
