"""The downlink without memory: each download is the whole model, encoded afresh. Both ends in one file.

    device k starts round t from   ŵ_k = D(C(w_t)),   seed derived from (run, "down", t, k)

Every device gets its own rotation, so the errors of a cohort's anchors are independent and average out; the same
request repeated gives the same bytes. What a device did is reported relative to its own ŵ_k and never to w_t, so the
server's model stays exact whatever a download lost (Philippenko and Dieuleveut, Preserved central model for faster
bidirectional compression, NeurIPS 2021, https://arxiv.org/abs/2102.12528).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from fedge.errors import FrameError
from fedge.frames import read_frame
from fedge.layout import Kind, Layout, Vector
from fedge.update import Stream, by_segment, check_frame, decode_segments, encode_update
from fedge.weighting import error_of


def downlink(seed: int, round_number: int, device: str) -> Stream:
    """Return the stream of one device's download."""
    return Stream(seed, "down", round_number, device)


def encode_snapshot(layout: Layout, params: Vector, stream: Stream, name: str, bits: float) -> list[bytes]:
    """Return one frame for each segment of ``params`` float32 ``[d]``, by segment index."""
    return encode_update(layout, params, stream, name, bits)


def decode_snapshot(layout: Layout, frames: Iterable[bytes], stream: Stream, name: str, bits: float) -> Vector:
    """Return the anchor ŵ_k, float32 ``[d]``.

    Raises:
        FrameError: a frame is missing, twice there, or not of this layout and codec.
        CodecError: a payload cannot be decoded.
    """
    found = {}
    for data in frames:
        frame = read_frame(data)
        check_frame(layout, frame, name, bits)
        if frame.segment in found:
            raise FrameError(f"expected segment {frame.segment} once in a download, got it twice")
        found[frame.segment] = frame
    return decode_segments(layout, found, stream, range(len(layout.segments)))


def expected_loss(layout: Layout, vector: Vector, frames: Iterable[bytes]) -> tuple[float, float]:
    """Return E‖x̂ - x‖² = Σ A_s‖x_s‖² of ``vector`` x float32 ``[d]`` in ``frames``, and ‖x‖², both over the weights."""
    lost = total = 0.0
    for index, frame in by_segment(frames).items():
        segment = layout.segments[index]
        if segment.kind is Kind.WEIGHT:
            energy = float(np.square(vector[segment.slice], dtype=np.float64).sum())
            lost, total = lost + error_of(frame) * energy, total + energy
    return lost, total
