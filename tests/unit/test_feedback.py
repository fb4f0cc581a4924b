"""Error feedback: everything that was trained was either applied or is remembered."""

import numpy as np
import pytest

from fedge import feedback
from fedge.algorithms import FedAvg
from fedge.layout import Kind, Layout, TensorSpec
from fedge.update import by_segment, decode_applied, encode_update, uplink

LAYOUT = Layout.of([TensorSpec("w", (60, 100), Kind.WEIGHT), TensorSpec("b", (60,), Kind.RAW)])
TRUST = FedAvg().trust


def round_of(memory, delta, number, applied, bits=0.3):
    """Return the memory after a round and what was applied in it."""
    stream, target = uplink(7, number, "pi"), feedback.corrected(delta, memory)
    frames = by_segment(encode_update(LAYOUT, target, stream, "m22", bits))
    loss = feedback.lost(LAYOUT, target, frames, stream, TRUST)
    counted = decode_applied(LAYOUT, frames, stream, applied, TRUST)
    return feedback.commit(memory, [LAYOUT.segments[index] for index in applied], loss), counted


def test_what_was_trained_is_applied_or_remembered_whichever_segments_arrive():
    rng = np.random.default_rng(0)
    memory, trained, applied = None, np.zeros(LAYOUT.size), np.zeros(LAYOUT.size)
    for number in range(1, 40):
        delta = rng.standard_normal(LAYOUT.size).astype(np.float32)
        here = [s.index for s in LAYOUT.segments if rng.random() < 0.6]
        memory, counted = round_of(memory, delta, number, here)
        for index in here:
            part = LAYOUT.segments[index].slice
            trained[part] += delta[part]
        applied += counted
    assert np.allclose(applied + memory, trained, atol=1e-3)


def test_the_memory_of_a_contraction_stays_bounded_and_what_was_lost_comes_later():
    rng = np.random.default_rng(1)
    delta = rng.laplace(size=LAYOUT.size).astype(np.float32)
    every = [s.index for s in LAYOUT.segments]
    memory, total, lengths = None, np.zeros(LAYOUT.size), []
    for number in range(1, 61):
        memory, counted = round_of(memory, delta, number, every)
        total += counted
        lengths.append(float(np.linalg.norm(memory)))
    assert max(lengths) < 12 * float(np.linalg.norm(delta)) and lengths[-1] < 1.2 * lengths[20]
    assert np.linalg.norm(total / 60 - delta) < 0.25 * np.linalg.norm(delta)


def test_raw_tensors_leave_nothing_behind_and_a_segment_that_was_not_applied_stays_as_it_was():
    delta = np.ones(LAYOUT.size, np.float32)
    before = np.full(LAYOUT.size, 0.5, np.float32)
    after, _ = round_of(before, delta, 1, [0, len(LAYOUT.segments) - 1])
    raw, second = LAYOUT.segments[-1], LAYOUT.segments[1]
    assert raw.kind is Kind.RAW and not after[raw.slice].any()
    assert np.array_equal(after[second.slice], before[second.slice])


@pytest.mark.parametrize("memory", [None, np.zeros(LAYOUT.size, np.float32)])
def test_no_memory_is_one_of_zeros(memory):
    delta = np.arange(LAYOUT.size, dtype=np.float32)
    assert np.array_equal(feedback.corrected(delta, memory), delta)
