"""The report's five plots, as PNG bytes. No display, no global state of matplotlib is touched."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from fedge.per_bit import per_bit_accuracy
from schemas.status import RoundStatus, Traffic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SENT, BARE, SOFT, INK, GRID = "#0b6e99", "#c2571a", "#8a9aa5", "#24292f", "#e3e8ec"
SIZE_INCHES = (7.2, 4.0)
DPI = 160


def draw(rounds: Sequence[RoundStatus], initial_accuracy: float | None = None) -> dict[str, bytes]:
    """Return file name -> PNG; a plot without a single point says so."""
    gained = partial(_per_bit_accuracy, initial_accuracy=initial_accuracy)
    return {
        "accuracy_over_rounds.png": _plot("Accuracy on the test data, by round", _accuracy_over_rounds, rounds),
        "accuracy_over_bytes.png": _plot("Accuracy on the test data, by bytes sent", _accuracy_over_bytes, rounds),
        "per_bit_accuracy.png": _plot("Accuracy gained per megabit up, by round", gained, rounds),
        "loss.png": _plot("Loss, by round", _loss, rounds),
        "perturbation.png": _plot("What downloads lose of the model, by round", _perturbation, rounds),
    }


def spent(rounds: Sequence[RoundStatus], *, as_float32: bool) -> list[int]:
    """Return the bytes sent, both ways together, up to the end of each round."""
    return list(accumulate(_sum(r.float32_bytes if as_float32 else _sent(r)) for r in rounds))


def _sent(round: RoundStatus) -> Traffic:
    """What crossed the sockets; in a simulation, which has none, the frames."""
    return round.traffic if _sum(round.traffic) else round.frame_bytes


def _sum(traffic: Traffic) -> int:
    return traffic.up + traffic.down


def _accuracy_over_rounds(axes: Axes, rounds: Sequence[RoundStatus]) -> None:
    points = [(r.round, 100 * r.metrics["accuracy"]) for r in rounds if "accuracy" in r.metrics]
    _line(axes, points, SENT, "published model")
    axes.set_xlabel("round")
    _percent_axis(axes, [y for _, y in points])


def _accuracy_over_bytes(axes: Axes, rounds: Sequence[RoundStatus]) -> None:
    tested = [(i, 100 * r.metrics["accuracy"]) for i, r in enumerate(rounds) if "accuracy" in r.metrics]
    sent, bare = spent(rounds, as_float32=False), spent(rounds, as_float32=True)
    is_socket = any(_sum(r.traffic) for r in rounds)
    name = "as sent, HTTP headers and polling included" if is_socket else "as sent, frames alone"
    _line(axes, [(sent[i] / 1e6, y) for i, y in tested if sent[i]], SENT, name)
    _line(axes, [(bare[i] / 1e6, y) for i, y in tested if bare[i]], BARE, "the same vectors as float32", "--")
    axes.set_xlabel("MB up and down, all devices together (log scale)")
    _percent_axis(axes, [y for _, y in tested])
    if tested:
        from matplotlib.ticker import LogLocator, NullFormatter

        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.legend(loc="lower right")
    if tested and sent[-1] and bare[-1]:
        axes.set_title(f"{bare[-1] / sent[-1]:.1f} times fewer bytes", loc="right", fontsize=9, color=SENT)


def _per_bit_accuracy(axes: Axes, rounds: Sequence[RoundStatus], initial_accuracy: float | None) -> None:
    up = accumulate(_sent(r).up for r in rounds)
    gained = [
        (r.round, per_bit_accuracy(r.metrics.get("accuracy"), initial_accuracy, bytes_up))
        for r, bytes_up in zip(rounds, up, strict=True)
    ]
    _line(axes, [(number, points) for number, points in gained if points is not None], SENT, "published model")
    axes.set_xlabel("round")
    axes.set_ylabel("percentage points per megabit up")
    axes.set_title("compare runs at equal bits", loc="right", fontsize=9, color=SENT)


def _loss(axes: Axes, rounds: Sequence[RoundStatus]) -> None:
    local = [(r.round, r.loss) for r in rounds if r.loss is not None]
    tested = [(r.round, r.metrics["loss"]) for r in rounds if "loss" in r.metrics]
    _line(axes, local, SOFT, "on the devices, mean over the last local epochs")
    _line(axes, tested, SENT, "published model, test data")
    axes.set_xlabel("round")
    axes.set_ylabel("loss")
    axes.set_ylim(bottom=0)
    if local or tested:
        axes.legend(loc="upper right")


def _perturbation(axes: Axes, rounds: Sequence[RoundStatus]) -> None:
    points = [(r.round, r.perturbation) for r in rounds if r.perturbation is not None]
    _line(axes, points, SENT, "mean over the downloads")
    axes.set_xlabel("round")
    axes.set_ylabel("E‖ŵ - w‖²")
    if any(lost > 0 for _, lost in points):
        axes.set_yscale("log")


def _line(axes: Axes, points: Sequence[tuple[float, float]], color: str, name: str, style: str = "-") -> None:
    if points:
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, ys, style, color=color, linewidth=2, label=name, marker="o", markersize=3)


def _percent_axis(axes: Axes, values: Sequence[float]) -> None:
    axes.set_ylabel("accuracy, %")
    if values:
        room = max(2.0, 0.08 * (max(values) - min(values)))
        axes.set_ylim(max(0.0, min(values) - room), min(100.0, max(values) + room))


def _plot(title: str, fill: Any, rounds: Sequence[RoundStatus]) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=SIZE_INCHES, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    fill(axes, rounds)
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)
    if axes.get_xscale() == "linear":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if not axes.lines:
        axes.text(0.5, 0.5, "nothing was measured", transform=axes.transAxes, ha="center", color=SOFT)
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()
