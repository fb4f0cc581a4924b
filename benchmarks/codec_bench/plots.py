"""The three plots, as PNG files. No display, no global state of matplotlib. Colours after Okabe and Ito, with markers
and line styles besides, so that nothing rests on colour alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from benchmarks.codec_bench import theory
from benchmarks.codec_bench.error import Point
from benchmarks.codec_bench.inputs import DRAWN
from benchmarks.codec_bench.speed import Row
from benchmarks.codec_bench.tables import lines

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9"
CODEC_STYLES = [(BLUE, "o"), (VERMILION, "s"), (GREEN, "^"), (PURPLE, "D"), (ORANGE, "v")]
ROUND_STYLES = ["-", "--", ":", "-."]
MAKERS = {"avx512": (BLUE, "o"), "avx2": (SKY, "s"), "baseline": (GREEN, "^"), "numpy": (ORANGE, "D")}
TORCH = ("EDEN in plain torch", VERMILION, "X")
WHOLE_VECTOR = "whole-vector EDEN, theory"
BIT_TICKS = [0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8]


def error_over_bits(points: Sequence[Point], path: Path) -> None:
    """One panel an input, one row of panels a group: vNMSE over the bits that travel, floor and whole-vector EDEN."""
    rows = [(group, list(found)) for group, found in groupby(lines(points), lambda line: line[0])]
    panels = [[(label, list(found)) for label, found in groupby(row, lambda line: line[1])] for _, row in rows]
    columns = max(map(len, panels))
    figure = Figure(figsize=(3.6 * columns + 0.4, 2.9 * len(rows) + 0.9), layout="constrained")
    axes = figure.subplots(len(rows), columns, sharex=True, sharey=True, squeeze=False)
    styles = _codec_styles(points)
    seen: dict[str, Artist] = {}
    bits = _grid(points)
    for row_axes, (group, _), row in zip(axes, rows, panels, strict=True):
        for axis, (label, codecs) in zip(row_axes, row, strict=False):
            (seen["rate-distortion floor 1/(4^b - 1)"],) = axis.plot(
                bits, [theory.floor(b) for b in bits], color="black", linewidth=1.4
            )
            (seen[WHOLE_VECTOR],) = axis.plot(
                bits, [theory.whole_vector_eden(b) for b in bits], color="0.55", linewidth=1.4, linestyle="--"
            )
            for _, _, codec, found in codecs:
                colour, marker = styles[codec]
                x, y = [p.wire_bits for p in found], [p.vnmse for p in found]
                (seen[f"{codec}, measured"],) = axis.plot(
                    x, y, color=colour, marker=marker, markersize=5, linewidth=0.8, alpha=0.9
                )
            axis.set_title(label if group == DRAWN else f"{group}, {label}", fontsize=10)
            axis.set(xscale="log", yscale="log")
            _bit_axis(axis)
            axis.tick_params(labelbottom=True)
        for axis in row_axes[len(row) :]:
            axis.set_visible(False)
    figure.supxlabel("bits per weight on the wire, headers counted")
    figure.supylabel("vNMSE = ||x̂ - x||² / ||x||²")
    figure.legend(seen.values(), seen, loc="outside upper center", ncols=min(columns, len(seen)), frameon=False)
    _save(figure, path)


def time_over_size(rows: Sequence[Row], path: Path) -> None:
    """Encoding and decoding, nanoseconds per coordinate and times a memcpy, at the middle one of the rates."""
    rates = sorted({row.bits for row in rows if row.codec != "identity"})
    # The yardstick has whole bits only, so a middle among those serves all lines.
    whole = [rate for rate in rates if rate in range(1, 9)] or rates
    middle = whole[(len(whole) - 1) // 2]
    coded = [row for row in rows if row.codec != "identity" and row.bits == middle]
    figure = Figure(figsize=(11, 8), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True)
    seen: dict[str, Artist] = {}
    for row_axes, name in zip(axes, ("encode", "decode"), strict=True):
        for axis, per_copy in zip(row_axes, (False, True), strict=True):
            _times(axis, coded, name, per_copy, seen)
            what = "time over that of a memcpy" if per_copy else "ns per coordinate, one thread"
            axis.set(xscale="log", yscale="log", ylabel=f"{name}: {what}")
            axis.xaxis.set_major_locator(FixedLocator(sorted({row.size for row in coded})))
            axis.xaxis.set_major_formatter(FuncFormatter(lambda size, _: _power(size)))
            axis.xaxis.set_minor_locator(NullLocator())
            axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.grid(which="major", color="0.88")
            axis.grid(which="minor", axis="y", color="0.94")
            axis.set_axisbelow(True)
    for axis in axes[1]:
        axis.set_xlabel("coordinates")
    figure.suptitle(f"One vector at {middle:g} bits per coordinate, least of the repetitions", fontsize=12)
    figure.legend(seen.values(), seen, loc="outside lower center", ncols=min(4, len(seen)), frameon=False)
    _save(figure, path)


def _times(axis: Axes, rows: Sequence[Row], name: str, per_copy: bool, seen: dict[str, Artist]) -> None:
    """Draw a line for each implementation and codec, the yardstick's, and the memcpy."""
    codecs = list(dict.fromkeys(row.codec for row in rows))
    for maker in dict.fromkeys(row.implementation for row in rows):
        colour, marker = MAKERS.get(maker, (PURPLE, "v"))
        for codec, style in zip(codecs, ROUND_STYLES, strict=False):
            mine = [row for row in rows if (row.implementation, row.codec) == (maker, codec)]
            times = [row.least.over_copy(name) if per_copy else getattr(row.least, name) for row in mine]
            (seen[f"{codec}, {maker}"],) = axis.plot(
                [row.size for row in mine], times, style, color=colour, marker=marker, markersize=6
            )
    beside: dict[int, list[Row]] = {}
    for row in rows:
        if row.least.torch_encode is not None:
            beside.setdefault(row.size, []).append(row)
    if beside:
        label, colour, marker = TORCH
        best = [min(_torch(row, name, per_copy) for row in found) for found in beside.values()]
        (seen[label],) = axis.plot(list(beside), best, color=colour, marker=marker, markersize=8)
    copies: dict[int, float] = {}
    for row in rows:
        copies[row.size] = min(row.least.copy, copies.get(row.size, np.inf))
    flat = [1.0 if per_copy else value for value in copies.values()]
    (seen["memcpy"],) = axis.plot(list(copies), flat, color="black", linewidth=1.4, linestyle=(0, (1, 1)))


