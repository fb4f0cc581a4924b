"""The benchmark of all bytes: what it counts and what it calls held."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.split_arms import Fronts, Ours, Run, rounds_arm, split_arm
from benchmarks.split_end_to_end import OURS, bounds, bytes_to, table
from benchmarks.split_gradients import BATCH, CUT, DEVICES, SUBVECTORS, TOGETHER, VALUES, network
from fedge.algorithms import FedDyn
from fedge.layout import Kind
from fedge.split import Options
from fedge.tasks.base import Dataset
from fedge.tasks.split_model import cut


def pictures(count: int, seed: int) -> Dataset:
    rng = np.random.default_rng(seed)
    return Dataset(rng.normal(size=(count, 1, 28, 28)).astype(np.float32), rng.integers(0, 10, count))


def run(size: float, *accuracies: float) -> Run:
    spent = [size * (k + 1) for k in range(len(accuracies))]
    return Run(list(accuracies), spent, {"activations": size}, 1)


def test_every_byte_of_a_step_is_counted_in_both_directions():
    torch.set_num_threads(1)
    devices = [pictures(BATCH, k) for k in range(DEVICES)]
    plain = split_arm(devices, pictures(20, 1), None, 1, 1, 0)
    floats, front = 4 * BATCH * VALUES, 4 * 18_816
    assert list(plain.kinds.values()) == [floats, 16, front, floats, front]
    assert plain.spent == [TOGETHER * plain.bytes_of_a_step]
    paper = split_arm(devices, pictures(20, 1), Options.paper(SUBVECTORS), 1, 1, 0)
    assert paper.kinds["activations"] == 14 + 64 + SUBVECTORS * BATCH / 8 and paper.kinds["gradients"] == floats + 10
    ours = rounds_arm(devices, pictures(20, 1), OURS, 4, 2, 0)
    assert ours.device_steps == 4 * TOGETHER and len(ours.accuracies) == 2
    assert set(ours.kinds) == {*plain.kinds, "codebook down"} and all(ours.kinds.values())


def test_the_server_of_ours_has_the_sum_of_the_duals_and_what_devices_have():
    fronts = Fronts(cut(network(0), CUT).front, Ours(Options(SUBVECTORS), FedDyn(1.0)), 0)
    counted, rng = Run(), np.random.default_rng(0)
    for number in (1, 2, 3):
        local = [fronts.download(k, number, counted) for k in (number, number + 1)]
        for own in local:
            with torch.no_grad():
                for parameter in own.half.trained:
                    parameter.add_(torch.from_numpy(rng.normal(size=parameter.shape).astype(np.float32)), alpha=1e-3)
        fronts.aggregate(local, number, counted)
    trained = np.concatenate([np.full(s.size, s.kind is not Kind.BUFFER) for s in fronts.layout.segments])
    assert np.allclose(fronts.server.h[trained], sum(fronts.duals.values())[trained], atol=1e-12)
    assert set(fronts.duals) == {1, 2, 3, 4} and set(counted.kinds) == {"front half down", "front half up"}
    for k, state in fronts.states.items():
        pending = fronts.ledgers[k].pending
        assert any(bytes.fromhex(state.id) in data for data in pending)


def test_what_was_promised_holds_at_sixty_times_and_one_point():
    split = [run(600.0, 0.5, 0.97), run(600.0, 0.5, 0.95)]
    assert all(bounds({"split": split, "ours": [run(10.0, 0.4, 0.951)]}).values())
    assert list(bounds({"split": split, "ours": [run(10.1, 0.4, 0.96)]}).values()) == [False, True]
    assert list(bounds({"split": split, "ours": [run(9.0, 0.4, 0.949)]}).values()) == [True, False]
    assert bounds({"split": split}) == {}


def test_bytes_to_an_accuracy_are_those_until_it_was_first_seen():
    assert bytes_to(run(10.0, 0.5, 0.96, 0.9, 0.97), 0.95) == 20 and bytes_to(run(10.0, 0.5), 0.95) is None
    lines = table({"split": [run(600.0, 0.5, 0.96)], "ours": [run(10.0, 0.94)]})
    assert "| ours | 0.9400 | 0.940 | 10 | 60.0 | 30.0 | 1e-05 | never |" in lines
