"""Devices too slow for their rounds, in any weather: what comes late counts once, and both ends know what counted.

As in ``test_pair``, the simulation joins both machines over a link that loses, cuts and crashes.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedge.protocol.participant import Participant, Phase, UpdateReady
from fedge.simulation import Link, Simulation, World
from schemas.messages import Outcome
from schemas.plan import plan_from_toml
from schemas.status import RoundPhase
from tests.support.quadratic import Quadratic

DEVICES = tuple(f"d{i}" for i in range(8))
SLOW = DEVICES[1::2]


def plan(max_staleness, rounds=10, seed=1, least=2, algorithm='name = "feddyn"\nalpha = 0.5', bits=2.0):
    return plan_from_toml(f"""
        task = "a:b"
        rounds = {rounds}
        seed = {seed}
        [cohort]
        devices = 4
        updates = {{min = {least}, max = 4}}
        seconds = {{min = 3, max = 8}}
        [algorithm]
        {algorithm}
        [aggregation]
        max_staleness = {max_staleness}
        [uplink]
        bits = {bits}
        coding = "fixed"
        [downlink]
        bits = 8.0
        coding = "fixed"
    """)


def world(slowness=0.02, **weather):
    """Every second device trains for 100 to 1100 ``slowness`` seconds; a round lasts 8 at most."""
    slow = Link(seconds_per_example=slowness, **weather)
    return World(DEVICES, link=Link(**weather), links=dict.fromkeys(SLOW, slow))


class Watched:
    """A simulation with every completed update, every receipt as often as it was written, and what was added."""

    def __init__(self, chosen, where):
        self.simulation = Simulation(chosen, Quadratic(), where)
        self.completed: list[tuple[str, int]] = []
        self.written: Counter[tuple[str, int]] = Counter()
        self.named = self.added = 0
        aggregator = self.simulation.aggregator
        write, on_round = aggregator._write, aggregator.on_round

        def on_write(receipts):
            self.written.update((device, receipt.round) for device, receipt in receipts.items())
            self.named += sum(len(receipt.applied) for receipt in receipts.values())
            write(receipts)

        def at_the_end(ended):
            self.added += int(ended.sums.count.sum()) if ended.round.phase is RoundPhase.CLOSED else 0
            on_round(ended)

        aggregator._write, aggregator.on_round = on_write, at_the_end
        for device in self.simulation.devices.values():
            self._watch(device)

    def _watch(self, device):
        step = device._step

        def on_step(event):
            is_new = isinstance(event, UpdateReady) and device.state.phase is Phase.TRAINING
            asked = device.state.assignment
            step(event)
            if is_new and device.state.pending is not None:
                self.completed.append((device.name, asked.round))

        device._step = on_step

    def run(self):
        """Run, then let every device receive its receipts on a perfect link."""
        self.simulation.run()
        devices = self.simulation.devices.values()
        for device in devices:
            device.link = Link()
        self.simulation.clock.run(lambda: all(d.state.pending is None and d.state.phase is Phase.IDLE for d in devices))
        assert all(d.state.pending is None for d in devices)

    def late(self):
        """Return how many late updates counted, by how many rounds late they were."""
        return Counter(rounds for status in self.simulation.rounds for rounds in status.late.values())


def gap(simulation):
    """Return how far the sum of the duals is from the server's, and how large that is."""
    epoch = simulation.aggregator.dual_epoch
    duals = [d.dual() for d in simulation.devices.values() if d.state.dual_epoch == epoch]
    h = simulation.aggregator.state.h
    return np.abs(sum(duals) - h).max(), max(1.0, np.abs(h).max())


