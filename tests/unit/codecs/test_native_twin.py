"""The C extension and its NumPy twin: the same bytes and the same floats, on every instruction set."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedge.codecs import Eden, eden, lloyd, native, native_available, native_status, twin
from fedge.codecs.plan import WHOLE, Plan, plan, versions

needs_native = pytest.mark.skipif(not native_available(), reason=native_status())
SETS = [name for name in ("avx512", "avx2", "baseline") if native_available() and native.kernels.use_isa(name)]
FASTEST = SETS[0] if SETS else ""
if SETS:
    native.kernels.use_isa(FASTEST)


def vector(kind: str, size: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(size)
    if kind == "sparse":
        x *= rng.random(size) < 0.002
    if kind == "wild":
        x *= np.exp(8 * rng.standard_normal(size))
    if kind == "half zero":
        x[: size // 2] = 0
    scale = {"huge": 1e38, "tiny": 1e-40}.get(kind, 1.0)
    return np.clip(x * scale, -3.4e38, 3.4e38).astype(np.float32)


def assert_same_sum(
    data: bytes, x_hat: np.ndarray, rotated: int, call: tuple, mask: np.ndarray | None, isa: str
) -> None:
    for dtype, target, weight in ((np.float32, 1, -2.3), (np.float32, 1, 1.0), (np.float64, 2, -2.3)):
        total = np.linspace(-1, 1, x_hat.size).astype(dtype)
        expected = total.copy()
        with np.errstate(over="ignore", invalid="ignore"):
            expected += np.float64(weight) * x_hat
        native.kernels.decode(data, total, total.size, target, weight, *call, lloyd.TABLES, eden._GAINS, mask)
        assert total[:rotated].tobytes() == expected[:rotated].tobytes(), (isa, dtype, weight)


def assert_same(x: np.ndarray, bits: float, seed: int, received: np.ndarray, sets: list[str]) -> None:
    for version in versions(bits, x.size):
        assert_same_payload(x, plan(bits, x.size, version), seed, received, sets)


def assert_same_payload(x: np.ndarray, shape: Plan, seed: int, received: np.ndarray, sets: list[str]) -> None:
    rotated = x.size - shape.raw
    runs = shape.runs
    data = twin.encode(x, shape, seed)
    expected = [(mask, twin.decode(data, shape, seed, mask)) for mask in (None, received)]
    for isa in sets:
        native.kernels.use_isa(isa)
        assert native.kernels.encode(x, seed, shape.size_bytes, *runs, lloyd.TABLES) == data, isa
        for mask, decoded in expected:
            out = np.zeros_like(x)
            native.kernels.decode(data, out, out.size, 0, 1.0, seed, *runs, lloyd.TABLES, eden._GAINS, mask)
            assert out[:rotated].tobytes() == decoded[:rotated].tobytes(), isa
            assert np.isfinite(out).all()
            assert_same_sum(data, decoded, rotated, (seed, *runs), mask, isa)
    native.kernels.use_isa(FASTEST)


@needs_native
@pytest.mark.parametrize("kind", ["normal", "sparse", "wild", "half zero", "huge", "tiny"])
@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, 100, 128, 2047, 4095, 4096, 4097, 5000, 8192 + 31, 12_500])
def test_both_give_the_same_bytes_and_floats_at_every_width(kind, size):
    x = vector(kind, size, seed=size)
    received = np.random.default_rng(1).random(size) < 0.8
    for bits in (0.05, 0.3, 1, 1.3, 1.6, 2, 2.5, 2.7, 3, 3.8, 4, 4.2, 5, 5.7, 6, 6.6, 7, 7.9, 8):
        assert_same(x, bits, seed=int(bits * 1000) + size, received=received, sets=SETS)


@needs_native
@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(0, 9000),
    bits=st.floats(0.05, 8),
    seed=st.integers(0, 2**64 - 1),
    kind=st.sampled_from(["normal", "sparse", "wild", "half zero", "huge", "tiny"]),
    loss=st.floats(0, 1),
)
def test_both_agree_on_whatever_is_drawn(size, bits, seed, kind, loss):
    received = np.random.default_rng(seed).random(size) >= loss
    assert_same(vector(kind, size, seed), bits, seed, received, SETS[:1])


@needs_native
def test_more_blocks_than_the_twin_works_on_at_once():
    for rest in (50, 17):
        x = vector("normal", 4096 * (twin.CHUNK + 3) + rest, seed=1)
        for bits in (1.5, 2):
            assert_same(x, bits, seed=8, received=np.random.default_rng(1).random(x.size) < 0.5, sets=SETS)


@needs_native
@pytest.mark.parametrize("bits", [1.6, 2.3, 3.9, 5.4])
def test_trits_that_no_encoder_writes_decode_alike_everywhere(bits):
    size = 4096 + 777
    shape, rng = plan(bits, size), np.random.default_rng(3)
    good = twin.encode(vector("normal", size, seed=1), shape, seed=2)
    codes = rng.integers(243, 256, len(good) - 1 - shape.scale_bytes).astype(np.uint8)
    data = good[: 1 + shape.scale_bytes] + codes.tobytes()
    expected = twin.decode(data, shape, 2, None)
    assert np.isfinite(expected).all()
    for isa in SETS:
        native.kernels.use_isa(isa)
        assert Eden(bits).decode(data, size, seed=2).tobytes() == expected.tobytes(), isa
    native.kernels.use_isa(FASTEST)


@needs_native
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("scale", [1.0, 1e-44, 3e-31, 3e38])
def test_codes_of_whole_numbers_that_overflow_decode_alike_everywhere(bits, scale):
    size = 2 * 4096
    shape, received = plan(bits, size), np.random.default_rng(3).random(size) < 0.9
    head = bytes([WHOLE]) + np.float32(scale).tobytes() + b"\xff\xff\xff\xf7"
    for byte in (0x00, 0xFF, 0x55, 0x0F):  # all numbers alike add up to more than 16 bits hold
        data = head + bytes([byte]) * (512 * bits) + bytes([byte ^ 0xFF]) * (512 * bits)
        for mask in (None, received):
            expected = twin.decode(data, shape, 2, mask)
            assert np.isfinite(expected).all()
            for isa in SETS:
                native.kernels.use_isa(isa)
                out = np.zeros(size, np.float32)
                native.kernels.decode(data, out, size, 0, 1.0, 2, *shape.runs, lloyd.TABLES, eden._GAINS, mask)
                assert out.tobytes() == expected.tobytes(), isa
                assert_same_sum(data, expected, size, (2, *shape.runs), mask, isa)
    native.kernels.use_isa(FASTEST)


@needs_native
def test_the_extension_refuses_buffers_that_do_not_fit_each_other():
    x, out, good = np.zeros(100, np.float32), np.zeros(100, np.float32), Eden(2.0).encode(np.zeros(100), 1)
    runs, tables, gains = plan(2.0, 100).runs, lloyd.TABLES, eden._GAINS
    none, block = (1, 1, 0, 0), np.zeros(4096, np.float32)
    for call in (
        lambda: native.kernels.encode(x, 1, len(good) - 1, *runs, tables),
        lambda: native.kernels.encode(x, 1, len(good), *runs, tables[:-1]),
        lambda: native.kernels.encode(x, 1, len(good), 3, *runs[1:], tables),
        lambda: native.kernels.encode(x, 1, len(good), 1, (16, 2, 0, 0), (16, 2, 0, 100), none, tables),
        lambda: native.kernels.encode(x, 1, len(good), 1, (2, 16, 0, 0), (2, 16, 0, 100), none, tables),
        lambda: native.kernels.encode(x, 1, len(good), 1, (2, 3, 0, 4097), (2, 3, 0, 100), none, tables),
        lambda: native.kernels.encode(x, 1, len(good), 1, (2, 3, 0, 4096), (2, 3, 1, 100), none, tables),
        lambda: native.kernels.encode(x, 1, len(good), 1, (2, 3, 0, 4096), (2, 3, -5, 100), none, tables),
        lambda: native.kernels.encode(x, 1, len(good), 1, (2, 3, 0, 4096), (2, 3, 0, 100), (2, 3, 0, 1), tables),
        lambda: native.kernels.encode(x, 1, len(good), 1, (2, 3, 0, 4096), (2, 4, 0, 100), none, tables),
        lambda: native.kernels.encode(x, 1, len(good), WHOLE, *runs[1:], tables),
        lambda: native.kernels.encode(block, 1, 2053, WHOLE, (2, 3, 8, 4088), none, none, tables),
        lambda: native.kernels.encode(block, 1, 2565, WHOLE, (5, 6, 0, 4096), none, none, tables),
        lambda: native.kernels.decode(good[:-1], out, out.size, 0, 1.0, 1, *runs, tables, gains, None),
        lambda: native.kernels.decode(good, out[:-1], out[:-1].size, 0, 1.0, 1, *runs, tables, gains, None),
        lambda: native.kernels.decode(good, out, out.size, 0, 1.0, 1, *runs, tables, gains[:-1], None),
        lambda: native.kernels.decode(good, out, out.size, 0, 1.0, 1, *runs, tables, gains, np.ones(99, bool)),
    ):
        with pytest.raises(ValueError, match=r"bytes|tables|run"):
            call()


@needs_native
def test_the_extension_uses_the_stable_abi():
    assert native.kernels.__file__.endswith(".abi3.so")
    assert "natively" in native_status()


def test_without_the_extension_the_same_bytes_come_out_and_the_status_says_what_is_lost():
    script = (
        "from fedge.codecs import *; import numpy as np; "
        "print(native_available()); print(native_status()); "
        "print(Eden(1.5).encode(np.arange(5000) % 17 - 8.0, seed=3).hex())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "FEDGE_NO_NATIVE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    available, status, data = done.stdout.splitlines()
    assert available == "False" and "FEDGE_NO_NATIVE is set" in status and "longer" in status
    assert data == Eden(1.5).encode(np.arange(5000) % 17 - 8.0, seed=3).hex()
