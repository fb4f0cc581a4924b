"""MCM: what a download loses never reaches the server's model. Both ends in one file.

    server:  Ω_k = w_k - H,   Ω̂_k = C(Ω_k)                     sent; w_k itself is never rounded to what devices have
    both:    ŵ_k = H + Ω̂_k                                     what the device trains from
             H   ← H + α·Ω̂_k                                   the memory, on both ends from the same bytes

A device reports differences from its own ŵ_k, so E ŵ_k = w_k is all that a download owes the mean, and as H follows w
the error ω‖w_k - H‖² shrinks with the steps of w: it costs a second-order term and no noise floor. In rand-mcm every
device has its own H and its own randomness, and a device that skips rounds misses nothing: the next Ω is taken against
what it has. In mcm all share one H and one message (``common.py``).

For C with E‖C(x) - x‖² = ω‖x‖², E‖Ω - αC(Ω)‖² = (1 - 2α + α²(1 + ω))·‖Ω‖²: α = 1 contracts by ω where ω < 1, and
then H is ŵ and the device keeps one vector. EDEN has ω < 1 from about 0.8 bits on. α = 1/(1 + ω) contracts always, by
ω/(1 + ω). ``alpha_for`` takes 1 where that is as good. α is chosen by the server and travels, so that only one end has
to compute it.

Weights alone have a memory. Raw tensors and buffers travel as they are, in float32, and H has their last values.

Exactness: the server steps its copy by decoding the bytes it wrote, and what follows decoding is one multiplication and
one addition per coordinate, in the dtype of H. So both ends have the same bits on any machine on which the codec has.

Philippenko and Dieuleveut, Preserved central model for faster bidirectional compression in distributed settings,
NeurIPS 2021 (https://arxiv.org/abs/2102.12528); α = 1 as in Amiri et al., Federated Learning with Quantized Global
Model Updates, 2020 (https://arxiv.org/abs/2006.10672).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedge.downlink import Mode
from fedge.downlink.message import Floats, Kind, Message, State, StateId, origin, write_message
from fedge.downlink.snapshot import decode_snapshot, expected_loss
from fedge.errors import CodecError, FrameError, ProtocolError
from fedge.layout import Kind as TensorKind
from fedge.layout import Layout, Vector
from fedge.update import FLOAT32_BITS, Stream, encode_update

FULL_BITS = 8.0
"""Bits per coordinate of a full, ω = 2e-5, and the most of a delta."""
PLAIN_ERROR = 0.25
"""Up to this ω, from about 1.6 bits on, α is 1: a message leaves ω of ‖Ω‖², where 1/(1 + ω) would leave ω/(1 + ω)."""
ALPHA_STEPS = 4096


EVERYONE = ""
"""The device in the ``Channel`` of a common memory."""


class StaleMessage(ProtocolError):
    """A message for another state than the device has: late, repeated or out of order. Nothing is wrong."""


@dataclass(frozen=True, slots=True, eq=False)
class Channel:
    """What both ends know of a memory before a byte moves. ``bases`` are the public ones beside ``origin``."""

    layout: Layout
    seed: int
    device: str
    codec: str = "eden-entropy"
    bases: tuple[State, ...] = ()

    def stream(self, round_number: int, base: StateId) -> Stream:
        """Return the stream of one message. A new base is a new seed: no two messages of a device share a rotation."""
        return Stream(self.seed, f"down {base}", round_number, self.device)

    def base(self, name: StateId) -> State | None:
        """Return the public base of this name."""
        for base in self.bases:
            if base.id == name:
                return base
        zeros = origin(self.layout)
        return zeros if zeros.id == name else None

    @property
    def most_bits(self) -> float:
        """The most bits per coordinate of a message; those of a full."""
        return FLOAT32_BITS if self.codec == "none" else FULL_BITS


def channel_of(layout: Layout, seed: int, device: str, mode: Mode, codec: str) -> Channel:
    """Return the channel to ``device``, which in mode mcm is the one to everybody."""
    return Channel(layout, seed, EVERYONE if mode is Mode.MCM else device, codec)


@dataclass(frozen=True, slots=True, eq=False)
class Delivered:
    """What a message makes of a state: ``anchor`` ŵ ``[d]`` to train from, ``state`` to keep. α = 1: one vector."""

    anchor: Floats
    state: State


def advance(memory: Floats, change: Floats, alpha: float) -> tuple[Floats, Floats]:
    """Return ŵ = H + Ω̂ and H + α·Ω̂, in the dtype and shape of ``memory``."""
    change = change.astype(memory.dtype, copy=False)
    anchor = memory + change
    # One product, then one sum: fused into one rounding they would be other bits.
    return anchor, anchor if alpha == 1.0 else memory + memory.dtype.type(alpha) * change


def alpha_for(error: float) -> float:
    """Return α for a codec's ω: 1 where ω is small enough, else 1/(1 + ω) in whole steps of 1/4096."""
    if error <= PLAIN_ERROR:
        return 1.0
    return max(1, math.floor(ALPHA_STEPS / (1.0 + error))) / ALPHA_STEPS


