"""Error feedback: what a codec loses is remembered on the device and sent with what follows.

    v_k = D_k + e_k           what is encoded; D_k the delta, e_k the device's memory, zeros at first
    e_k ← v_k - D̂_k           on the segments that a receipt names as applied, and only there

D̂_k is what the frames count for on both ends (``fedge.update.decode_delta``). So, whatever the weather,

    Σ D_k over the applied segments of all rounds = Σ D̂_k + e_k

and nothing is counted twice: a segment that was never applied leaves e_k as it was, and its delta is trained anew from
the next anchor. The memory stays bounded where the codec is a contraction, ‖v - D̂‖² <= (1 - δ)‖v‖² with δ > 0; that is
M22 with ``amplitude="guarded"`` or "lengthened". F. Seide et al., 1-Bit Stochastic Gradient Descent, Interspeech 2014;
S. P. Karimireddy et al., Error Feedback Fixes SignSGD, ICML 2019 (https://arxiv.org/abs/1901.09847), Algorithm 1.

The memory only lowers the error of a mean; nothing else rests on it. A device that lost its memory begins with zeros.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from fedge.frames import Frame
from fedge.layout import Layout, Segment
from fedge.update import Options, Stream, Trust, by_segment, decode_applied, encode_update

Memory = npt.NDArray[np.float32]
"""A device's e_k, float32 [d]."""


def corrected(delta: npt.NDArray[np.float32], memory: Memory | None) -> npt.NDArray[np.float32]:
    """Return v = D + e, float32 ``[d]``; no memory is one of zeros."""
    return delta if memory is None else delta + memory


def lost(
    layout: Layout, target: npt.NDArray[np.float32], frames: Mapping[int, Frame], stream: Stream, trust: Trust
) -> Memory:
    """Return v - D̂ of an update of ``target`` v, float32 ``[d]``, all of whose ``frames`` are at hand.

    Raises:
        FrameError: a segment has no frame.
        CodecError: a frame that cannot be decoded.
    """
    every = [segment.index for segment in layout.segments]
    return target - decode_applied(layout, frames, stream, every, trust)


def encode(
    layout: Layout,
    delta: npt.NDArray[np.float32],
    memory: Memory | None,
    stream: Stream,
    name: str,
    bits: float,
    options: Options,
    trust: Trust,
) -> tuple[list[bytes], Memory]:
    """Return the frames of v = D + e by segment, and what they lose of it, float32 ``[d]``.

    Raises:
        CodecError: v holds what no update may carry.
    """
    target = corrected(delta, memory)
    frames = encode_update(layout, target, stream, name, bits, options)
    return frames, lost(layout, target, by_segment(frames), stream, trust)


def commit(memory: Memory | None, segments: Iterable[Segment], loss: Memory) -> Memory:
    """Return the memory once ``segments`` were applied: ``loss`` there, as it was elsewhere; a new float32 ``[d]``."""
    after = np.zeros_like(loss) if memory is None else memory.copy()
    for segment in segments:
        after[segment.slice] = loss[segment.slice]
    return after
