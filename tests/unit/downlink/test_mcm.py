from dataclasses import replace

import numpy as np
import pytest

from fedge.downlink.mcm import (
    PLAIN_ERROR,
    Channel,
    StaleMessage,
    advance,
    alpha_for,
    apply_message,
    apply_to,
    encode_message,
    perturbation,
)
from fedge.downlink.message import Kind, State, StateId, checksum, origin, public_base, read_message
from fedge.errors import CodecError, FrameError
from fedge.layout import Kind as TensorKind
from fedge.layout import Layout, TensorSpec

LAYOUT = Layout.of([TensorSpec("w", (50, 60), TensorKind.WEIGHT), TensorSpec("b", (50,), TensorKind.RAW)])
WEIGHTS = 3000
BASE = origin(LAYOUT)


def draw(seed=0, scale=1.0):
    return np.random.default_rng(seed).normal(size=LAYOUT.size, scale=scale).astype(np.float32)


def delta(channel, state, params, number=1, bits=2.0, alpha=None, kind=Kind.DELTA):
    return read_message(encode_message(channel, kind, state, state.id, params, number, bits, alpha))


def channel(**changes):
    return replace(Channel(LAYOUT, 3, "a"), **changes)


@pytest.mark.parametrize("codec", ["eden-entropy", "eden", "none"])
@pytest.mark.parametrize("alpha", [None, 0.75])
def test_both_ends_have_the_same_bits_after_every_message(codec, alpha):
    here = channel(codec=codec)
    device = server = BASE
    for number in range(1, 6):
        message = delta(here, server, draw(number), number, 32.0 if codec == "none" else 2.0, alpha)
        server = apply_to(here, server, message).state
        device = apply_message(here, device, message).state
        assert server.id == device.id == message.next
        assert server.vector.tobytes() == device.vector.tobytes()


def test_the_perturbation_follows_the_steps_of_the_params_and_not_their_size():
    """E‖ŵ - w‖² = ω‖w - H‖², and with α = 1 ‖w - H‖ falls by ω a message."""
    params, state, errors = draw(scale=10.0), BASE, []
    for number in range(1, 8):
        delivered = apply_message(channel(), state, delta(channel(), state, params, number))
        errors.append(float(np.square(delivered.anchor - params)[:WEIGHTS].mean()))
        state = delivered.state
    assert errors[-1] < 1e-5 * errors[0]
    ratios = np.array(errors[1:4]) / errors[:3]
    assert np.all((ratios > 0.05) & (ratios < 0.2))  # ω = 0.098 at 2 bits


def test_the_anchor_is_unbiased_given_the_memory():
    params, state, size = draw(1), State(StateId("aa" * 8), draw(2)), 150
    sums = np.zeros((2, LAYOUT.size))
    for number in range(size):
        anchor = apply_message(channel(), state, delta(channel(), state, params, number, bits=1.0)).anchor
        sums += anchor - params.astype(np.float64), np.square(anchor - params.astype(np.float64))
    mean, spread = sums[0] / size, np.sqrt(sums[1] / size)
    errors = (mean / np.maximum(spread / np.sqrt(size), 1e-12))[:WEIGHTS]
    assert abs(np.square(errors).mean() - 1) < 5 * np.sqrt(2 / WEIGHTS)


def test_the_perturbation_is_what_the_device_has_beside_the_params():
    params, state = draw(1), State(StateId("aa" * 8), draw(2))
    message = delta(channel(), state, params)
    off = apply_message(channel(), state, message).anchor.astype(np.float64) - params
    told = perturbation(channel(), state, message, params)
    assert told == pytest.approx(float(off @ off))
    assert told == pytest.approx(0.0976 * float(np.square(params - state.vector)[:WEIGHTS].sum()), rel=0.15)


def test_raw_tensors_travel_as_they_are_and_have_no_memory():
    params, state = draw(1), State(StateId("aa" * 8), draw(2))
    delivered = apply_message(channel(), state, delta(channel(), state, params, alpha=0.5))
    assert np.array_equal(delivered.anchor[WEIGHTS:], params[WEIGHTS:])
    assert np.array_equal(delivered.state.vector[WEIGHTS:], params[WEIGHTS:])


def test_with_alpha_1_the_device_keeps_one_vector():
    delivered = apply_message(channel(), BASE, delta(channel(), BASE, draw(), alpha=1.0))
    assert delivered.state.vector is delivered.anchor