def num_weights(layout: Layout) -> int:
    """Return how many coordinates have a memory: the vector's first."""
    return sum(segment.size for segment in layout.segments if segment.kind is TensorKind.WEIGHT)


def encode_message(
    channel: Channel,
    kind: Kind,
    base: State,
    said: StateId,
    params: Floats,
    round_number: int,
    bits: float,
    alpha: float | None = None,
) -> bytes:
    """Return the message that takes ``base`` to ``params`` float ``[d]``, or as near as ``bits`` allow.

    ``alpha`` None: the one that fits the error.

    Raises:
        CodecError: a difference that is not finite in float32.
    """
    target = _difference(channel, base, params)
    bits = channel.most_bits if channel.codec == "none" else bits
    frames = encode_update(channel.layout, target, channel.stream(round_number, base.id), channel.codec, bits)
    if alpha is None:
        lost, total = expected_loss(channel.layout, target, frames)
        alpha = alpha_for(lost / total if total > 0 else 0.0)
    return write_message(kind, round_number, alpha, said, base.id, frames)


def _difference(channel: Channel, base: State, params: Floats) -> Vector:
    """Return what a message carries: Ω of the weights, and the rest as it is."""
    weights = num_weights(channel.layout)
    with np.errstate(over="ignore"):
        target = params.astype(np.float32)
        target[:weights] = params[:weights] - base.vector[:weights]
    return target


def encode_copy(channel: Channel, state: State, said: StateId, round_number: int) -> bytes:
    """Return the message that has ``state`` itself, as float32."""
    stream = channel.stream(round_number, state.id)
    frames = encode_update(channel.layout, state.vector.astype(np.float32), stream, "none", FLOAT32_BITS)
    return write_message(Kind.COPY, round_number, 1.0, said, state.id, frames)


def apply_message(channel: Channel, own: State, message: Message) -> Delivered:
    """Return what a device with state ``own`` makes of ``message``.

    Raises:
        StaleMessage: the message is for another state.
        FrameError: there is no such public base, or frames are of another layout or codec.
        CodecError: a payload that cannot be decoded, or a sum that leaves the range of its dtype.
    """
    if message.said != own.id:
        raise StaleMessage(f"expected a message for state {own.id}, got one for {message.said}")
    return _apply_copy(channel, message) if message.kind is Kind.COPY else apply_to(channel, own, message)


def apply_to(channel: Channel, own: State | None, message: Message) -> Delivered:
    """Return what a delta makes of ``own``, or a full of its public base: the server's way of doing the same.

    Raises:
        FrameError, CodecError: as ``apply_message``.
    """
    base = own if message.kind is Kind.DELTA else channel.base(message.base)
    if base is None or base.id != message.base:
        raise FrameError(
            f"expected a delta from state {own and own.id} or a full from a public base, got base {message.base}"
        )
    stream, weights = channel.stream(message.round, base.id), num_weights(channel.layout)
    change = decode_snapshot(channel.layout, message.frames, stream, channel.codec, channel.most_bits)
    anchor = change.astype(base.vector.dtype)
    memory = anchor if message.alpha == 1.0 else anchor.copy()
    with np.errstate(over="ignore", invalid="ignore"):
        anchor[:weights], memory[:weights] = advance(base.vector[:weights], change[:weights], message.alpha)
    if not (np.isfinite(anchor).all() and np.isfinite(memory).all()):
        raise CodecError("expected params in the range of their dtype after a download, got an infinite one")
    return Delivered(anchor, State(message.next, memory))


def expected_perturbation(channel: Channel, own: State | None, message: Message, params: Floats) -> float:
    """Return E‖ŵ - w‖² of a download of ``params``, from the errors that its frames state; decodes nothing."""
    base = own if message.kind is Kind.DELTA else channel.base(message.base)
    if base is None:
        return 0.0  # a copy: what was lost is in the messages before it
    return expected_loss(channel.layout, _difference(channel, base, params), message.frames)[0]


def perturbation(channel: Channel, own: State | None, message: Message, params: Floats) -> float:
    """Return ‖ŵ - w‖² of a download of ``params``: what a device trains from beside what the server has.

    Raises:
        FrameError, CodecError: as ``apply_to``.
    """
    off = apply_to(channel, own, message).anchor.astype(np.float64) - params
    return float(np.square(off).sum())


def _apply_copy(channel: Channel, message: Message) -> Delivered:
    stream = channel.stream(message.round, message.base)
    vector = decode_snapshot(channel.layout, message.frames, stream, "none", FLOAT32_BITS)
    return Delivered(vector, State(message.next, vector))
