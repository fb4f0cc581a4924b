"""Coordinator and participant joined by a link that loses, repeats and cuts, on devices that crash.

What must hold after any weather: every device that has settled its receipts has exactly the dual the server counted
for it, so the server's sum of duals is the sum of the devices'; nothing acknowledged is lost; nothing is counted twice.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedge.downlink import Mode
from fedge.downlink.common import catch_up, receive_all
from fedge.downlink.ledger import Heard, step
from fedge.downlink.mcm import channel_of
from fedge.protocol.participant import Participant, Phase
from fedge.simulation import Link, Simulation, World
from fedge.update import by_segment, decode_applied, uplink
from schemas.plan import plan_from_toml
from schemas.specs import Limits, LinkLimit
from schemas.status import RoundPhase, RunPhase
from tests.support.quadratic import Quadratic

DEVICES = tuple(f"d{i}" for i in range(6))


def plan(
    rounds=6,
    seed=1,
    bits=2.0,
    algorithm='name = "feddyn"\nalpha = 0.5',
    weights="plain",
    codec="eden",
    down="rand-mcm",
    down_bits=8.0,
    down_coding="fixed",
):
    return plan_from_toml(f"""
        task = "a:b"
        rounds = {rounds}
        seed = {seed}
        [cohort]
        devices = 4
        updates = {{min = 2, max = 4}}
        seconds = {{min = 3, max = 8}}
        [algorithm]
        {algorithm}
        [aggregation]
        weights = "{weights}"
        [uplink]
        codec = "{codec}"
        bits = {bits}
        [downlink]
        mode = "{down}"
        bits = {down_bits}
        coding = "{down_coding}"
    """)


def settle_all(simulation: Simulation) -> None:
    """Let every device receive the receipt it still waits for, on a link that has become perfect."""
    for device in simulation.devices.values():
        device.link = Link()
    simulation.clock.run(lambda: _is_calm(simulation))


def _is_calm(simulation: Simulation) -> bool:
    return all(d.state.pending is None and d.state.phase is Phase.IDLE for d in simulation.devices.values())


probability = st.sampled_from([0.0, 0.05, 0.2, 0.4])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), probability, probability, probability, st.sampled_from([0.0, 0.03, 0.1]))
def test_after_any_weather_the_servers_sum_is_the_sum_of_the_devices_duals(seed, lost, unanswered, cut, crash):
    link = Link(request_lost=lost, answer_lost=unanswered, upload_cut=cut, crash=crash)
    simulation = Simulation(plan(seed=seed), Quadratic(), World(DEVICES, link=link))
    simulation.run()
    settle_all(simulation)
    assert _is_calm(simulation)
    duals = sum(device.dual() for device in simulation.devices.values())
    h = simulation.aggregator.state.h
    assert np.abs(duals - h).max() <= 1e-12 * max(1.0, np.abs(h).max())


MEMORIES = [("rand-mcm", 0.5), ("rand-mcm", 1.0), ("rand-mcm", 4.0), ("mcm", 1.0), ("mcm", 4.0)]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from(MEMORIES),
    st.sampled_from(["fixed", "entropy"]),
    probability,
    probability,
    st.sampled_from([0.0, 0.05, 0.2]),
)
def test_after_any_weather_a_device_has_the_download_state_that_the_server_has_of_it(
    seed, memory, coding, lost, unanswered, crash
):
    mode, bits = memory
    link = Link(request_lost=lost, answer_lost=unanswered, upload_cut=lost, crash=crash)
    chosen = plan(seed=seed, down=mode, down_bits=bits, down_coding=coding)
    simulation = Simulation(chosen, Quadratic(), World(DEVICES, link=link))
    simulation.run()
    settle_all(simulation)
    held = {device: device.state.held for device in simulation.devices.values() if device.state.held is not None}
    assert held or simulation.aggregator.run.phase is RunPhase.FAILED
    for device, state in held.items():
        servers, devices = states_of(simulation.aggregator, device, state.state)
        assert servers.id == devices.id
        assert np.array_equal(servers.vector, devices.vector)


def states_of(aggregator, device, name):
    """Return the state that the server knows by ``name``, and the device's; of a common memory after catching up."""
    spec, downlinks, own = aggregator.plan.downlink, aggregator.downlinks, device.states[name]
    channel = channel_of(aggregator.layout, aggregator.plan.seed, device.name, Mode(spec.mode), spec.codec_name)
    if spec.mode == "mcm":
        missed = b"".join(catch_up(channel, downlinks.common, name))
        return downlinks.common.state, receive_all(channel, own, missed).state
    ledger, _ = step(channel, downlinks.ledgers[device.name], Heard(name))
    return ledger.state, own


