"""Tables and plots of the runs of ``per_bit_accuracy``: means over seeds, ± is the standard error of the mean.

OUT/tables.md        a table for each number of devices, optimizer, error feedback on or off; paired differences
OUT/accuracy.png     accuracy over all uplink bits of all devices
OUT/per_bit.png      accuracy per bit over bits per coordinate
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Line = Mapping[str, Any]

KEY = ("devices", "optimizer", "method", "feedback", "bits", "seed", "participation", "rounds", "examples")
TARGETS = (0.70, 0.75, 0.80)
KEEPING = ("stc", "tinyscript", "topk-uniform", "topk-fp4", "topk-fp8")
PLACES = [(n, optimizer) for n in (2, 10) for optimizer in ("sgd", "adam")]
MEGABIT = 1e6


def read(path: Path) -> list[Line]:
    """Return the lines of a file of results, none if there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def key_of(line: Line) -> str:
    """Return what names the run, as ``Case.key``."""
    return json.dumps({name: line[name] for name in KEY}, sort_keys=True)


def per_bit(line: Line) -> float:
    """Return PBA(T), points of a percent per Mbit."""
    gained: float = 100 * (line["accuracy"][-1] - line["accuracy"][0]) / line["uplink_bits"][-1] * MEGABIT
    return gained


def loss_per_bit(line: Line) -> float:
    """Return by how many nats the loss fell per Mbit."""
    fell: float = (line["loss"][0] - line["loss"][-1]) / line["uplink_bits"][-1] * MEGABIT
    return fell


def bits_to(line: Line, target: float) -> float | None:
    """Return the Mbit sent up to the first round that reaches ``target``; None if none does."""
    reached = [bits for bits, accuracy in zip(line["uplink_bits"], line["accuracy"], strict=True) if accuracy >= target]
    return reached[0] / MEGABIT if reached else None


def mean_and_error(numbers: Sequence[float], digits: int) -> str:
    """Return "mean ± standard error"."""
    mean = f"{np.mean(numbers):.{digits}f}"
    return f"{mean} ± {np.std(numbers, ddof=1) / np.sqrt(len(numbers)):.{digits}f}" if len(numbers) > 1 else mean


def grouped(lines: Iterable[Line], *names: str) -> dict[tuple[Any, ...], list[Line]]:
    """Return ``lines`` by the values of ``names``, in the order of those."""
    groups: dict[tuple[Any, ...], list[Line]] = defaultdict(list)
    for line in lines:
        groups[tuple(line[name] for name in names)].append(line)
    return dict(sorted(groups.items()))


