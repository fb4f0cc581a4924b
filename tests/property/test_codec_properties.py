"""Hypothesis looks for vectors, rates and payloads that break a codec; tests/fuzz tries many more payloads."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedge.codecs import Codec, Eden
from fedge.errors import CodecError
from tests.support.codec_table import FAMILIES

codecs = st.builds(lambda family, bits: family.at_rate(bits), st.sampled_from(FAMILIES), st.floats(0.05, 8))
vectors = hnp.arrays(
    np.float32, st.integers(0, 300), elements=st.floats(allow_nan=False, allow_infinity=False, width=32)
)
seeds = st.integers(-(2**65), 2**65)


@settings(max_examples=200, deadline=None)
@given(codec=codecs, x=vectors, seed=seeds)
def test_any_finite_vector_survives_in_shape_and_stays_finite(codec: Codec, x, seed):
    data = codec.encode(x, seed)
    x_hat = codec.decode(data, x.size, seed)
    assert len(data) <= codec.size_bytes(x.size)
    assert x_hat.shape == x.shape and np.isfinite(x_hat).all()


@settings(max_examples=200, deadline=None)
@given(codec=codecs, size=st.integers(0, 5000), seed=seeds, draw=st.data())
def test_bytes_from_anywhere_decode_to_finite_numbers_or_are_refused(codec: Codec, size, seed, draw):
    expected = codec.size_bytes(size)
    junk = np.random.default_rng(draw.draw(st.integers(0, 2**32))).bytes(expected)
    versions = [b"\x01" + junk[1:], b"\x02" + junk[1:], b"\x04" + junk[1:], junk]
    data = draw.draw(st.one_of(st.sampled_from(versions), st.binary(max_size=200)))
    try:
        x_hat = codec.decode(data, size, seed)
    except CodecError:
        return
    assert len(data) == expected or data[0] == 2
    assert x_hat.shape == (size,) and np.isfinite(x_hat).all()


@settings(max_examples=100, deadline=None)
@given(x=vectors.filter(lambda x: np.abs(x).max(initial=0) > 1e-20), bits=st.floats(1, 8), seed=seeds)
def test_the_estimate_projects_onto_the_vector(x, bits, seed):
    x = np.clip(x, -1e30, 1e30)
    x_hat = Eden(bits).decode(Eden(bits).encode(x, seed), x.size, seed).astype(np.float64)
    wide = x.astype(np.float64)
    assert x_hat @ wide == pytest.approx(wide @ wide, rel=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: b"\x09"}, "version 1, 2, 5 or 6, got 9"),
        ({1: b"\x00\x00\xc0\x7f"}, "scale that is finite"),
        ({1: b"\x00\x00\x80\x7f"}, "scale that is finite"),
        ({1: b"\x00\x00\x80\xbf"}, "not negative, got -1"),
        ({1: b"\x00\x00\x00\x80"}, "not negative, got -0"),
    ],
)
def test_impossible_numbers_in_a_payload_are_named(change, message):
    data = bytearray(Eden(2).encode(np.ones(100), seed=1))
    for at, value in change.items():
        data[at : at + len(value)] = value
    with pytest.raises(CodecError, match=message):
        Eden(2).decode(bytes(data), 100, seed=1)


def test_raw_coordinates_that_are_not_finite_are_refused():
    data = Eden(2).encode(np.ones(5), seed=1)[:-4] + b"\x00\x00\x80\x7f"
    with pytest.raises(CodecError, match="raw coordinates, got inf"):
        Eden(2).decode(data, 5, seed=1)
