"""A step of split training, held to the same step of the whole model."""

from __future__ import annotations

import copy
import weakref

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedge import seeds
from fedge.algorithms.split import BackHalf, FrontHalf, descend, split_step
from fedge.errors import CodecError, TaskError
from fedge.split import Coding, Memory, Options, Start
from fedge.tasks.split_model import Halves, cut
from fedge.tasks.torch_model import get_params, initialise, layout_of

LOSS = nn.functional.cross_entropy


def model(dropout: float = 0.0) -> nn.Sequential:
    layers = [nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Dropout(dropout), nn.Flatten(), nn.Linear(288, 16), nn.ReLU()]
    initialise(whole := nn.Sequential(*layers, nn.Linear(16, 3)), 1)
    return whole


def batches(sizes: tuple[int, ...] = (5, 5, 5), seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Three kinds of stripes, in noise."""
    rng, found = np.random.default_rng(seed), []
    for size in sizes:
        labels = rng.integers(0, 3, size)
        stripes = np.arange(8) % 3 == labels[:, None]
        pictures = stripes[:, None, None, :] + 0.3 * rng.normal(size=(size, 1, 8, 8))
        found.append((torch.from_numpy(pictures.astype(np.float32)), torch.from_numpy(labels)))
    return found


def params(whole: nn.Module) -> np.ndarray:
    return get_params(whole, layout_of(whole))


@pytest.mark.parametrize("sizes", [(5, 5, 5), (2, 7)])
def test_uncompressed_split_training_is_sgd_on_the_mean_of_the_devices_losses(sizes):
    whole, other = model(), model()
    for step in range(3):
        own = batches(sizes, step)
        done = split_step(cut(whole, "3"), LOSS, own, None, 0.1, step, 7)
        loss = torch.stack([LOSS(other(inputs), targets) for inputs, targets in own]).mean()
        grads = torch.autograd.grad(loss, list(other.parameters()))
        descend(list(other.parameters()), grads, 0.1)
        assert np.mean(done.losses) == pytest.approx(loss.item(), rel=1e-5)
    assert np.abs(params(whole) - params(other)).max() < 1e-6


def test_a_compressed_step_is_the_gradient_of_the_papers_objective():
    whole, other, lam, own = model(), model(), 0.5, batches((6, 6))
    options = Options.paper(36, centroids=4, correction=lam)
    split_step(cut(whole, "3"), LOSS, own, options, 0.1, 0, 7)
    # The same codebooks, from a second pair of halves that takes no step.
    parts, losses = cut(other, "3"), []
    back = BackHalf(parts.back, LOSS, (8, 6, 6), options)
    for k, (inputs, targets) in enumerate(own):
        data = FrontHalf(parts.front, options).forward(inputs, 0, seeds.derive(7, 0, k))
        restored = torch.from_numpy(back.receive(data)[0]).view(-1, 8, 6, 6)
        z = parts.front(inputs)
        straight = z + (restored - z).detach()
        losses.append(LOSS(parts.back(straight), targets) + lam / 2 * (z - restored).square().flatten(1).sum(1).mean())
    grads = torch.autograd.grad(torch.stack(losses).mean(), list(other.parameters()))
    descend(list(other.parameters()), grads, 0.1)
    assert np.abs(params(whole) - params(other)).max() < 1e-6


@pytest.mark.parametrize("options", [None, Options(36, centroids=4)])
def test_a_device_that_keeps_no_tape_has_the_same_gradient(options):
    parts, own = cut(model(dropout=0.5), "3"), batches((5,))[0]
    back, found = BackHalf(parts.back, LOSS, (8, 6, 6), options), []
    before = copy.deepcopy(parts.back.state_dict())
    for keeps_tape in (True, False):
        parts.back.load_state_dict(before)
        front = FrontHalf(parts.front, options, keeps_tape)
        data = front.forward(own[0], 0, 3)
        (answer,), _ = back.step([(back.receive(data)[0], own[1])], 0.1, 5)
        found.append((data, front.backward(answer)))
    assert found[0][0] == found[1][0] and np.allclose(found[0][1], found[1][1], atol=1e-7)


@pytest.mark.parametrize(
    "options",
    [
        Options(36, centroids=4, correction=1e-2),
        Options(36, 2, 4, correction=1e-2, start=Start.WARM, coding=Coding.SHARED),
        Options(36, centroids=4, correction=0.1, relative=True, start=Start.SHARED, gradient_bits=2),
        Options(36, centroids=8, correction=1e-2, ramp_steps=20, cap=0.5, least_members=5),
    ],
)
def test_compressed_training_learns_with_every_switch(options):
    whole = model()
    memory, shared, last = Memory(options.shape(10, 288)), None, []
    for step in range(60):
        done = split_step(cut(whole, "3"), LOSS, batches((10, 10, 10), step), options, 0.1, step, 7, shared, memory)
        memory = done.memory
        shared = memory.publish(model=options.coding is Coding.SHARED)
        last.append(np.mean(done.losses))
        assert max(done.bytes_up) < 4 * 10 * 288 / 10 and max(done.bytes_down) < 4 * 10 * 288 / 7
    inputs, targets = batches((300,), 1000)[0]
    assert float((whole(inputs).argmax(1) == targets).float().mean()) > 0.9, last


def test_a_clipped_step_moves_neither_half_further_than_the_bound():
    own, moved = batches((5, 5)), {}
    for most in (None, 1e6, 1e-2):
        whole = model()
        before = params(whole)
        split_step(cut(whole, "3"), LOSS, own, Options.paper(36, centroids=4), 1.0, 0, 7, clip_norm=most)
        moved[most] = params(whole) - before
    front = sum(tensor.numel() for tensor in cut(model(), "3").front.parameters())
    assert np.array_equal(moved[None], moved[1e6])
    for part in (slice(front), slice(front, None)):
        bounded, free = np.linalg.norm(moved[1e-2][part]), np.linalg.norm(moved[None][part])
        assert 0 < bounded < 1.001e-2 < free


def test_the_same_seed_trains_to_the_same_bits():
    found = []
    for _ in range(2):
        whole = model(dropout=0.3)
        for step in range(3):
            split_step(cut(whole, "3"), LOSS, batches((5, 5), step), Options(36), 0.1, step, 7)
        found.append(params(whole).tobytes())
    assert found[0] == found[1]


def test_an_answer_comes_once_and_one_that_is_none_leaves_the_batch_waiting():
    parts, (inputs, targets) = cut(model(), "3"), batches((5,))[0]
    options = Options(36)
    front, back = FrontHalf(parts.front, options), BackHalf(parts.back, LOSS, (8, 6, 6), options)
    with pytest.raises(TaskError, match="expected a batch that waits"):
        front.backward(b"")
    (answer,), _ = back.step([(back.receive(front.forward(inputs, 0, 1))[0], targets)], 0.1, 1)
    with pytest.raises(CodecError):
        front.backward(answer[:-1])
    front.backward(answer)
    with pytest.raises(TaskError, match="expected a batch that waits"):
        front.backward(answer)


def test_neither_activations_nor_what_is_sent_of_them_are_there_while_gradients_are_computed():
    class Watched(nn.Module):
        """Keeps nothing of its outputs itself, and looks what else does."""

        def forward(self, x: Tensor) -> Tensor:
            x.register_hook(lambda _: alive.append([one() for one in watched if one() is not None]))
            made = x.clone()
            watched.append(weakref.ref(made))
            return made

    alive, watched, options = [], [], Options(36)
    parts, (inputs, targets) = cut(model(), "3"), batches((5,))[0]
    back = BackHalf(parts.back, LOSS, (8, 6, 6), options)
    front = FrontHalf(nn.Sequential(parts.front, Watched()), options)
    restored = back.receive(front.forward(inputs, 0, 1))[0]
    watched.append(weakref.ref(front._pending.restored))
    (answer,), _ = back.step([(restored, targets)], 0.1, 1)
    front.backward(answer)
    assert alive == [[]]


def test_activations_of_another_model_are_refused():
    options = Options(4)
    data = FrontHalf(nn.Linear(4, 8), options).forward(torch.rand(3, 4), 0, 1)
    back = BackHalf(nn.Linear(16, 2), LOSS, (16,), options)
    with pytest.raises(CodecError, match="expected 16 activations an example, got 8"):
        back.receive(data)
    with pytest.raises(CodecError, match="expected whole examples of 16 float32, got 63 bytes"):
        BackHalf(nn.Linear(16, 2), LOSS, (16,), None).receive(bytes(63))


def test_a_loss_that_is_not_finite_changes_nothing():
    parts: Halves = cut(model(), "3")
    before = params(parts.back)
    back = BackHalf(parts.back, lambda outputs, targets: outputs.sum() * float("nan"), (8, 6, 6), None)
    with pytest.raises(TaskError, match="diverged"):
        back.step([(np.zeros((2, 288), np.float32), torch.zeros(2))], 0.1, 1)
    assert (params(parts.back) == before).all()