def table(lines: list[Line]) -> list[str]:
    """Return the Markdown rows of one table, a row for each rate and method."""
    targets = " | ".join(f"Mbit to {target:.2f}" for target in TARGETS)
    rows = [
        f"| bits a weight | method | seeds | bits of all | accuracy | points per Mbit | nats per Mbit | {targets} |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: |" + " ---: |" * len(TARGETS),
    ]
    ordered = sorted(
        grouped(lines, "bits", "method").items(),
        key=lambda pair: (pair[0][0], -np.mean([one["accuracy"][-1] for one in pair[1]])),
    )
    for (bits, method), group in ordered:
        reached = [[bits_to(one, target) for one in group] for target in TARGETS]
        cells = [
            f"{bits:g}",
            method,
            str(len(group)),
            f"{np.mean([one['bits_per_coordinate'] for one in group]):.3f}",
            mean_and_error([one["accuracy"][-1] for one in group], 3),
            mean_and_error([per_bit(one) for one in group], 2),
            f"{np.mean([loss_per_bit(one) for one in group]):.3f}",
            *(_reached([one for one in found if one is not None], len(group)) for found in reached),
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def _reached(found: list[float], count: int) -> str:
    share = "" if len(found) == count else f" ({len(found)} of {count})"
    return f"{np.mean(found):.2f}{share}" if found else "-"


def paired(
    lines: list[Line], ours: Callable[[Line], bool], theirs: Callable[[Line], bool], *names: str
) -> dict[tuple[Any, ...], list[float]]:
    """Return by ``names`` the differences in final accuracy, ours - theirs, of runs that share all else."""
    all_else = ("devices", "optimizer", "bits", "participation", "seed", "rounds", "examples")
    other = {tuple(line[name] for name in all_else): line for line in lines if theirs(line)}
    found: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for line in filter(ours, lines):
        match = other.get(tuple(line[name] for name in all_else))
        if match is not None:
            found[tuple(line[name] for name in names)].append(line["accuracy"][-1] - match["accuracy"][-1])
    return dict(sorted(found.items()))


def is_run(method: str, feedback: bool) -> Callable[[Line], bool]:
    """Return what picks the runs of a method, with error feedback or without."""
    return lambda line: line["method"] == method and line["feedback"] == feedback


def differences(lines: list[Line], rivals: Sequence[tuple[str, bool]], ours: str = "m22") -> list[str]:
    """Return the Markdown rows of ``ours`` with error feedback minus each rival, points of a percent (pairs)."""
    rates = sorted({line["bits"] for line in lines if line["method"] == "m22"})
    rows = [
        "| devices | optimizer | bits a weight | " + " | ".join(f"minus {_shown(*rival)}" for rival in rivals) + " |",
        "| ---: | --- | ---: |" + " ---: |" * len(rivals),
    ]
    every = {rival: paired(lines, is_run(ours, True), is_run(*rival), *KEY[:2], "bits") for rival in rivals}
    for place in [(n, optimizer, bits) for n, optimizer in PLACES for bits in rates]:
        cells = [_points(every[rival].get(place, [])) for rival in rivals]
        if any(cell != "-" for cell in cells):
            rows.append(f"| {place[0]} | {place[1]} | {place[2]:g} | " + " | ".join(cells) + " |")
    pooled = [_points([d for ds in every[rival].values() for d in ds]) for rival in rivals]
    return [*rows, "| all | all | all | " + " | ".join(pooled) + " |"]


def _shown(method: str, with_feedback: bool) -> str:
    return method if with_feedback or method == "eden" else f"{method}, no feedback"


def _points(found: Sequence[float]) -> str:
    return f"{mean_and_error([100 * one for one in found], 1)} ({len(found)})" if found else "-"


def even(lines: list[Line]) -> list[str]:
    """Return the Markdown rows of M22 with error feedback and EDEN by devices, participation and rate."""
    rows = [
        "| participation | bits a weight | devices | seeds | M22 | EDEN | M22 - EDEN, points |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    sgd = [line for line in lines if line["optimizer"] == "sgd" and line["method"] in ("m22", "eden")]
    for (part, bits, n), group in grouped(sgd, "participation", "bits", "devices").items():
        ours, theirs = filter(is_run("m22", True), group), filter(is_run("eden", False), group)
        scores = [[line["accuracy"][-1] for line in runs] for runs in (ours, theirs)]
        found = paired(group, is_run("m22", True), is_run("eden", False), "bits").get((bits,), [])
        if found:
            means = " | ".join(f"{np.mean(score):.3f}" for score in scores)
            points = mean_and_error([100 * one for one in found], 1)
            rows.append(f"| {part:g} | {bits:g} | {n} | {len(found)} | {means} | {points} |")
    return rows


def is_whole(line: Line) -> bool:
    """Return whether the run is one of the grid: all of two or ten devices take part."""
    return line["participation"] == 1.0 and line["devices"] in (2, 10)


def write(path: Path, out: Path) -> None:
    """Write and print tables of the runs in the file at ``path``, and draw them."""
    every = read(path)
    usual = Counter(line["rounds"] for line in every).most_common(1)
    lines = [line for line in every if line["rounds"] == usual[0][0]]
    whole, longer = [[line for line in some if is_whole(line)] for some in (lines, every)]
    parts: list[str] = []
    for (rounds, n, optimizer), group in grouped(longer, "rounds", "devices", "optimizer").items():
        without = [line for line in group if line["method"] == "none"]
        for with_feedback in (True, False):
            own = [line for line in group if line["feedback"] == with_feedback and line["method"] != "none"]
            if own:
                title = (
                    f"## {n} devices, {optimizer}, error feedback {'on' if with_feedback else 'off'}, {rounds} rounds"
                )
                parts += [title, "", *table(own + without), ""]
    rivals = [*((name, True) for name in KEEPING), ("eden", False)]
    parts += ["## M22 with error feedback minus others", "", *differences(whole, rivals), ""]
    others = [("m22", True), *rivals]
    parts += ["## Lengthened M22 minus others", "", *differences(whole, others, "m22-lengthened"), ""]
    variants = [
        ("m22-empirical", True),
        ("m22-M2", True),
        ("m22-M4to0", True),
        ("m22", False),
        ("m22-projection", False),
    ]
    parts += ["## M22 with error feedback minus its variants", "", *differences(whole, variants), ""]
    parts += ["## M22 and EDEN by number of devices", "", *even(lines), ""]
    (out / "tables.md").write_text("\n".join(parts))
    print("\n".join(parts))
    if whole:
        plot(whole, out)


STYLES = {
    "none": ("black", "-"),
    "eden": ("tab:blue", "-"),
    "m22": ("tab:red", "-"),
    "m22-lengthened": ("tab:red", ":"),
    "stc": ("tab:green", "--"),
    "tinyscript": ("tab:orange", "--"),
    "topk-uniform": ("tab:purple", "--"),
}


def plot(lines: list[Line], out: Path) -> None:
    """Draw accuracy over bits and accuracy per bit over the rate: a panel for each number of devices and optimizer."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [
        line
        for line in lines
        if line["method"] in STYLES and line["feedback"] == (line["method"] not in ("none", "eden"))
    ]
    for name, draw in (("accuracy", _draw_accuracy), ("per_bit", _draw_per_bit)):
        figure, axes = pyplot.subplots(2, 2, figsize=(9, 6.5), sharex=True, layout="constrained")
        for axis, place in zip(axes.flat, PLACES, strict=True):
            axis.set_title(f"{place[0]} devices, {place[1]}", fontsize=10)
            draw(axis, [line for line in shown if (line["devices"], line["optimizer"]) == place])
            axis.grid(alpha=0.3)
        axes[0, 0].legend(fontsize=8)
        figure.savefig(out / f"{name}.png", dpi=75)
        pyplot.close(figure)


def _draw_accuracy(axis: Any, lines: list[Line]) -> None:
    for (method, bits), group in grouped(lines, "method", "bits").items():
        if bits in (0.1, 1.0, 32.0):
            colour, dashes = STYLES[method]
            sent = np.mean([line["uplink_bits"][1:] for line in group], axis=0) / MEGABIT
            label = method if bits != 0.1 else None
            axis.plot(
                sent, np.mean([line["accuracy"][1:] for line in group], axis=0), dashes, color=colour, label=label
            )
    axis.set(xscale="log", xlabel="Mbit sent by all devices (0.1 and 1 bit a weight)", ylabel="accuracy")


def _draw_per_bit(axis: Any, lines: list[Line]) -> None:
    for (method,), runs in grouped(lines, "method").items():
        colour, dashes = STYLES[method]
        points = [
            (group[0]["bits_per_coordinate"], [per_bit(line) for line in group])
            for group in grouped(runs, "bits").values()
        ]
        rates, found = [rate for rate, _ in points], [numbers for _, numbers in points]
        errors = [np.std(numbers, ddof=1) / np.sqrt(len(numbers)) if len(numbers) > 1 else 0.0 for numbers in found]
        axis.errorbar(
            rates, [np.mean(numbers) for numbers in found], errors, fmt=f"o{dashes}", color=colour, label=method, ms=4
        )
    axis.set(xscale="log", yscale="log", xlabel="uplink bits per coordinate, all counted", ylabel="points per Mbit")
