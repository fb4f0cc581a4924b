"""The range coder alone: it comes back, it costs what the frequencies say, it notices damage."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedge.codecs import gaussian, rans
from fedge.errors import CodecError


def draw(klass: int, count: int, seed: int = 0) -> np.ndarray:
    table = rans.tables(klass)
    return np.random.default_rng(seed).choice(table.symbol, count) - table.last


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.integers(0, gaussian.CLASSES - 1), st.integers(1, 200)), min_size=1, max_size=5),
    st.sampled_from([1, 4, 16]),
)
def test_any_codes_come_back(shape, lanes):
    blocks = [
        (np.random.default_rng(k).integers(-rans.tables(c).last, rans.tables(c).last + 1, n), c)
        for k, (c, n) in enumerate(shape)
    ]
    found = rans.decode(rans.encode(blocks, lanes), [(codes.size, klass) for codes, klass in blocks], lanes)
    assert all(np.array_equal(a, b) for a, (b, _) in zip(found, blocks, strict=True))


@pytest.mark.parametrize("klass", [0, 30, 60, 84])
def test_the_length_is_the_codes_information(klass):
    codes, table = draw(klass, 40_000), rans.tables(klass)
    bits = (12 - np.log2(table.frequency[codes + table.last])).sum()
    assert 8 * len(rans.encode([(codes, klass)], 1)) == pytest.approx(bits, rel=0.002, abs=40)


def test_damage_is_noticed():
    codes = draw(20, 5000)
    data = rans.encode([(codes, 20)], 4)
    missed = 0
    for trial in range(200):
        bad = bytearray(data)
        bad[np.random.default_rng(trial).integers(16, len(data))] ^= 1 << trial % 8
        try:
            rans.decode(bytes(bad), [(5000, 20)], 4)
        except CodecError:
            continue
        missed += 1
    assert missed <= 2
    for wrong in (data[:-2], data + b"\0\0", data[:-1], data[:10], b"\0" * len(data)):
        with pytest.raises(CodecError):
            rans.decode(wrong, [(5000, 20)], 4)