@pytest.mark.parametrize(("mode", "bits"), [*MEMORIES, ("snapshot", 4.0)])
def test_what_is_said_of_a_rounds_downloads_adds_up(mode, bits):
    simulation = Simulation(plan(rounds=12, down=mode, down_bits=bits), Quadratic(), World(DEVICES))
    simulation.run()
    for status in simulation.rounds:
        assert sum(status.bytes_down.values()) == status.frame_bytes.down
        assert set(status.bytes_down) <= set(status.cohort)
        assert status.perturbation >= 0


def test_relative_to_what_a_device_has_a_download_loses_less_than_relative_to_nothing():
    lost = {}
    for mode in ("rand-mcm", "mcm", "snapshot"):
        simulation = Simulation(plan(rounds=30, down=mode, down_bits=2.0), Quadratic(), World(DEVICES))
        simulation.run()
        lost[mode] = sum(status.perturbation for status in simulation.rounds[-5:])
    assert max(lost["rand-mcm"], lost["mcm"]) < 0.05 * lost["snapshot"]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32), probability, probability)
def test_shrinking_the_mean_of_devices_at_unlike_rates_leaves_the_sum_of_the_duals_alone(seed, lost, cut):
    rates = zip(DEVICES, (0.5, 1.0, 2.0, 4.0, 6.0, 8.0), strict=True)
    limits = {name: Limits(uplink=LinkLimit(bits=bits)) for name, bits in rates}
    world = World(DEVICES, link=Link(request_lost=lost, upload_cut=cut), limits=limits)
    simulation = Simulation(plan(seed=seed, bits=8.0, weights="shrinkage"), Quadratic(), world)
    simulation.run()
    settle_all(simulation)
    duals = sum(device.dual() for device in simulation.devices.values())
    h = simulation.aggregator.state.h
    assert np.abs(duals - h).max() <= 1e-12 * max(1.0, np.abs(h).max())
    closed = [status for status in simulation.rounds if status.phase is RoundPhase.CLOSED]
    assert all(status.shrunk_by is not None and status.shrunk_by > 0 for status in closed)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), probability, probability)
def test_what_a_receipt_names_is_what_the_server_added(seed, lost, cut):
    """The segments named in a round's receipts are as many as the sums say were added."""
    seen = []
    link = Link(request_lost=lost, answer_lost=lost, upload_cut=cut)
    simulation = Simulation(plan(seed=seed), Quadratic(), World(DEVICES, link=link))
    original = simulation.aggregator.on_round

    def on_round(aggregator):
        receipts = [r for (_, number), r in aggregator.receipts.items() if number == aggregator.round.number]
        named = sum(len(receipt.applied) for receipt in receipts)
        seen.append((aggregator.round.phase, named, int(aggregator.sums.count.sum())))
        original(aggregator)

    simulation.aggregator.on_round = on_round
    simulation.run()
    assert seen
    assert all(named == (added if phase == "closed" else 0) for phase, named, added in seen)


def test_the_initial_model_is_tested_once_before_the_first_round():
    tested = []

    class Graded(Quadratic):
        def evaluate(self, params):
            tested.append(params)
            return {"accuracy": 0.1 * len(tested)}

    simulation = Simulation(plan(rounds=2), Graded(), World(DEVICES))
    simulation.run()
    result = simulation.result()
    np.testing.assert_array_equal(tested[0], Quadratic().initial(1))
    told = [result.initial_metrics, *(status.metrics for status in result.rounds)]
    assert told == [{"accuracy": 0.1 * place} for place in (1, 2, 3)]


def test_a_dead_link_abandons_rounds_until_the_run_fails():
    simulation = Simulation(plan(), Quadratic(), World(DEVICES, link=Link(request_lost=1.0)))
    simulation.run()
    result = simulation.result()
    assert result.phase is RunPhase.FAILED
    assert "20 rounds in a row" in result.reason
    assert not np.any(result.published)


