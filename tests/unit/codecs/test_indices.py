"""Indices, packed and coded."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedge.codecs import native
from fedge.codecs.indices import bits_of, decode_indices, encode_indices, pack_bits, packed_bytes, unpack_bits
from fedge.errors import CodecError
from tests.support.kernels import IMPLEMENTATIONS, ISAS, implementation

needs_native = pytest.mark.skipif(not ISAS, reason="the twin is alone")


def skewed(positions: int, examples: int, bits: int, seed: int) -> np.ndarray:
    """Indices whose frequencies differ by position."""
    rng = np.random.default_rng(seed)
    p = rng.uniform(0.05, 0.95, (positions, 1))
    return np.minimum(rng.geometric(p, (positions, examples)) - 1, (1 << bits) - 1).astype(np.uint8)


def models(positions: int, bits: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (positions, (1 << bits) - 1)).astype(np.uint8)


def test_an_index_takes_the_bits_it_needs():
    assert [bits_of(count) for count in (1, 2, 3, 4, 5, 8, 9, 32, 33, 255, 256)] == [0, 1, 2, 2, 3, 3, 4, 5, 6, 8, 8]


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_codes_are_packed_from_the_lowest_bit_of_the_first_byte(name):
    with implementation(name):
        assert pack_bits(np.array([1, 0, 0, 0, 0, 0, 0, 1, 1], np.uint8), 1) == bytes([0b10000001, 0b1])
        assert pack_bits(np.array([0b101, 0b011, 0b110], np.uint8), 3) == bytes([0b10_011_101, 0b1])
        assert pack_bits(np.array([255, 1], np.uint8), 8) == bytes([255, 1])


@needs_native
@settings(max_examples=60, deadline=None)
@given(count=st.integers(0, 300), bits=st.integers(0, 8), seed=st.integers(0, 1000))
def test_packing_comes_back_and_is_the_same_everywhere(count, bits, seed):
    codes = np.random.default_rng(seed).integers(0, 1 << bits, count).astype(np.uint8)
    found = set()
    for name in IMPLEMENTATIONS:
        with implementation(name):
            data = pack_bits(codes, bits)
            assert len(data) == packed_bytes(count, bits) and (unpack_bits(data, bits, count) == codes).all()
            found.add(data)
    assert len(found) == 1


def test_packed_codes_of_another_length_or_with_a_tail_are_refused():
    with pytest.raises(CodecError, match="expected 2 bytes for 3 codes of 3 bits, got 1"):
        unpack_bits(b"\x00", 3, 3)
    with pytest.raises(CodecError, match="expected 7 zero bits"):
        unpack_bits(b"\x00\x02", 3, 3)


@settings(max_examples=60, deadline=None)
@given(
    positions=st.integers(1, 40),
    examples=st.integers(1, 30),
    bits=st.integers(1, 8),
    groups=st.integers(1, 40),
    with_model=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_coded_indices_come_back_and_are_the_same_everywhere(positions, examples, bits, groups, with_model, seed):
    index, groups = skewed(positions, examples, bits, seed), min(groups, positions)
    shared = models(positions, bits, seed) if with_model else None
    found = set()
    for name in (IMPLEMENTATIONS[0], "numpy"):
        with implementation(name):
            data = encode_indices(index, groups, bits, shared)
            assert (decode_indices(data, positions, examples, groups, bits, shared) == index).all()
            found.add(data)
    assert len(found) == 1


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_carries_that_run_through_many_bytes_come_back(name):
    # All but the rarest outcome, over and over: the low end of the range creeps up to the next carry.
    with implementation(name):
        for rare in (0, 1):
            index = np.full((400, 9), 1 - rare, np.uint8)
            index[::37, 0] = rare
            data = encode_indices(index, 1, 1)
            assert (decode_indices(data, 400, 9, 1, 1) == index).all()


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_coded_indices_have_these_bytes_for_ever(name):
    index = (np.arange(60).reshape(12, 5) * 7 % 11 % 4).astype(np.uint8)
    index[3:9] = 0
    index[4, 2] = 3
    model = (np.arange(36).reshape(12, 3) * 37 % 256).astype(np.uint8)
    with implementation(name):
        assert encode_indices(index, 2, 2).hex() == "c1e7b8904a0d9d1376f82534d7070f"
        assert encode_indices(index, 2, 2, model).hex() == "25ed7bb9f4bea3dfbb6c7fa4867ede9c6680"


def test_what_differs_by_position_is_found_within_a_message():
    rng = np.random.default_rng(0)
    p = rng.beta(0.2, 0.8, (1000, 1))
    index = (rng.random((1000, 20)) < p).astype(np.uint8)
    by_position = float(-(p * np.log2(p + 1e-300) + (1 - p) * np.log2(1 - p + 1e-300)).mean())
    share = index.mean()
    by_share = float(-(share * np.log2(share) + (1 - share) * np.log2(1 - share)))
    bits = 8 * len(encode_indices(index, 1, 1)) / index.size
    assert by_position < bits < 0.5 * (by_position + by_share)


def test_a_model_that_fits_helps_and_one_that_does_not_costs_little():
    rng = np.random.default_rng(1)
    p = rng.beta(0.2, 0.8, (1000, 1))
    index = (rng.random((1000, 20)) < p).astype(np.uint8)
    alone = len(encode_indices(index, 1, 1))
    known, wrong = (np.clip(256 * share, 1, 254).astype(np.uint8) for share in (p, 1 - p))
    assert len(encode_indices(index, 1, 1, known)) < 0.9 * alone
    assert len(encode_indices(index, 1, 1, wrong)) < 3 * alone


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_coded_indices_that_do_not_end_as_they_must_are_refused(name):
    index = skewed(50, 10, 3, seed=1)
    with implementation(name):
        data = encode_indices(index, 1, 3)
        for bad in (data[:-1], data + b"\x00", data[:3], b"", data[:-1] + bytes([data[-1] ^ 1]), data[1:]):
            with pytest.raises(CodecError, match="expected 50 x 10 coded indices"):
                decode_indices(bad, 50, 10, 1, 3)
        with pytest.raises(CodecError):
            decode_indices(data, 50, 11, 1, 3)


@needs_native
def test_the_extension_refuses_what_does_not_fit():
    index, out = skewed(10, 4, 2, seed=1), np.zeros((10, 4), np.uint8)
    data = native.kernels.encode_indices(index, 10, 1, 2, None)
    for call in (
        lambda: native.kernels.encode_indices(index, 7, 1, 2, None),
        lambda: native.kernels.encode_indices(index, 10, 11, 2, None),
        lambda: native.kernels.encode_indices(index, 10, 0, 2, None),
        lambda: native.kernels.encode_indices(index, 10, 1, 0, None),
        lambda: native.kernels.encode_indices(index, 10, 1, 9, None),
        lambda: native.kernels.encode_indices(index, 10, 1, 2, np.zeros(29, np.uint8)),
        lambda: native.kernels.decode_indices(data, 0, 1, 2, None, out),
        lambda: native.kernels.pack_bits(index, 9),
        lambda: native.kernels.unpack_bits(b"12", 3, np.zeros(3, np.uint8)[:2]),
    ):
        with pytest.raises(ValueError, match="expected"):
            call()
