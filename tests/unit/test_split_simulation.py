"""Split runs on the virtual clock: the same machines, halves in this process."""

import numpy as np
import pytest

from fedge.errors import SimulationError
from fedge.simulation import Link, Simulation, World, simulate
from fedge.simulation.training import TaskTrainer
from schemas.plan import Plan
from schemas.status import RunPhase
from tests.support.split_federation import plan
from tests.support.split_task import task, u_shaped

SITES = {f"pi-{k}": {"device": k} for k in range(4)}
ROUGH = Link(request_lost=0.1, answer_lost=0.1, upload_cut=0.2, crash=0.03)


def rehearse(agreed: Plan, which=task, **world):
    return Simulation(agreed, TaskTrainer(which, SITES, split=agreed.is_split), World(tuple(SITES), **world))


def test_it_learns_and_counts_what_it_sends():
    done = simulate(plan(4), TaskTrainer(task, SITES, split=True), World(tuple(SITES)))
    assert done.phase is RunPhase.FINISHED and done.rounds[-1].metrics["accuracy"] > 0.85
    for one in done.rounds:
        assert (one.split.steps, one.split.batches, one.split.refused) == (8, 32, 0)
        assert one.split.float32_bytes.up == 32 * 20 * 64 * 4
        assert one.split.bytes.up < one.frame_bytes.up < one.float32_bytes.up
    assert done.layout.num_front == 2


@pytest.mark.parametrize("which", [task, u_shaped], ids=["two halves", "u-shaped"])
def test_under_weather_the_duals_of_both_kinds_add_up(which):
    trains = {"pi-0": "front", "pi-1": "front"}
    cohort = {"devices": 3, "updates": {"min": 2, "max": 3}, "seconds": {"min": 0.0, "max": 60.0}}
    agreed = plan(3, rounds=8, cohort=cohort, split={"devices": "front-only", "gradient_bits": 4.0})
    simulation = rehearse(agreed, which, trains=trains, link=ROUGH)
    simulation.run()
    devices = simulation.devices.values()
    simulation.clock.run(lambda: not any(device.state.pending for device in devices))  # until all have their receipts
    state = simulation.aggregator.state
    assert state.back_dual is not None
    total = state.back_dual.copy()
    for device in devices:
        dual = device.dual()
        total[: len(dual)] += dual
    np.testing.assert_allclose(total, state.h, atol=1e-12)
    assert simulation.result().phase is RunPhase.FINISHED


def test_whoever_trains_front_halves_alone_needs_a_split_plan():
    with pytest.raises(SimulationError, match="got pi-0: front halves only"):
        rehearse(plan(4, split=None), trains={"pi-0": "front"})


def test_a_trainer_of_whole_models_cannot_train_split():
    with pytest.raises(SimulationError, match="expected a trainer of models that are cut in two"):
        Simulation(plan(4), TaskTrainer(task, SITES), World(tuple(SITES)))