def _torch(row: Row, name: str, per_copy: bool) -> float:
    time = float(getattr(row.least, f"torch_{name}"))
    return time / row.least.copy if per_copy else time


def gain_on_real_updates(points: Sequence[Point], path: Path) -> None:
    """One panel a task: how many times smaller the error is than whole-vector EDEN's at the same number of bytes."""
    real = [point for point in points if point.group != DRAWN]
    tasks = list(dict.fromkeys(point.group for point in real))
    labels = list(dict.fromkeys(point.label for point in real))
    styles = _codec_styles(points)
    figure = Figure(figsize=(4.4 * len(tasks) + 0.8, 5.0), layout="constrained")
    axes = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    seen: dict[str, Artist] = {}
    bits = _grid(real)
    for axis, task in zip(axes, tasks, strict=True):
        (seen[WHOLE_VECTOR],) = axis.plot(bits, np.ones_like(bits), color="0.55", linewidth=1.4, linestyle="--")
        floor = [theory.whole_vector_eden(b) / theory.floor(b) for b in bits]
        (seen["floor of i.i.d. coordinates"],) = axis.plot(bits, floor, color="black", linewidth=1.4)
        for group, label, codec, found in lines(real):
            if group == task:
                colour, marker = styles[codec]
                style = ROUND_STYLES[labels.index(label) % len(ROUND_STYLES)]
                x, y = [p.wire_bits for p in found], [p.gain for p in found]
                (seen[f"{codec}, {label}"],) = axis.plot(x, y, style, color=colour, marker=marker, markersize=4.5)
        axis.set_title(task)
        axis.set(xscale="log", yscale="log", xlabel="bits per weight on the wire")
        _bit_axis(axis)
        low, high = axis.get_ylim()
        ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 3, 5, 10, 20, 30, 50, 100) if low / 1.3 <= t <= high * 1.3]
        axis.yaxis.set_major_locator(FixedLocator(ticks))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
        axis.yaxis.set_minor_locator(NullLocator())
    axes[0].set_ylabel("whole-vector EDEN's error over ours, same bytes")
    figure.legend(
        seen.values(), seen, loc="outside lower center", ncols=min(1 + len(labels), 2 * len(tasks)), frameon=False
    )
    _save(figure, path)


def _grid(points: Sequence[Point]) -> npt.NDArray[np.float64]:
    """Rates to draw theory at: what was measured and a little more, to the 8 bits at which EDEN ends."""
    wire = [point.wire_bits for point in points]
    return np.geomspace(min(wire) / 1.1, min(max(wire) * 1.1, 8.0), 400)


def _codec_styles(points: Sequence[Point]) -> dict[str, tuple[str, str]]:
    codecs = list(dict.fromkeys(point.codec for point in points))
    return {codec: CODEC_STYLES[index % len(CODEC_STYLES)] for index, codec in enumerate(codecs)}


def _bit_axis(axis: Axes) -> None:
    axis.xaxis.set_major_locator(FixedLocator(BIT_TICKS))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.grid(color="0.88")
    axis.set_axisbelow(True)


def _power(size: float) -> str:
    exponent = int(size).bit_length() - 1
    return f"$2^{{{exponent}}}$" if size == 1 << exponent else f"{int(size):,}"


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure).print_png(str(path), metadata={"Software": None})  # type: ignore[no-untyped-call]
