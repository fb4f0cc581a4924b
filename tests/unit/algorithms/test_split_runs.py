"""A round's split training, both ends in this process: ``FrontRun`` and ``BackRun``."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

from fedge.algorithms.back import BackRun, Sent
from fedge.algorithms.base import LocalTerms
from fedge.algorithms.front import FrontRun
from fedge.algorithms.local import LocalSpec, train
from fedge.errors import AlgorithmError, TaskError
from fedge.split import Coding, Options, Shared, Start, quantize, write_labels
from fedge.tasks.base import Dataset
from fedge.tasks.split_model import Halves, cut, halved
from fedge.tasks.torch_model import get_params, initialise

SPEC = LocalSpec(epochs=2, batch_size=8, learning_rate=0.1, weight_decay=1e-3)
OPTIONS = Options(subvectors=8, centroids=4)
MOST = 1 << 12


@dataclass(frozen=True)
class Blobs:
    """Points around three centres; a network with a norm on either side of the cut."""

    name: str = "blobs"

    def model(self, seed: int) -> nn.Module:
        layers = (nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16), nn.BatchNorm1d(16), nn.ReLU())
        return initialise(nn.Sequential(*layers, nn.Linear(16, 3)), seed)

    def split(self, model: nn.Module) -> Halves:
        return cut(model, "3", example=torch.zeros(2, 6))

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs, targets)


TASK = Blobs()


def blobs(count: int = 40, seed: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 3, count)
    return Dataset((3 * np.eye(3, 6)[targets] + rng.normal(size=(count, 6))).astype(np.float32), targets)


def model():
    whole = TASK.model(1)
    return whole, halved(TASK, whole)


def anchor():
    whole, parts = model()
    return np.concatenate([get_params(whole, parts.layout)])


def front(options=None, data=None, spec=SPEC, terms=None, **more):
    parts = model()[1]
    whole = anchor()
    return FrontRun(
        parts, data or blobs(), whole[: parts.layout.front.size], terms or LocalTerms(0.0), spec, options, 5, **more
    )


def back(options=None, spec=SPEC, terms=None):
    return BackRun(model()[1], TASK.loss, anchor(), terms or LocalTerms(0.0), spec, options, 6, MOST)


def exchange(run, server, devices=1):
    """Take one step of one device."""
    batch = run.forward(server.shared)
    (outcome,) = server.step([Sent("a", run.next, batch.activations, batch.labels)], devices)
    assert not outcome.refusal
    run.backward(outcome.answer, outcome.loss)


def test_one_device_uncompressed_trains_as_if_it_had_the_whole_model():
    parts, whole = model()[1], anchor()
    dual = np.random.default_rng(3).normal(size=whole.size).astype(np.float32) * 0.01
    terms, count = LocalTerms(0.05, dual), parts.layout.front.size
    expected = train(TASK, model()[0], blobs(), whole, parts.layout, terms, SPEC, 5)
    run, server = front(terms=LocalTerms(0.05, dual[:count])), back(terms=terms)
    while run.next < run.steps:
        exchange(run, server)
    got = server.delta
    got[:count] = run.delta
    np.testing.assert_allclose(got, expected.delta, rtol=1e-4, atol=1e-6)
    assert run.loss == pytest.approx(expected.loss, abs=0.05)


def test_a_run_that_is_taken_up_again_sends_the_same_bytes():
    options = replace(OPTIONS, start=Start.WARM)
    run, server = front(options), back(options)
    for _ in range(3):
        exchange(run, server)
    again = front(options)
    again.resume(run.next, run.params)
    assert again.forward(server.shared) == run.forward(server.shared)


def test_how_devices_come_together_changes_little():
    spec, data = replace(SPEC, learning_rate=0.01, epochs=3), [blobs(seed=k) for k in range(4)]

    def federate(together):
        runs, server = [front(data=one, spec=spec) for one in data], back(spec=spec)
        while runs[0].next < runs[0].steps:
            batches = [run.forward() for run in runs]
            sent = [Sent(str(k), runs[k].next, one.activations, one.labels) for k, one in enumerate(batches)]
            groups = [sent] if together else [[one] for one in sent]
            outcomes = [outcome for group in groups for outcome in server.step(group, len(runs))]
            for run, outcome in zip(runs, outcomes, strict=True):
                run.backward(outcome.answer, outcome.loss)
        return model()[1].layout.trained(server.delta)

    together, apart = federate(True), federate(False)
    assert np.linalg.norm(together - apart) < 0.1 * np.linalg.norm(together)


@pytest.mark.parametrize(
    "activations, labels",
    [
        (b"", b""),
        (b"\xff" * 40, b"\x01\x03\x02\x00\x08\x00\x00\x00"),
        (np.full((8, 32), np.nan, np.float32).tobytes(), write_labels(np.zeros(8, int), 2)),
        (np.ones((8, 32), np.float32).tobytes(), write_labels(np.full(8, 3), 2)),
        (np.ones((8, 32), np.float32).tobytes(), write_labels(np.zeros(7, int), 2)),
        (np.full((8, 32), 3e38, np.float32).tobytes(), write_labels(np.zeros(8, int), 2)),
    ],
    ids=["nothing", "noise", "nan", "no class", "too few labels", "overflow"],
)
def test_a_batch_that_is_none_is_refused_and_the_others_are_not_touched(activations, labels):
    def step(extra):
        run, server = front(), back()
        good = run.forward()
        outcomes = server.step([Sent("good", 0, good.activations, good.labels), *extra], 2)
        return outcomes, server.delta

    alone, beside = step([]), step([Sent("bad", 0, activations, labels)])
    assert beside[0][1].refusal and not beside[0][1].answer
    assert beside[0][0] == alone[0][0]
    trained = [t for t in model()[1].layout.tensors if t.kind.value != "buffer"]
    offsets = model()[1].layout.offsets
    for tensor in trained:
        part = slice(offsets[tensor.name], offsets[tensor.name] + tensor.size)
        np.testing.assert_array_equal(beside[1][part], alone[1][part])


def test_activations_of_no_model_move_the_back_half_by_a_bounded_step():
    spec = replace(SPEC, clip_norm=1.0, weight_decay=0.0)
    server = back(spec=spec)
    wild = (np.random.default_rng(0).normal(size=(8, 32)) * 1e4).astype(np.float32)
    server.step([Sent("a", 0, wild.tobytes(), write_labels(np.zeros(8, int), 2))], 4)
    layout = model()[1].layout
    moved = layout.trained(server.delta)
    assert np.linalg.norm(moved) <= 1.01 * spec.learning_rate * 1.0 / 4


def test_every_message_is_read_with_the_state_it_was_made_with():
    options = replace(OPTIONS, coding=Coding.SHARED, start=Start.SHARED)
    slow, fast, server = front(options, blobs(seed=1)), front(options), back(options)
    exchange(slow, server)
    late = slow.forward(server.shared)
    for _ in range(4):
        exchange(fast, server)
    (outcome,) = server.step([Sent("slow", slow.next, late.activations, late.labels)], 2)
    assert not outcome.refusal


def test_small_batches_are_left_out_where_a_cluster_needs_more():
    run = front(replace(OPTIONS, least_members=8), data=blobs(44))
    assert (run.per_epoch, run.steps) == (5, 10)
    assert front(data=blobs(44)).per_epoch == 6
    with pytest.raises(TaskError, match=r"expected batches of 8 examples or more \(least_members\), got 5 examples"):
        front(replace(OPTIONS, least_members=8), data=blobs(5))


def test_adam_and_targets_that_are_no_class_are_refused():
    with pytest.raises(AlgorithmError, match="expected optimizer sgd, got adam"):
        front(spec=replace(SPEC, optimizer="adam"))
    data = blobs()
    with pytest.raises(TaskError, match="expected targets of one class"):
        front(data=Dataset(data.inputs, data.inputs[:, 0]))


def test_a_liars_codebook_does_not_become_everyones():
    options = replace(OPTIONS, start=Start.SHARED, refresh_steps=1)
    honest = [front(options, blobs(seed=k)) for k in range(4)]
    server = back(options)

    def step(liar):
        sent = []
        for k, run in enumerate(honest):
            made = run.forward(server.shared)
            sent.append(Sent(str(k), run.next, made.activations, made.labels))
        if liar:
            wild = quantize(np.full((8, 32), 1e6, np.float32), options, 0, 1).data
            sent.append(Sent("liar", 0, wild, write_labels(np.zeros(8, int), 2)))
        for run, outcome in zip(honest, server.step(sent, len(sent)), strict=False):
            run.backward(outcome.answer, outcome.loss)
        assert server.shared is not None and server.shared.codebook is not None
        return np.abs(server.shared.codebook).max()

    assert step(liar=False) < 100
    assert step(liar=True) < 100


def test_one_batch_does_not_ruin_running_statistics():
    server, honest = back(), [front(data=blobs(seed=k)) for k in range(3)]
    for _ in range(3):
        sent = []
        for k, run in enumerate(honest):
            made = run.forward()
            sent.append(Sent(str(k), run.next, made.activations, made.labels))
        for run, outcome in zip(honest, server.step(sent, 3), strict=True):
            run.backward(outcome.answer, outcome.loss)
    before = server.delta.copy()
    wild = np.random.default_rng(0).normal(size=(8, 32)).astype(np.float32) * 2**20
    (outcome,) = server.step([Sent("liar", 0, wild.tobytes(), write_labels(np.zeros(8, int), 2))], 4)
    assert not outcome.refusal
    assert np.abs(server.delta - before).max() < 5


def test_a_shared_codebook_that_is_worse_than_nothing_is_not_used():
    options = replace(OPTIONS, start=Start.SHARED)
    z = np.random.default_rng(1).normal(size=(8, 32)).astype(np.float32)
    wild = Shared(options.shape(8, 32), np.full((1, 4, 4), 1e6, np.float32))
    made = quantize(z, options, 1, 1, wild)
    assert np.square(z - made.restored).sum() < np.square(z).sum()
    assert made.data == quantize(z, options, 1, 1).data
