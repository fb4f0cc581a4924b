"""The tables on the terminal: error over bits, and the gain over whole-vector EDEN, bare and padded, at the same number
of bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from benchmarks.codec_bench.error import Point
from benchmarks.codec_bench.inputs import DRAWN, Input

GAIN_BITS = [0.25, 0.5, 1.0, 2.0]


def lines(points: Iterable[Point]) -> Iterator[tuple[str, str, str, list[Point]]]:
    """Yield group, label and codec with their points by rising rate, in the order of measuring."""
    for (group, label, codec), found in groupby(points, lambda point: (point.group, point.label, point.codec)):
        yield group, label, codec, list(found)


def error_table(points: Sequence[Point]) -> str:
    """Return vNMSE, one line an input and codec, one column a rate asked for."""
    rates = sorted({point.bits for point in points})
    text = [f"{'vNMSE at bits':28} {'codec':13}" + "".join(f"{rate:>9g}" for rate in rates)]
    for group, label, codec, row in lines(points):
        found = {point.bits: point for point in row}
        cells = "".join(f"{found[rate].vnmse:>9.3g}" if rate in found else f"{'':9}" for rate in rates)
        text.append(f"{_name(group, label):28} {codec:13}{cells}")
    return "\n".join(text)


def gain_table(points: Sequence[Point]) -> str:
    """Return the gain at the rates that matter on slow links, over padded EDEN after the slash, and the bits that
    travelled.

    Real updates only, or the drawn vectors if there are none.
    """
    real = [point for point in points if point.group != DRAWN] or list(points)
    rates = [rate for rate in GAIN_BITS if any(point.bits == rate for point in real)]
    text = [f"{'gain/padded (wire bits) at':28} {'codec':13}" + "".join(f"{rate:>23g}" for rate in rates)]
    for group, label, codec, row in lines(real):
        found = {point.bits: f"{point.gain:.2f}/{point.gain_over_padded:.2f}x ({point.wire_bits:.4f})" for point in row}
        text.append(f"{_name(group, label):28} {codec:13}" + "".join(f"{found.get(rate, ''):>23}" for rate in rates))
    return "\n".join(text)


def raw_table(inputs: Iterable[Input]) -> str:
    """Return what the errors of real updates leave out: tensors that travel as float32, without error."""
    text = [f"{'left out: what travels as float32':36} {'updates':>9}{'weights':>10}{'raw':>8}{'of squared norm':>17}"]
    for given in inputs:
        raw = given.layout.size - given.weights
        text.append(f"{given.title:36} {len(given.vectors):9}{given.weights:>10,}{raw:>8,}{given.raw_energy:>16.1%}")
    return "\n".join(text)


def _name(group: str, label: str) -> str:
    return label if group == DRAWN else f"{group}, {label}"