probability = st.sampled_from([0.0, 0.05, 0.2, 0.4])


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from([1, 2, 5, 100]),
    st.sampled_from([2, 4]),
    st.sampled_from([0.01, 0.05]),
    probability,
    probability,
    st.sampled_from([0.0, 0.03, 0.1]),
)
def test_after_any_weather_what_counted_late_is_in_the_duals_of_both_ends_and_counted_once(
    seed, max_staleness, least, slowness, lost, cut, crash
):
    weather = {"request_lost": lost, "answer_lost": lost, "upload_cut": cut, "crash": crash}
    watched = Watched(plan(max_staleness, seed=seed, least=least), world(slowness, **weather))
    watched.run()
    distance, size = gap(watched.simulation)
    assert distance <= 1e-12 * size
    assert watched.named == watched.added
    assert set(watched.written.values()) <= {1}
    assert set(watched.completed) <= watched.written.keys()
    assert max(watched.late(), default=0) <= max_staleness


def test_without_staleness_a_late_update_is_not_used_and_with_it_none_is_lost():
    outcomes = {}
    for max_staleness in (0, 100):
        watched = Watched(plan(max_staleness, rounds=40), world())
        watched.run()
        receipts = watched.simulation.aggregator.receipts
        last = max(number for _, number in receipts)
        outcomes[max_staleness] = Counter(
            receipts[update].outcome for update in watched.completed if update[1] < last - 25
        )
    assert outcomes[0][Outcome.LATE] > 3
    assert outcomes[100].keys() == {Outcome.APPLIED}


def test_a_device_is_invited_to_no_other_round_while_its_update_is_outstanding():
    watched = Watched(plan(100, rounds=30), world())
    invited = {}
    aggregator = watched.simulation.aggregator
    end = aggregator.on_round

    def look(ended):
        invited[ended.round.number] = (set(ended.invited), dict(ended.late))
        end(ended)

    aggregator.on_round = look
    watched.run()
    for number in list(invited)[:-1]:
        owing = invited[number][1].keys()
        again = owing & invited[number + 1][0]
        assert all((name, invited[number][1][name].round) in watched.written for name in again)
    assert max(watched.late()) > 1


def test_two_devices_that_would_wait_for_each_other_meet_in_one_round():
    """All devices are slow, and all of them are needed: those at the door sit in the next cohort."""
    every = World(DEVICES[:4], link=Link(seconds_per_example=0.02))
    watched = Watched(plan(100, rounds=6, least=4), every)
    watched.run()
    assert watched.simulation.aggregator.run.rounds_closed == 6
    assert watched.late()
    distance, size = gap(watched.simulation)
    assert distance <= 1e-12 * size


def test_a_wiped_dual_ends_the_epoch_and_with_it_what_is_outstanding():
    watched = Watched(plan(100, rounds=25), world())
    wiped = []

    def wipe(status):
        device = watched.simulation.devices["d0"]
        if status.round >= 3 and device.state.last_applied > 0 and not wiped:
            wiped.append(status.round)
            device.state = Participant()
            device.duals.clear()
            device.crash()

    watched.simulation._on_round = wipe
    watched.run()
    assert wiped and watched.simulation.aggregator.dual_epoch == 1
    distance, size = gap(watched.simulation)
    assert distance <= 1e-12 * size


def test_using_what_comes_late_ends_nearer_to_the_common_optimum_than_dropping_it():
    """Without the slow half the model is that of the others."""

    def distance(max_staleness):
        trainer = Quadratic()
        simulation = Simulation(plan(max_staleness, rounds=60, bits=4.0), trainer, world())
        simulation.run()
        return float(np.linalg.norm(simulation.result().published - trainer.optimum(DEVICES)))

    assert distance(100) < 0.5 * distance(0)


@pytest.mark.parametrize("max_staleness", [0, 3])
def test_the_same_plan_gives_the_same_run(max_staleness):
    def run():
        weather = {"request_lost": 0.2, "upload_cut": 0.2, "crash": 0.02}
        simulation = Simulation(plan(max_staleness), Quadratic(), world(**weather))
        simulation.run()
        return simulation.result()

    a, b = run(), run()
    assert a.rounds == b.rounds
    assert np.array_equal(a.published, b.published)