def test_a_wiped_dual_ends_the_epoch_and_the_books_balance_again():
    simulation = Simulation(plan(rounds=12), Quadratic(), World(DEVICES))
    wiped = []

    def wipe(status):
        device = simulation.devices["d1"]
        if status.round >= 3 and device.state.last_applied > 0 and not wiped:
            wiped.append(status.round)
            device.state = Participant()
            device.duals.clear()
            device.crash()

    simulation._on_round = wipe
    simulation.run()
    settle_all(simulation)
    assert wiped
    assert simulation.aggregator.dual_epoch == 1
    duals = sum(device.dual() for device in simulation.devices.values() if device.state.dual_epoch == 1)
    assert np.abs(duals - simulation.aggregator.state.h).max() <= 1e-12


@pytest.mark.parametrize("weather", [Link(), Link(request_lost=0.1, answer_lost=0.1, upload_cut=0.3, crash=0.02)])
def test_devices_that_disagree_still_reach_the_common_optimum(weather):
    """FedDyn with a coded uplink and downlink, partial participation and faults; FedAvg's floor is far above."""

    def distance(algorithm):
        trainer = Quadratic()
        simulation = Simulation(plan(rounds=80, bits=4.0, algorithm=algorithm), trainer, World(DEVICES, link=weather))
        simulation.run()
        return float(np.linalg.norm(simulation.result().published - trainer.optimum(DEVICES)))

    assert distance('name = "feddyn"\nalpha = 0.5') < 0.35 * distance('name = "fedavg"')


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), probability, probability, st.sampled_from([0.0, 0.05]))
def test_with_m22_every_device_remembers_what_was_lost(seed, lost, cut, crash):
    trained: dict[str, dict] = {}
    link = Link(request_lost=lost, answer_lost=lost, upload_cut=cut, crash=crash)
    chosen = plan(seed=seed, bits=0.5, codec="m22", algorithm='name = "fedavg"')
    simulation = Simulation(chosen, Quadratic(), World(DEVICES, link=link))
    for device in simulation.devices.values():
        watch_memory(device, trained.setdefault(device.name, {}))
    simulation.run()
    settle_all(simulation)
    assert any(device.memory() is not None for device in simulation.devices.values())
    for device in simulation.devices.values():
        memory, book = device.memory(), trained[device.name]
        if memory is not None:  # Σ D = Σ D̂ + e
            assert np.allclose(book["counted"] + memory, book["sum"], atol=1e-3 * (1 + np.abs(book["sum"]).max()))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), probability, probability, st.sampled_from([0.0, 0.05]))
def test_with_m22_the_servers_sum_is_the_sum_of_the_devices_duals(seed, lost, cut, crash):
    link = Link(request_lost=lost, answer_lost=lost, upload_cut=cut, crash=crash)
    simulation = Simulation(plan(seed=seed, bits=0.5, codec="m22"), Quadratic(), World(DEVICES, link=link))
    simulation.run()
    settle_all(simulation)
    duals = sum(device.dual() for device in simulation.devices.values())
    h = simulation.aggregator.state.h
    assert np.abs(duals - h).max() <= 1e-12 * max(1.0, np.abs(h).max())
    assert all(device.memory() is None for device in simulation.devices.values())


def watch_memory(device, book) -> None:
    """Add up, on the segments that receipts name, every delta in ``book["sum"]`` and what counted of it."""
    spool, settle, layout = device._spool, device._settle, device.trainer.layout
    book["sum"], book["counted"] = np.zeros(layout.size), np.zeros(layout.size)

    def on_spool(assignment, result):
        book[assignment.round] = result.delta
        spool(assignment, result)

    def on_settle(pending, receipt):
        key = ("settled", receipt.round)
        if receipt.applied and key not in book:
            book[key] = True
            stream = uplink(pending.assignment.seed, receipt.round, device.name)
            book["counted"] += decode_applied(layout, by_segment(device.frames), stream, receipt.applied, lambda _: 1.0)
            for index in receipt.applied:
                part = layout.segments[index].slice
                book["sum"][part] += book[receipt.round][part]
        settle(pending, receipt)

    device._spool, device._settle = on_spool, on_settle


def test_the_same_plan_gives_the_same_run():
    def run():
        weather = Link(request_lost=0.2, upload_cut=0.2, crash=0.02)
        simulation = Simulation(plan(), Quadratic(), World(DEVICES, link=weather))
        simulation.run()
        return simulation.result()

    a, b = run(), run()
    assert a.rounds == b.rounds
    assert np.array_equal(a.published, b.published)