def test_the_memory_goes_alpha_of_the_way():
    anchor, memory = advance(np.float32([1, 2]), np.float32([4, -8]), 0.25)
    assert anchor.tolist() == [5, -6] and memory.tolist() == [2, 0]
    assert memory.dtype == np.float32


def test_float64_vectors_stay_float64():
    """What a test of the algebra needs: codes of the difference are float32, sums are not."""
    base = public_base(LAYOUT, np.zeros(LAYOUT.size))
    here = channel(bases=(base,))
    params = draw().astype(np.float64) + 1e-12
    state = apply_message(here, base, delta(here, base, params)).state
    for number in range(2, 60):
        state = apply_message(here, state, delta(here, state, params, number)).state
    assert state.vector.dtype == np.float64
    assert np.abs(state.vector - params)[:WEIGHTS].max() < 1e-15


def test_alpha_is_1_where_the_codec_contracts_by_itself():
    assert alpha_for(0.0) == alpha_for(PLAIN_ERROR) == 1.0
    for error in (0.7, 1.6, 9.93, 1e3):
        alpha = alpha_for(error)
        assert alpha == np.float32(alpha)
        assert 1 - 2 * alpha + alpha**2 * (1 + error) < 1
    for bits, is_one in ((0.1, False), (0.5, False), (1.0, False), (2.0, True), (4.0, True)):
        assert (delta(channel(), BASE, draw(), bits=bits).alpha == 1.0) is is_one


@pytest.mark.parametrize("bits", [0.1, 0.5, 1.0])
def test_the_memory_settles_at_every_rate(bits):
    params, state = draw(), BASE
    for number in range(1, 60):
        state = apply_message(channel(), state, delta(channel(), state, params, number, bits)).state
    assert np.square(state.vector - params)[:WEIGHTS].sum() < 0.05 * np.square(params[:WEIGHTS]).sum()


def test_below_a_bit_alpha_1_diverges():
    params, state = draw(), BASE
    for number in range(1, 30):
        state = apply_message(channel(), state, delta(channel(), state, params, number, 0.3, alpha=1.0)).state
    assert np.square(state.vector - params)[:WEIGHTS].sum() > 100 * np.square(params[:WEIGHTS]).sum()


def test_a_message_for_another_state_is_stale():
    message = delta(channel(), BASE, draw())
    state = apply_message(channel(), BASE, message).state
    with pytest.raises(StaleMessage, match=f"expected a message for state {state.id}"):
        apply_message(channel(), state, message)


def test_a_full_needs_nothing_of_what_the_device_had():
    lost, params = State(StateId("cc" * 8), draw(5)), draw()
    data = encode_message(channel(), Kind.FULL, BASE, lost.id, params, 1, 8.0)
    delivered = apply_message(channel(), lost, read_message(data))
    assert np.square(delivered.anchor - params).sum() < 5e-5 * np.square(params).sum()
    assert len(data) < 0.28 * 4 * LAYOUT.size


def test_a_full_from_a_base_that_the_device_has_not_is_refused():
    base = public_base(LAYOUT, draw(9))
    message = delta(channel(), base, draw(), kind=Kind.FULL, bits=8.0)
    assert apply_message(channel(bases=(base,)), base, message).state.id == message.next
    with pytest.raises(FrameError, match="public base"):
        apply_message(channel(), base, message)


def test_params_that_float32_has_no_difference_to_are_refused():
    huge = State(StateId("dd" * 8), np.full(LAYOUT.size, -3e38, np.float32))
    with pytest.raises(CodecError, match="finite"):
        delta(channel(), huge, np.full(LAYOUT.size, 3e38, np.float32))


def test_devices_and_states_have_seeds_of_their_own():
    params = draw()
    messages = [delta(channel(device=name), BASE, params) for name in ("a", "b")]
    anchors = [apply_message(channel(device=name), BASE, m).anchor for name, m in zip("ab", messages, strict=True)]
    errors = [(anchor - params)[:WEIGHTS] for anchor in anchors]
    assert abs(np.corrcoef(*errors)[0, 1]) < 5 / np.sqrt(WEIGHTS)


def test_states_have_the_numbers_that_they_have_on_every_machine():
    """Golden: decoding and stepping are exact, so these may only change with the bytes of the codec."""
    words = np.arange(LAYOUT.size, dtype=np.int64)
    state = BASE
    for number in range(1, 4):
        params = ((words * words * number % 1009 - 504) / 512).astype(np.float32)
        state = apply_message(channel(codec="eden"), state, delta(channel(codec="eden"), state, params, number)).state
    assert (state.id, checksum(state.vector)) == ("157cab1922225cd1", "bb7fbe9e55c80fdc")
