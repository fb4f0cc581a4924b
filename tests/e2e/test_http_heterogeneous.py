"""Six devices at six rates in one round: over HTTP and simulated, with either weights, the same model to the bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load

from fedge.algorithms.base import LocalTerms
from fedge.layout import Vector
from fedge.seeds import derive, uniform
from fedge.simulation import Link, World, simulate
from fedge.simulation.simulate import SimulationResult
from fedge.simulation.world import Trained
from schemas.plan import Plan
from schemas.specs import Limits, LinkLimit, LocalSpec
from schemas.status import Role, RoundStatus
from tests.support.http import LAYOUT, Device, cohort, initial_params, plan, serving, take_part

RATES = {"a": 0.1, "b": 0.5, "c": 1.0, "d": 2.0, "e": 4.0, "f": 8.0}
SIZES = {name: 10 * place for place, name in enumerate(RATES, start=1)}
LIMITS = {name: Limits(uplink=LinkLimit(bits=bits)) for name, bits in RATES.items()}
ALGORITHMS = ({"name": "fedavg"}, {"name": "feddyn", "alpha": 0.1})


def agreed(weights: str, algorithm: dict[str, object]) -> dict[str, object]:
    """Return a plan of two rounds in which every device is asked for the most its limit allows."""
    changes = {"uplink": {"codec": "eden", "bits": 8.0}, "aggregation": {"weights": weights}}
    return plan(cohort=cohort(6, 6), algorithm=algorithm, **changes)


@dataclass
class Drawn:
    """Trains as ``tests.support.http.Device`` does: the delta is drawn from the device's name and the round."""

    rounds: dict[str, int] = field(default_factory=dict)
    layout = LAYOUT

    def initial(self, seed: int) -> Vector:
        return initial_params(seed)

    def num_examples(self, device: str) -> int:
        return SIZES[device]

    def begin(
        self, device: str, anchor: Vector, terms: LocalTerms, local: LocalSpec, seed: int
    ) -> Callable[[], Trained]:
        number = self.rounds[device] = self.rounds.get(device, 0) + 1
        drawn = uniform(derive("delta", device, number), LAYOUT.size)
        return lambda: Trained(((drawn - 0.5) * 0.02).astype(np.float32), 0.5)

    def evaluate(self, params: Vector) -> dict[str, float]:
        return {}


def simulated(weights: str, algorithm: dict[str, object]) -> SimulationResult:
    """Run the plan on virtual devices whose updates arrive in the order of their names."""
    links = {
        name: Link(1e9, 1e9, latency_seconds=0.1 * place, seconds_per_example=0.0)
        for place, name in enumerate(RATES, start=1)
    }
    world = World(tuple(RATES), links=links, limits=LIMITS)
    return simulate(Plan.model_validate(agreed(weights, algorithm)), Drawn(), world)


async def served(state_dir: Path, weights: str, algorithm: dict[str, object]) -> tuple[Vector, tuple[RoundStatus, ...]]:
    """Run the plan over real sockets; returns the published model and the rounds."""
    async with serving(state_dir) as server, AsyncExitStack() as closing:
        devices: list[Device] = []
        for name in RATES:
            device = server.device(name, limits=LIMITS[name], num_examples=SIZES[name])
            closing.push_async_callback(device.close)
            await device.enroll()
            devices.append(device)
        run = await server.start(**agreed(weights, algorithm))
        asked = await take_part(devices, 2)
        assert [one.uplink.bits for one in asked] == list(RATES.values())
        await server.until_over(run)
        _, rounds = await server.ask("GET", f"/v1/runs/{run}/rounds")
        headers = {"Authorization": f"Bearer {server.tokens[Role.OPERATOR]}"}
        async with server.session.get(f"{server.url}/v1/runs/{run}/model", headers=headers) as answer:
            tensors = load(await answer.read())
    return LAYOUT.pack(tensors), tuple(RoundStatus.model_validate_json(json.dumps(one)) for one in rounds["rounds"])


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm["name"])
@pytest.mark.parametrize("weights", ["plain", "shrinkage"])
async def test_the_service_and_the_simulation_make_the_same_model(
    tmp_path: Path, weights: str, algorithm: dict[str, object]
) -> None:
    model, rounds = await served(tmp_path, weights, algorithm)
    result = simulated(weights, algorithm)
    np.testing.assert_array_equal(model, result.published)
    told = [status.shrunk_by for status in rounds]
    assert told == [status.shrunk_by for status in result.rounds] and len(told) == 2
    assert all((moved is None) == (weights == "plain") for moved in told)


async def test_shrinkage_changes_what_is_published_and_plain_is_what_a_plan_gets_that_says_nothing(
    tmp_path: Path,
) -> None:
    assert Plan.model_validate(plan()).aggregation.weights == "plain"
    plain, shrunk = (simulated(weights, ALGORITHMS[0]).published for weights in ("plain", "shrinkage"))
    model, _ = await served(tmp_path, "shrinkage", ALGORITHMS[0])
    assert not np.array_equal(plain, shrunk) and not np.array_equal(plain, model)
