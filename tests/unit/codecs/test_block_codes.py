"""Blocks to codes and back, natively and in NumPy: every class of frequencies, in every number of lanes."""

import numpy as np
import pytest

from fedge.codecs import gaussian, native, native_available, native_status
from fedge.codecs.block_codes import Blocks, decode_blocks, encode_blocks
from fedge.errors import CodecError
from tests.support.vectors import normal

needs_native = pytest.mark.skipif(not native_available(), reason=native_status())
SETS = [name for name in ("avx512", "avx2", "baseline") if native_available() and native.kernels.use_isa(name)]
if SETS:
    native.kernels.use_isa(SETS[0])


def blocks_of(sizes: list[int], steps: list[int]) -> Blocks:
    """Blocks of standard normal coordinates at steps t."""
    t, count = np.array(steps, np.int64), np.array(sizes, np.int64)
    return Blocks.of(count, 3 * np.arange(count.size), np.ones(count.size), t)


def every_class() -> Blocks:
    """A block of each class, of sizes that do and do not fill rows of 16 or pairs of them; and fine steps."""
    steps = [gaussian.SPLIT + gaussian.CLASS_UNITS * k for k in range(gaussian.CLASSES)]
    steps += [gaussian.SPLIT - gaussian.UNITS * k - 1 for k in range(8)]
    return blocks_of([(96, 112, 121, 32, 49)[k % 5] for k in range(len(steps))], steps)


@needs_native
@pytest.mark.parametrize("lanes", [1, 4, 16])
@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("far", [1.3, 1e6])  # all codes are the rarest then, and there are more words than usual
def test_codes_of_every_class_are_the_twins(isa, lanes, far, monkeypatch):
    blocks = every_class()
    x = (far * normal(int(blocks.sizes.sum()))).astype(np.float32)
    scale = np.ones(blocks.sizes.size, np.float32)
    with monkeypatch.context() as patch:
        patch.setattr("fedge.codecs.block_codes.kernels", None)
        data, products = encode_blocks(x, blocks, 7, lanes)
        expected = np.zeros_like(x)
        decode_blocks(data, blocks, scale, 7, lanes, None, expected, None)
    native.kernels.use_isa(isa)
    try:
        found, found_products = encode_blocks(x, blocks, 7, lanes)
        out = np.zeros_like(x)
        decode_blocks(data, blocks, scale, 7, lanes, None, out, None)
    finally:
        native.kernels.use_isa(SETS[0])
    assert found == data
    assert found_products.tobytes() == products.tobytes()
    assert out.tobytes() == expected.tobytes()


@needs_native
@pytest.mark.parametrize("lanes", [1, 4, 16])
@pytest.mark.parametrize("isa", SETS)
def test_words_that_end_early_or_go_on_are_refused(isa, lanes):
    blocks = blocks_of([4096, 700], [500, -4000])
    data, _ = encode_blocks(normal(4796), blocks, 7, lanes)
    out, scale = np.zeros(4796, np.float32), np.ones(2, np.float32)
    native.kernels.use_isa(isa)
    try:
        for wrong in (data[:-2], data[:-16], data[:-34], data[:-64], data[:-200], data + b"\0\0", data + bytes(64)):
            with pytest.raises(CodecError, match="end where the payload does"):
                decode_blocks(wrong, blocks, scale, 7, lanes, None, out, None)
    finally:
        native.kernels.use_isa(SETS[0])
    assert not out.any()


@needs_native
def test_words_beyond_what_was_expected_find_room():
    count, found = 12, []
    blocks = blocks_of([4096] * count, [gaussian.SPLIT] * count)
    x, out = np.full(4096 * count, 1e6, np.float32), np.zeros(4096 * count, np.float32)
    for isa in SETS:
        native.kernels.use_isa(isa)
        try:
            found.append(encode_blocks(x, blocks, 7, 16)[0])
            decode_blocks(found[-1], blocks, np.ones(count, np.float32), 7, 16, None, out, None)
        finally:
            native.kernels.use_isa(SETS[0])
    assert len(found[0]) > 1.4 * x.size  # 12 bits a code
    assert set(found) == {found[0]}
