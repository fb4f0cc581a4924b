"""Messages of split training: whatever is drawn comes back, and whatever is damaged is refused or harmless."""

from __future__ import annotations

import tracemalloc
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedge.codecs import native_available
from fedge.errors import CodecError
from fedge.split import (
    Coding,
    GradientCoding,
    GradientMessage,
    Memory,
    Options,
    Shared,
    Start,
    answer,
    quantize,
    receive,
)
from fedge.split.message import ActivationMessage
from fedge.split.quantizer import LARGEST_MAGNITUDE, restore
from tests.fuzz.damage import DAMAGES
from tests.support.kernels import IMPLEMENTATIONS, implementation

MOST_VALUES = 4096
COUNT = 6_000 if native_available() else 1_000


def activations(examples: int, values: int, seed: int) -> np.ndarray:
    return np.maximum(np.random.default_rng(seed).normal(size=(examples, values)), 0).astype(np.float32)


def gradients(examples: int, values: int, seed: int) -> np.ndarray:
    """Return rows of very unlike size, as real ones are."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(examples, values)) * np.exp(-2 * rng.random((examples, 1)) * 5)).astype(np.float32)


@st.composite
def runs(draw: st.DrawFn) -> tuple[Options, int, int]:
    q = draw(st.integers(1, 30))
    examples, values = draw(st.integers(1, 12)), q * draw(st.integers(1, 6))
    coding = draw(st.sampled_from(GradientCoding))
    bits = st.floats(0.05, 8) if coding is GradientCoding.EDEN else st.integers(2, 8)
    options = Options(
        q,
        draw(st.integers(1, q)),
        draw(st.sampled_from([1, 2, 3, 7, 8, 33, 256])),
        start=draw(st.sampled_from(Start)),
        coding=draw(st.sampled_from(Coding)),
        codebook_bits=draw(st.sampled_from([8, 32])),
        gradient_bits=draw(bits | st.just(32)),
        gradient_coding=coding,
        least_members=draw(st.integers(0, examples)),
        refresh_steps=draw(st.integers(1, 3)),
    )
    return options, examples, values


@settings(max_examples=80, deadline=None)
@given(run=runs(), seed=st.integers(0, 1000))
def test_every_shape_comes_back_with_every_switch(run, seed):
    options, examples, values = run
    memory, shared = Memory(options.shape(examples, values)), None
    for step in range(3):
        z = activations(examples, values, seed + step)
        made = quantize(z, options, step, seed, shared)
        received = receive(made.data, options, shared, examples * values)
        assert received.restored.tobytes() == made.restored.tobytes()
        again = received.message.to_bytes(shared)
        assert again == made.data
        book = received.message.codebook
        memory = memory.after([(book.centroids if book.data else None, received.message.index)])
        shared = Shared.from_bytes(memory.publish(model=options.coding is Coding.SHARED).to_bytes(), values)
        for g in (z, gradients(examples, values, seed + step)):
            gradient = GradientMessage.from_bytes(answer(g, options, seed), examples * values).gradient
            assert gradient.shape == z.shape and np.isfinite(gradient).all()


@pytest.mark.skipif(len(IMPLEMENTATIONS) < 2, reason="the twin is alone")
@settings(max_examples=30, deadline=None)
@given(run=runs(), seed=st.integers(0, 1000))
def test_native_and_twin_send_the_same_bytes(run, seed):
    options, examples, values = run
    z, found = activations(examples, values, seed), set()
    for name in IMPLEMENTATIONS:
        with implementation(name):
            made = quantize(z, options, 0, seed)
            found.add((made.data, made.restored.tobytes(), answer(z, options, seed)))
            assert receive(made.data, options).restored.tobytes() == made.restored.tobytes()
    assert len(found) == 1


def originals() -> tuple[Shared, list[bytes]]:
    """Return a shared state and sound messages of many kinds."""
    found, state = [], None
    for centroids in (1, 2, 5, 8):
        options = Options(12, 3, centroids, start=Start.WARM, coding=Coding.SHARED)
        memory = Memory(options.shape(9, 48))
        read = ActivationMessage.from_bytes(quantize(activations(9, 48, 0), options, 0, 1).data)
        state = memory.after([(read.codebook.centroids, read.index)]).publish(model=centroids > 1)
        for coding in Coding:
            for start in Start:
                for bits in (8, 32):
                    own = Options(12, 3, centroids, start=start, coding=coding, codebook_bits=bits)
                    found.append(quantize(activations(9, 48, 1), own, 1, 1, state).data)
        uniform = [Options(12, gradient_bits=bits, gradient_coding=GradientCoding.UNIFORM) for bits in (2, 5, 8, 32)]
        eden = [Options(12, gradient_bits=bits) for bits in (0.1, 0.5, 1, 2.5, 6)]
        found += [answer(gradients(9, 48, 2), own, 1) for own in (*uniform, *eden)]
        found += [answer(gradients(*shape, 3), eden[1], 1) for shape in ((1, 3), (40, 100), (3, 1))]
        found.append(state.to_bytes())
    assert state is not None
    return state, found


def read_all(data: bytes, state: Shared) -> list[np.ndarray]:
    """Read ``data`` as everything it could be; what came out, nothing if it was refused."""
    found = []
    for read in (
        lambda: ActivationMessage.from_bytes(data, state, MOST_VALUES),
        lambda: GradientMessage.from_bytes(data, MOST_VALUES).gradient,
        lambda: Shared.from_bytes(data, MOST_VALUES),
    ):
        try:
            one = read()
        except CodecError:
            continue
        if isinstance(one, ActivationMessage):
            one = restore(one.codebook.centroids, one.index, one.shape)
        if isinstance(one, np.ndarray):
            assert one.dtype == np.float32 and 1 <= one.size <= MOST_VALUES
            assert np.abs(one).max() <= 1.01 * LARGEST_MAGNITUDE
            found.append(one)
    return found


def test_damaged_messages_are_refused_or_decode_to_numbers_in_range():
    state, messages = originals()
    kinds = tuple(DAMAGES)
    refused = 0
    for number in range(COUNT):
        rng = Random(number)
        data = DAMAGES[rng.choice(kinds)](rng, rng.choice(messages), rng.choice(messages))
        refused += not read_all(data, state)
    assert COUNT // 20 < refused < COUNT


def test_damaged_messages_take_no_more_memory_than_they_may():
    state, messages = originals()
    kinds = tuple(DAMAGES)
    for number in range(400):
        rng = Random(number)
        data = bytearray(DAMAGES[rng.choice(kinds)](rng, rng.choice(messages), rng.choice(messages)))
        if len(data) > 14 and rng.random() < 0.5:  # as large as it can say
            data[4:14] = rng.choice((b"\xff" * 10, b"\x01\x00\xff\xff\x01\x00\xff\xff\x00\x00", bytes(10)))
        tracemalloc.start()
        try:
            read_all(bytes(data), state)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < (1 << 17) + 64 * MOST_VALUES + 8 * len(data), number


def test_damaged_messages_mean_the_same_to_every_implementation():
    state, messages = originals()
    kinds = tuple(DAMAGES)
    for number in range(300):
        rng = Random(number)
        data, found = DAMAGES[rng.choice(kinds)](rng, rng.choice(messages), rng.choice(messages)), set()
        for name in IMPLEMENTATIONS:
            with implementation(name):
                found.add(tuple(one.tobytes() for one in read_all(data, state)))
        assert len(found) == 1, number
