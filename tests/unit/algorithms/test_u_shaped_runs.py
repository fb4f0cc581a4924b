"""U-shaped split training: front and head on the device, which keeps its labels; both ends in this process."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from fedge.algorithms.back import BackRun, Sent
from fedge.algorithms.base import LocalTerms
from fedge.algorithms.front import FrontRun
from fedge.algorithms.local import LocalSpec, train
from fedge.errors import TaskError
from fedge.split import Options, Start
from fedge.tasks.split_model import Halves, check, cut, halved
from fedge.tasks.torch_model import get_params, initialise
from tests.support.split_task import INPUTS, Rings, examples

SPEC = LocalSpec(epochs=2, batch_size=20, learning_rate=0.1, weight_decay=1e-3)
OPTIONS = Options(subvectors=8, centroids=4, start=Start.WARM, gradient_bits=4.0)


@dataclass(frozen=True)
class UShaped(Rings):
    """Rings whose last layers stay with the labels."""

    def model(self, seed: int) -> nn.Module:
        front = [nn.Linear(INPUTS, 64), nn.ReLU()]
        back = [nn.Linear(64, 48), nn.Dropout(0.1), nn.Unflatten(1, (3, 16))]
        return initialise(nn.Sequential(*front, *back, nn.Conv1d(3, 4, 3), nn.Flatten(), nn.Linear(56, 4)), seed)

    def split(self, model: nn.Module) -> Halves:
        return cut(model, "2", example=torch.zeros(1, INPUTS), until="5")


class Plain(UShaped):
    """The same without dropout."""

    def model(self, seed: int) -> nn.Module:
        model = super().model(seed)
        model[3] = nn.Identity()
        return model


TASK = UShaped()


def pair(options, task=TASK, data=None):
    model = task.model(1)
    parts = halved(task, model)
    whole = get_params(model, parts.layout)
    data = data or examples(3, 80)
    front = FrontRun(parts, data, whole[: parts.layout.front.size], LocalTerms(0.0), SPEC, options, 5, loss=task.loss)
    other = halved(task, task.model(1))
    back = BackRun(other, task.loss, whole, LocalTerms(0.0), SPEC, options, 6, 1 << 12)
    return front, back, whole, parts.layout


def exchange(front, back):
    batch = front.forward(back.shared)
    (outcome,) = back.step([Sent("a", front.next, batch.activations, batch.labels)], 1)
    assert not outcome.refusal, outcome.refusal
    front.backward(outcome.answer, outcome.loss)
    return batch


def test_uncompressed_it_trains_as_if_the_device_had_the_whole_model():
    task = Plain()
    front, back, whole, layout = pair(None, task)
    expected = train(task, task.model(1), examples(3, 80), whole, layout, LocalTerms(0.0), SPEC, 5)
    while front.next < front.steps:
        exchange(front, back)
    got = back.delta
    got[: layout.front.size] = front.delta
    np.testing.assert_allclose(got, expected.delta, rtol=1e-4, atol=1e-6)
    assert front.loss == pytest.approx(expected.loss, rel=1e-3)
    assert front.steps == 2 * front.done == 16


def test_no_label_travels_and_it_learns():
    front, back, _, _ = pair(OPTIONS)
    losses = []
    while front.next < front.steps:
        assert exchange(front, back).labels == b""
        losses.append(front.loss)
    assert losses[-1] < 0.85 * losses[1]


def test_front_and_head_are_the_devices_part_of_the_layout():
    parts = halved(TASK, TASK.model(1))
    assert [tensor.name for tensor in parts.layout.front.tensors] == [
        "0.weight",
        "7.weight",
        "0.bias",
        "5.weight",
        "5.bias",
        "7.bias",
    ]
    check(TASK.model(1), TASK.split(TASK.model(1)), torch.zeros(3, INPUTS))


def test_a_run_is_taken_up_again_at_the_beginning_of_a_step():
    front, back, _, _ = pair(OPTIONS)
    for _ in range(4):
        exchange(front, back)
    kept, shared = front.params, back.shared
    sent = front.forward(shared)
    exchange(front, back)
    again, _, _, _ = pair(OPTIONS)
    again.resume(5, kept)
    assert again.next == 4 and again.forward(shared) == sent


def test_a_gradient_without_its_activations_is_refused():
    front, back, _, _ = pair(OPTIONS)
    exchange(front, back)
    turned = front.forward()
    for step in (3, 1, 1):
        (outcome,) = back.step([Sent("a", step, turned.activations, b"")], 1)
        assert bool(outcome.refusal) == (step != 1) or "expected activations in step 0" in outcome.refusal


def test_a_head_needs_the_loss_and_a_place_behind_the_back_half():
    parts = halved(TASK, TASK.model(1))
    anchor = np.zeros(parts.layout.front.size, np.float32)
    with pytest.raises(TaskError, match="expected the task's loss"):
        FrontRun(parts, examples(1, 20), anchor, LocalTerms(0.0), SPEC, None, 5)
    with pytest.raises(TaskError, match="for the head to begin, got '2'"):
        cut(TASK.model(0), "2", until="2")
