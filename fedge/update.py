"""An update as frames: both ends in one file.

    delta [d] -> one frame a segment -> any subset, in any order -> decoded segments

Weights go through the plan's codec; raw tensors and buffers travel as float32. The seed of a frame is derived from
(run seed, direction, round, device, segment), so it need not travel and no two frames share one: rotations that
coincide would correlate the errors of different devices (specs of EDEN, unbiasedness of the mean).

What a frame counts for is γ·x̂: x̂ as decoded, γ the algorithm's trust in a frame of its error (``Algorithm.trust``,
1 but for FedDyn). γ follows from the frame's own bytes, so it does not travel either. ``decode_delta`` is the one place
that applies it: aggregator, replay of the journal and device all go through it, so what enters the sum is what moves
the dual, to the bit.

Frames leave in an order drawn for (round, device). A link that dies half-way has then delivered a uniformly random
subset of the segments, and what arrived is an unbiased sample of the update.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedge import codecs
from fedge.errors import CodecError, FrameError
from fedge.frames import HEADER_BYTES, Frame, as_wire_bits, read_frame
from fedge.layout import Kind, Layout, Segment, Vector
from fedge.seeds import derive, permutation
from fedge.weighting import error_of

Trust = Callable[[float], float]
"""γ of a frame whose expected error is A·‖x‖²: ``Algorithm.trust``."""

Options = Mapping[str, Any]
"""Settings of a codec beside its rate (``UplinkSpec.codec_options``)."""
NO_OPTIONS: Options = {}

FLOAT32_BITS = 32.0

ROWS_OF_ABOUT = 128
"""Rows of a matrix are told to the codec in runs of about so many coordinates: fewer cost more to describe."""

LARGEST_MAGNITUDE = 2.0**24
"""No coordinate of a delta may be larger: float32 counts no further one by one, so no counter in a buffer needs more.

It is what keeps sums from overflowing. R rounds move FedDyn's params by at most 2^24 (R + κ R²/2), which is under
float32's 3.4e38 for the longest plan (R = 10^6, κ = 16); the other algorithms' by 2^24 R.
"""


class MagnitudeError(CodecError):
    """A delta with a coordinate that no training makes."""


@dataclass(frozen=True, slots=True)
class Stream:
    """Whose frames these are: everything a frame's seed is derived from but its segment."""

    seed: int
    direction: str
    round: int
    device: str

    def frame_seed(self, segment: int) -> int:
        """Return the codec seed of one segment."""
        return derive(self.seed, self.direction, self.round, self.device, segment)

    def order(self, count: int) -> list[int]:
        """Return the order in which ``count`` frames travel."""
        key = derive(self.seed, self.direction, self.round, self.device, "order")
        return [int(index) for index in permutation(key, count)]


UPLINK = "up"


def uplink(seed: int, round_number: int, device: str) -> Stream:
    """Return the stream of one device's update."""
    return Stream(seed, UPLINK, round_number, device)


def codec_for(segment: Segment, name: str, bits: float, options: Options = NO_OPTIONS) -> codecs.Codec:
    """Return the codec of ``segment`` where weights travel by codec ``name`` at ``bits`` per coordinate.

    ``options`` are what its encoder may be told beside; bytes say themselves how to read them.
    """
    if segment.kind is Kind.WEIGHT and name != "none":
        return codecs.build(name, as_wire_bits(bits), **options)
    return codecs.build("identity", FLOAT32_BITS)


def encode_update(
    layout: Layout, delta: Vector, stream: Stream, name: str, bits: float, options: Options = NO_OPTIONS
) -> list[bytes]:
    """Return one frame for each segment of ``delta`` float32 ``[d]``, by segment index.

    All together they take at most ``update_bytes(layout, name, bits)``; a codec may share that among the segments.

    Raises:
        MagnitudeError: this is a device's update, and it holds what the aggregator would not take.
        CodecError: a value that is not finite.
    """
    layout.check(delta)
    if stream.direction == UPLINK:
        for segment in layout.segments:
            _check_magnitude(delta[segment.slice], segment.index)
    frames: dict[int, bytes] = {}
    for weights in (True, False):
        segments = [s for s in layout.segments if (s.kind is Kind.WEIGHT) is weights]
        # A device encodes one update a round and has the time; an aggregator encodes a download for every device.
        thorough = stream.direction == UPLINK
        parts = [
            codecs.Part(delta[s.slice], stream.frame_seed(s.index), layout.rows(s, ROWS_OF_ABOUT), thorough)
            for s in segments
        ]
        if parts:
            codec = codec_for(segments[0], name, bits, options)
            for s, payload in zip(segments, codec.encode_all(parts), strict=True):
                frames[s.index] = Frame(codec.code, s.index, s.size, codec.bits, payload).to_bytes()
    return [frames[s.index] for s in layout.segments]


