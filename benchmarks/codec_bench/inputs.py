"""What ``fedge bench codecs`` encodes to see the error: drawn vectors, and updates that devices really sent."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks import capture_updates
from fedge.layout import Kind, Layout, TensorSpec

SHIPPED, SHIPPED_ROUNDS = "wisdm", [1, 5]
NAME = re.compile(r"(?P<task>.+)-round-(?P<round>\d+)")


@dataclass(frozen=True)
class Input:
    """Vectors of one kind, float32 ``[k, d]``, and the layout that cuts them into segments.

    Each is encoded as a device's update in ``round``, ``repeats`` times with seeds of its own.
    """

    group: str
    label: str
    layout: Layout
    vectors: npt.NDArray[np.float32]
    repeats: int = 1
    round: int = 1

    @property
    def title(self) -> str:
        """Both names, for tables and panels."""
        return self.label if self.group == DRAWN else f"{self.group}, {self.label}"

    @property
    def weights(self) -> int:
        """How many coordinates travel by codec: the vector's first. The others travel as float32."""
        return sum(segment.size for segment in self.layout.segments if segment.kind is Kind.WEIGHT)

    @property
    def raw_energy(self) -> float:
        """The share of the squared norm that travels as float32, all vectors taken together."""
        squares = np.square(self.vectors, dtype=np.float64)
        return float(squares[:, self.weights :].sum() / squares.sum())


DRAWN = "drawn"


def drawn(size: int) -> list[Input]:
    """Return one input for each distribution: float32 ``[1, size]``, all of them weights."""
    rng = np.random.default_rng(0)
    layout = Layout.of([TensorSpec("x", (size,), Kind.WEIGHT)])
    signs = rng.choice([-1.0, 1.0], size)
    vectors = {
        "Gaussian": rng.standard_normal(size),
        "log-normal": rng.lognormal(size=size) * signs,
        "Student t, 3 degrees": rng.standard_t(3, size),
        "5 % exponential, else 0": np.where(rng.random(size) < 0.05, rng.exponential(size=size), 0.0),
    }
    repeats = int(np.clip((1 << 22) // size, 3, 16))
    return [Input(DRAWN, label, layout, x.astype(np.float32)[None], repeats) for label, x in vectors.items()]


def captured(folder: Path) -> list[Input]:
    """Return what ``benchmarks.capture_updates`` left in ``folder``, one input for each task and round.

    Raises:
        ValueError: no such file, or one whose segments are not those of its tensors.
    """
    paths = sorted(path for path in folder.glob("*.npz") if NAME.fullmatch(path.stem))
    if not paths:
        raise ValueError(f"expected files TASK-round-NN.npz of benchmarks.capture_updates in {folder}, found none")
    return [_read(path) for path in paths]


def capture_shipped(folder: Path) -> list[Input]:
    """Run the one federation whose data comes with fedge for five rounds, a few seconds, and return its updates."""
    folder.mkdir(parents=True, exist_ok=True)
    capture_updates.capture(SHIPPED, capture_updates.FEDERATIONS[SHIPPED], SHIPPED_ROUNDS, 0, folder)
    return captured(folder)


def _read(path: Path) -> Input:
    named = NAME.fullmatch(path.stem)
    assert named is not None
    with np.load(path) as kept:
        starts, stops, kinds = (kept[f"segment_{what}"] for what in ("start", "stop", "kind"))
        tensors = [
            TensorSpec(str(name), _shape(str(shape)), Kind(str(kinds[np.searchsorted(stops, start, side="right")])))
            for name, start, shape in zip(kept["tensor_name"], kept["tensor_start"], kept["tensor_shape"], strict=True)
        ]
        deltas = kept["deltas"]
    layout = Layout.of(tensors)
    if [(s.start, s.stop) for s in layout.segments] != list(zip(starts, stops, strict=True)):
        raise ValueError(f"{path.name}: expected the segments of its tensors, got others; capture it again")
    moved = deltas[np.abs(deltas).max(axis=1) > 0]  # a device that trained nothing has no relative error
    round_number = int(named["round"])
    return Input(named["task"], f"round {round_number}", layout, moved, round=round_number)


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("x")) if text else ()
