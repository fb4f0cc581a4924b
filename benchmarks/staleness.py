"""What updates that come late are worth to FedDyn, dropped, with whole steps, or with steps of 1/(1 + rounds late).

    python -m benchmarks.staleness [--seeds 1 2 3] [--alpha 0.1 0.5] [--noise 0 0.3] [--rounds 120]

Simulated rounds of 6 out of 18 devices whose losses are quadratic and whose speeds differ 64-fold; a round closes at
three updates after two seconds. Local problems are solved exactly, or with noise of that standard deviation in every
coordinate; nothing is coded. For each case log10 of the distance to the common optimum after all rounds, one number a
seed, then of the first seed: updates that counted in their own round and later, and τ, by how many rounds these were
late on average.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from math import log10, sqrt
from unittest.mock import patch

import numpy as np

from fedge.algorithms.base import LocalTerms
from fedge.layout import Vector
from fedge.protocol.staleness import step_of
from fedge.seeds import derive, uniform
from fedge.simulation import Link, Simulation, World
from fedge.simulation.world import Trained
from schemas.plan import Plan, plan_from_toml
from schemas.specs import LocalSpec
from schemas.status import RoundStatus
from tests.support.quadratic import Quadratic

DEVICES = tuple(f"d{i}" for i in range(18))
CASES: dict[str, tuple[int, Callable[[int], float]]] = {
    "dropped": (0, step_of),
    "1/(1 + τ)": (20, step_of),
    "whole steps": (20, lambda rounds_late: 1.0),
}


class Noisy(Quadratic):
    """Local solutions that are off by ``noise`` in every coordinate."""

    def __init__(self, noise: float) -> None:
        self.noise = noise

    def begin(
        self, device: str, anchor: Vector, terms: LocalTerms, local: LocalSpec, seed: int
    ) -> Callable[[], Trained]:
        """Train as ``Quadratic`` does, and miss."""

        def result() -> Trained:
            trained = self.train(device, anchor, terms)
            missed = (uniform(derive(seed, "noise"), self.layout.size) - 0.5) * sqrt(12) * self.noise
            return Trained((trained.delta + missed).astype(np.float32), trained.loss)

        return result


def plan(max_staleness: int, alpha: float, seed: int, rounds: int) -> Plan:
    """Return the plan of one run."""
    return plan_from_toml(f"""
        task = "a:b"
        rounds = {rounds}
        seed = {seed}
        [cohort]
        devices = 6
        updates = {{min = 3, max = 6}}
        seconds = {{min = 2, max = 30}}
        [algorithm]
        name = "feddyn"
        alpha = {alpha}
        [aggregation]
        max_staleness = {max_staleness}
        [uplink]
        codec = "none"
        [downlink]
        mode = "none"
    """)


def speed(device: str) -> float:
    """Return a device's seconds for an example: log-uniform over a factor of 64."""
    return 0.004 * 4 ** (3 * float(uniform(derive("speed", device), 1)[0]) - 1)


def run(case: str, alpha: float, noise: float, seed: int, rounds: int) -> tuple[float, tuple[RoundStatus, ...]]:
    """Return the distance that a run ends at, and its rounds."""
    max_staleness, step = CASES[case]
    trainer = Noisy(noise)
    world = World(DEVICES, links={device: Link(seconds_per_example=speed(device)) for device in DEVICES})
    with patch("fedge.simulation.aggregator.step_of", step):
        simulation = Simulation(plan(max_staleness, alpha, seed, rounds), trainer, world)
        simulation.run()
    result = simulation.result()
    return float(np.linalg.norm(result.published - trainer.optimum(DEVICES))), result.rounds


def main() -> None:
    """Print a line for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--alpha", type=float, nargs="+", default=[0.1, 0.5])
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.3])
    parser.add_argument("--rounds", type=int, default=120)
    args = parser.parse_args()
    for alpha in args.alpha:
        for noise in args.noise:
            for case in CASES:
                found = [run(case, alpha, noise, seed, args.rounds) for seed in args.seeds]
                distances = " ".join(f"{log10(distance):6.2f}" for distance, _ in found)
                late = [late for status in found[0][1] for late in status.late.values()]
                own = sum(len(status.updates) for status in found[0][1])
                counted = f"{own} in time, {len(late)} late, τ {np.mean(late) if late else 0:.1f}"
                print(f"alpha {alpha:<4} noise {noise:<4} {case:12} {distances}   {counted}", flush=True)


if __name__ == "__main__":
    main()