def check_frame(layout: Layout, frame: Frame, name: str, max_bits: float) -> Segment:
    """Return the segment of ``frame`` if it fits ``layout`` and the agreed codec; decodes nothing.

    Raises:
        FrameError: a segment out of range, a wrong count, codec or length, or more bits than agreed.
    """
    if not 0 <= frame.segment < len(layout.segments):
        raise FrameError(f"expected a segment of 0..{len(layout.segments) - 1}, got {frame.segment}")
    segment = layout.segments[frame.segment]
    if frame.count != segment.size:
        raise FrameError(f"segment {segment.index}: expected {segment.size} coordinates, got {frame.count}")
    agreed = codec_for(segment, name, max_bits)
    if frame.codec != agreed.code:
        raise FrameError(f"segment {segment.index}: expected codec {agreed.name}, got number {frame.codec}")
    if frame.bits > agreed.bits:
        raise FrameError(f"segment {segment.index}: expected at most {agreed.bits:g} bits, got {frame.bits:g}")
    try:
        codecs.by_code(frame.codec, frame.bits).check(frame.payload, frame.count)
    except CodecError as error:
        raise FrameError(f"segment {segment.index}: {error}") from error
    return segment


def decode_frame(frame: Frame, stream: Stream) -> Vector:
    """Return the segment that ``frame`` carries, float32 ``[frame.count]``.

    Raises:
        CodecError: a payload that is none of its codec's, or that holds NaN or infinity.
    """
    codec = codecs.by_code(frame.codec, frame.bits)
    x = codec.decode(frame.payload, frame.count, stream.frame_seed(frame.segment))
    if not np.isfinite(x).all():
        raise CodecError(f"segment {frame.segment}: expected finite values, got {x[~np.isfinite(x)][0]}")
    return x


def decode_delta(frame: Frame, stream: Stream, trust: Trust) -> Vector:
    """Return what ``frame`` counts for in sums and duals, γ·x̂, float32 ``[frame.count]``.

    Raises:
        MagnitudeError: a decoded coordinate beyond ``LARGEST_MAGNITUDE``.
        CodecError: as ``decode_frame``.
    """
    x = decode_frame(frame, stream)
    _check_magnitude(x, frame.segment)
    gamma = trust(error_of(frame))
    return x if gamma == 1.0 else x * np.float32(gamma)


def _check_magnitude(x: Vector, segment: int) -> None:
    largest = max(float(x.max(initial=0.0)), -float(x.min(initial=0.0)))
    if largest > LARGEST_MAGNITUDE:
        raise MagnitudeError(
            f"segment {segment}: expected changes of at most {LARGEST_MAGNITUDE:g} in a delta, got one of {largest:g}"
        )


def decode_segments(
    layout: Layout, frames: Mapping[int, Frame], stream: Stream, wanted: Collection[int]
) -> npt.NDArray[np.float32]:
    """Return float32 ``[d]`` with the ``wanted`` segments decoded and zeros elsewhere.

    Raises:
        FrameError: a wanted segment has no frame.
    """
    return _gather(layout, frames, wanted, lambda frame: decode_frame(frame, stream))


def decode_applied(
    layout: Layout, frames: Mapping[int, Frame], stream: Stream, applied: Collection[int], trust: Trust
) -> npt.NDArray[np.float32]:
    """Return what the ``applied`` segments of an update count for, float32 ``[d]``, zeros elsewhere.

    Raises:
        FrameError: an applied segment has no frame.
        CodecError: as ``decode_delta``.
    """
    return _gather(layout, frames, applied, lambda frame: decode_delta(frame, stream, trust))


def _gather(
    layout: Layout, frames: Mapping[int, Frame], wanted: Collection[int], decode: Callable[[Frame], Vector]
) -> npt.NDArray[np.float32]:
    x = np.zeros(layout.size, np.float32)
    for index in wanted:
        if index not in frames:
            raise FrameError(f"expected a frame of segment {index}, got none")
        x[layout.segments[index].slice] = decode(frames[index])
    return x


def by_segment(frames: Iterable[bytes]) -> dict[int, Frame]:
    """Return the frames of an update by the segments that they carry.

    Raises:
        FrameError: bytes that are no frame.
    """
    return {frame.segment: frame for frame in map(read_frame, frames)}


def update_bytes(layout: Layout, name: str, bits: float) -> int:
    """Return the most that all frames of an update take, headers and all; exactly that where the rate is fixed."""
    return sum(frame_bytes(segment, name, bits) for segment in layout.segments)


def frame_bytes(segment: Segment, name: str, bits: float) -> int:
    """Return the most that one segment's frame takes of its update's bytes."""
    return HEADER_BYTES + codec_for(segment, name, bits).size_bytes(segment.size)


def float32_bytes(layout: Layout) -> int:
    """Return the size of the vector as bare float32, the yardstick of every ratio we print."""
    return 4 * layout.size
