"""Error over the bits that travel: every input through every configuration at every rate.

A vector is encoded as an update is (``fedge.update``), so bytes are those of the frames of its weights, 20-byte headers
and all, and segments that share something with one another do so here. What was asked for is not what is plotted: an
entropy coder may send less.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks.codec_bench import theory
from benchmarks.codec_bench.configurations import Configuration
from benchmarks.codec_bench.inputs import Input
from fedge.frames import read_frame
from fedge.layout import Kind
from fedge.update import decode_segments, uplink

BITS = [0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0]


@dataclass(frozen=True)
class Point:
    """One input at one rate: means over ``encodes`` encodings.

    ``whole_vector_eden``, ``padded_eden`` and ``floor`` are theory at the very bytes that each encoding took,
    ``standard_error`` is of ``vnmse`` over encodings.
    """

    group: str
    label: str
    codec: str
    bits: float
    wire_bits: float
    vnmse: float
    standard_error: float
    whole_vector_eden: float
    padded_eden: float
    floor: float
    encodes: int

    @property
    def gain(self) -> float:
        """How many times smaller the error is than that of whole-vector EDEN at the same number of bytes."""
        return self.whole_vector_eden / self.vnmse

    @property
    def gain_over_padded(self) -> float:
        """The same over whole-vector EDEN that is padded to a power of two."""
        return self.padded_eden / self.vnmse

    @property
    def over_floor(self) -> float:
        """How many times the rate-distortion floor of i.i.d. Gaussian coordinates the error is."""
        return self.vnmse / self.floor


def measure(configuration: Configuration, given: Input, bits: float) -> Point:
    """Encode and decode every vector of ``given``."""
    rows = list(_encodings(configuration, given, bits))
    wire, vnmse, whole, padded, floor = np.array(rows).T
    return Point(
        given.group,
        given.label,
        configuration.label,
        bits,
        wire_bits=float(wire.mean()),
        vnmse=float(vnmse.mean()),
        standard_error=float(vnmse.std(ddof=1) / len(rows) ** 0.5) if len(rows) > 1 else 0.0,
        whole_vector_eden=float(whole.mean()),
        padded_eden=float(padded.mean()),
        floor=float(floor.mean()),
        encodes=len(rows),
    )


def _encodings(configuration: Configuration, given: Input, bits: float) -> Iterator[tuple[float, ...]]:
    """Yield bits per weight, vNMSE of the weights, and theory's three vNMSEs at these bits."""
    layout, weights = given.layout, given.weights
    wanted = [segment.index for segment in layout.segments if segment.kind is Kind.WEIGHT]
    for seed in range(given.repeats):
        for index, x in enumerate(given.vectors):
            stream = uplink(seed, given.round, str(index))
            sent = configuration.frames(layout, x, stream, bits)
            wire = 8 * sum(len(sent[segment]) for segment in wanted) / weights
            frames = {segment: read_frame(sent[segment]) for segment in wanted}
            exact = x[:weights].astype(np.float64)
            wrong = decode_segments(layout, frames, stream, wanted)[:weights] - exact
            vnmse = float(wrong @ wrong) / float(exact @ exact)
            yield wire, vnmse, theory.whole_vector_eden(wire), theory.padded_eden(wire, weights), theory.floor(wire)


def run(configurations: Iterable[Configuration], inputs: Iterable[Input], bits: Iterable[float]) -> list[Point]:
    """Measure every combination."""
    rates = list(bits)
    codecs = list(configurations)
    return [measure(codec, given, rate) for given in inputs for codec in codecs for rate in rates]
