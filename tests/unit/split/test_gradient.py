"""The gradient of a batch as it comes down: its bytes, both codings, and what is refused."""

from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import pytest

from fedge.codecs import Eden, Part
from fedge.codecs.entropy import Subject, regroup, survey, write
from fedge.codecs.grouping import Chunks
from fedge.errors import CodecError
from fedge.split import GradientCoding, GradientMessage
from tests.support.kernels import IMPLEMENTATIONS, implementation

EDEN, UNIFORM = GradientCoding.EDEN, GradientCoding.UNIFORM


def gradients(seed: int = 0, examples: int = 5, values: int = 30) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(examples, values)).astype(np.float32)


def skewed(seed: int = 0, examples: int = 20, values: int = 2304) -> np.ndarray:
    """Return what a network that has learned something gives: a few examples are still wrong."""
    return gradients(seed, examples, values) * np.float32(4.0) ** -np.arange(examples, dtype=np.float32)[:, None]


def error(bits: float, coding: GradientCoding, gradient: np.ndarray, count: int = 20) -> float:
    """Return the relative squared error."""
    exact = gradient.astype(np.float64)
    off = [GradientMessage.of(gradient, bits, seed, coding).gradient - exact for seed in range(count)]
    return float(np.mean(np.square(off).sum((1, 2))) / np.square(exact).sum())


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8, 32])
def test_gradients_come_back_within_a_step_and_both_ends_have_the_same(bits):
    own = GradientMessage.of(gradients(), bits, 7, UNIFORM)
    read = GradientMessage.from_bytes(own.data)
    assert read.gradient.tobytes() == own.gradient.tobytes()
    step = np.ptp(gradients(), axis=1) / ((1 << min(bits, 24)) - 1)
    assert (np.abs(own.gradient - gradients()).max(1) <= step * 1.001 + 1e-6).all()
    assert len(own.data) == 10 + (4 * 150 if bits == 32 else 40 + -(-150 * bits // 8))


@pytest.mark.parametrize("implementation_name", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", [(1, 1), (31, 1), (1, 32), (5, 30), (20, 1000), (2, 70_000)])
@pytest.mark.parametrize("bits", [0.05, 0.7, 2, 8])
def test_both_ends_have_the_same_eden_gradients(bits, shape, implementation_name):
    with implementation(implementation_name):
        own = GradientMessage.of(gradients(1, *shape), bits, 7)
        read = GradientMessage.from_bytes(own.data, shape[0] * shape[1])
    assert read.gradient.tobytes() == own.gradient.tobytes() and read.gradient.shape == shape
    if own.gradient.size > 10_000:
        assert len(own.data) == pytest.approx(bits * own.gradient.size / 8, rel=0.15, abs=60)


def test_an_eden_answer_says_seed_and_payload_behind_its_header():
    g = gradients()
    data = GradientMessage.of(g, 1.5, -3).data
    assert data[:18] == bytes.fromhex("01 02 00 00 0500 1e000000") + struct.pack("<Q", (1 << 64) - 3)
    chunks = Part(g.reshape(-1), -3, (150, 0), thorough=False)
    assert data[18:] == Eden.entropy_coded(1.5).encode_all([chunks])[0]


@pytest.mark.parametrize(("bits", "coding"), [(2, UNIFORM), (4, UNIFORM), (8, UNIFORM), (0.5, EDEN), (1, EDEN)])
def test_rounding_gradients_is_unbiased(bits, coding):
    g, count = gradients(1, 3, 20), 4000
    decoded = np.stack([GradientMessage.of(g, bits, seed, coding).gradient for seed in range(count)]).astype(np.float64)
    standard = decoded.std(0) / np.sqrt(count) + 1e-7
    assert (np.abs(decoded.mean(0) - g) < 5 * standard).all()


def test_eden_gives_its_bits_to_the_examples_that_are_still_wrong():
    for bits, times in ((2, 100), (4, 40)):
        assert error(bits, UNIFORM, skewed()) > times * error(bits, EDEN, skewed())
    assert error(0.5, EDEN, skewed()) < 0.1 < error(0.5, EDEN, gradients(0, 20, 2304))


def test_a_row_of_equal_gradients_is_exact_and_rows_are_apart():
    g = np.zeros((3, 10), np.float32)
    g[1], g[2] = -4.5, np.linspace(0, 1e6, 10)
    decoded = GradientMessage.of(g, 4, 1, UNIFORM).gradient
    assert (decoded[:2] == g[:2]).all() and not (decoded[2] == 0).all()
    zeros = np.zeros((20, 500), np.float32)
    assert not GradientMessage.of(zeros, 1, 1).gradient.any()


@pytest.mark.parametrize("bits", [0, 1, 2.5, 9, 16, 31, 33])
def test_gradients_of_other_bits_are_refused(bits):
    with pytest.raises(CodecError, match="expected 2 to 8 bits a gradient, or 32"):
        GradientMessage.of(gradients(), bits, 1, UNIFORM)


@pytest.mark.parametrize("bits", [0, 0.04, 8.5, 31, float("nan"), float("inf")])
def test_gradients_of_bits_that_eden_has_not_are_refused(bits):
    with pytest.raises(CodecError, match=r"expected 0\.05 to 8 bits a gradient, or 32"):
        GradientMessage.of(gradients(), bits, 1)


@pytest.mark.parametrize("bits", [1, 9, 31, 33])
def test_a_message_of_other_bits_is_refused(bits):
    data = bytearray(GradientMessage.of(gradients(), 4, 1, UNIFORM).data)
    data[2] = bits
    with pytest.raises(CodecError, match="expected 2 to 8 bits"):
        GradientMessage.from_bytes(bytes(data))


def test_gradients_that_cannot_be_are_refused():
    data = GradientMessage.of(gradients(), 4, 1, UNIFORM).data
    huge = data[:10] + struct.pack("<ff", 0, np.inf) + data[18:]
    lost = data[:10] + struct.pack("<ff", np.nan, 1) + data[18:]
    for bad in (huge, lost, data[:-1], data + b"\x00", data[:9], data[:3] + b"\x01" + data[4:], b""):
        with pytest.raises(CodecError):
            GradientMessage.from_bytes(bad)
    with pytest.raises(CodecError, match="expected 1 to 149 gradients, got 5 x 30"):
        GradientMessage.from_bytes(data, 149)
    for coding in GradientCoding:
        for bad in (np.full((2, 2), np.nan, np.float32), np.zeros(4, np.float32), np.zeros((0, 4), np.float32)):
            with pytest.raises(CodecError):
                GradientMessage.of(bad, 4, 1, coding)
        for edge in (np.inf, -np.inf, 2.0**25, -(2.0**25)):
            with pytest.raises(CodecError, match="magnitude"):
                GradientMessage.of(np.full((2, 2), edge, np.float32), 4, 1, coding)


@pytest.mark.parametrize("shape", [(2, 5), (20, 100)])
def test_every_truncation_and_extension_of_an_eden_answer_is_refused(shape):
    data = GradientMessage.of(skewed(0, *shape), 1, 1).data
    for bad in (*(data[:stop] for stop in range(len(data))), data + b"\x00", data + bytes(2)):
        with pytest.raises(CodecError):
            GradientMessage.from_bytes(bad)


def test_eden_payloads_of_other_versions_and_numbers_out_of_range_are_refused():
    g = gradients(0, 20, 400)
    data = GradientMessage.of(g, 1, 1).data
    fixed = Eden(1.0).encode(g.reshape(-1), 1)
    for payload in (fixed, b"\x05" + data[19:], b"\x09" + data[19:], b""):
        with pytest.raises(CodecError, match="expected an EDEN payload of version 2"):
            GradientMessage.from_bytes(data[:18] + payload)
    loud = Eden.entropy_coded(1.0).encode(g.reshape(-1) * np.float32(2.0**25), 1)
    with pytest.raises(CodecError, match="magnitude"):
        GradientMessage.from_bytes(data[:18] + loud)


def test_the_finest_chunks_a_stranger_can_send_take_no_more_memory_than_they_may():
    x = gradients(0, 1, 40_000).reshape(-1)
    x[20_000:] *= 1e-4
    subject = Subject(x, Chunks(1, 0))  # our own encoder takes rows
    sketch, grouping = survey(subject)
    sent = regroup(subject, grouping)
    data = struct.pack("<BBBBHIQ", 1, 2, 0, 0, 1, x.size, 1) + write(sent, sketch.reference, 1)
    tracemalloc.start()
    try:
        assert GradientMessage.from_bytes(data).gradient.size == x.size
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < (1 << 17) + 72 * x.size
