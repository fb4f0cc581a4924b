"""Subsets: every one comes back, in the bytes that were promised, and nothing else is taken for one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedge.codecs.m22 import sparse, subset
from fedge.errors import CodecError


def drawn(size: int, density: float, seed: int = 0) -> np.ndarray:
    return np.flatnonzero(np.random.default_rng(seed).random(size) < density)


@given(st.integers(1, 300), st.floats(0, 1), st.integers(0, 99))
def test_every_subset_comes_back_from_as_many_bytes_as_were_promised(size, density, seed):
    members = drawn(size, density, seed)
    chosen = subset.choose(members, size)
    data = chosen.to_bytes()
    found, end = subset.read(b"?" + data + b"\xff\xff", 1, size)
    assert len(data) == chosen.size_bytes == end - 1
    assert np.array_equal(found, members)


@pytest.mark.parametrize("density", [0.001, 0.01, 0.1, 0.2, 0.3])
def test_random_members_take_at_most_three_percent_more_than_their_entropy(density):
    size = 200_000
    members = drawn(size, density)
    q = members.size / size
    entropy = -(q * np.log2(q) + (1 - q) * np.log2(1 - q))
    for part in (members, sparse.others_of(members, size)):
        bits = 8 * subset.choose(part, size).size_bytes / size
        assert bits == pytest.approx(float(subset.expected_bits(np.array(q))), rel=0.02)
        assert entropy <= bits <= 1.03 * entropy + 64 / size


def test_members_at_the_ends_and_in_one_run_come_back():
    for members in ([0], [999], [0, 999], list(range(400)), list(range(1, 1000)), list(range(0, 1000, 7))):
        data = subset.choose(np.array(members), 1000).to_bytes()
        assert subset.read(data, 0, 1000)[0].tolist() == members


@settings(max_examples=300)
@given(st.binary(max_size=40), st.integers(0, 200))
def test_any_bytes_are_a_subset_of_that_many_things_or_refused(data, size):
    try:
        members, end = subset.read(data, 0, size)
    except CodecError:
        return
    assert end <= len(data)
    assert (np.diff(members) > 0).all()
    assert members.size == 0 or (members[0] >= 0 and members[-1] < size)


def test_a_list_that_leaves_the_things_there_are_is_refused():
    data = subset.choose(np.array([0, 500]), 1000).to_bytes()
    with pytest.raises(CodecError, match="2 places below 400"):
        subset.read(data, 0, 400)


@pytest.mark.parametrize("number", [0, 1, 127, 128, 16_383, 16_384, 2**32])
def test_counts_come_back(number):
    data = subset.varint(number)
    assert subset.read_varint(data, 0) == (number, len(data))
