"""The gradient correction, against torch's autograd and against how it goes wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedge.errors import CodecError
from fedge.split import Coding, Memory, Options, Shared, Start, answer, correct, quantize, receive
from fedge.split.fedlite import cap, corrected, ramp, relative, strength

B, D, Q = 10, 48, 12


def activations(seed: int = 0, dtype: type = np.float32) -> np.ndarray:
    return np.maximum(np.random.default_rng(seed).normal(size=(B, D)), 0).astype(dtype)


def clusters(z: np.ndarray) -> np.ndarray:
    """Return the cluster of every subvector, ``[B, q]``."""
    return receive(
        quantize(z.astype(np.float32), Options(Q, centroids=4), 0, 1).data, Options(Q, centroids=4)
    ).message.index.T


def means(z: Tensor, index: np.ndarray) -> Tensor:
    """Return z~ with centroids that are means of their clusters, as a function of z."""
    vectors, which = z.reshape(-1, D // Q), torch.from_numpy(index.reshape(-1).astype(np.int64))
    sums = torch.zeros(4, D // Q, dtype=z.dtype).index_add(0, which, vectors)
    counts = torch.bincount(which, minlength=4).clamp(min=1)
    return (sums / counts[:, None])[which].reshape(z.shape)


def test_the_correction_is_the_gradient_of_the_distortion_although_centroids_depend_on_z():
    z, lam = torch.from_numpy(activations(dtype=np.float64)).requires_grad_(), 0.7
    restored = means(z, clusters(z.detach().numpy()))
    (lam / 2 * (z - restored).square().sum(1).mean()).backward()
    own = corrected(np.zeros((B, D)), z.detach().numpy(), restored.detach().numpy(), lam)
    assert np.abs(own - z.grad.numpy()).max() < 1e-12


def test_gradient_and_correction_are_autograds_of_the_papers_objective():
    torch.manual_seed(0)
    back, lam = nn.Sequential(nn.Linear(D, 16), nn.Tanh(), nn.Linear(16, 3)).double(), 0.02
    targets = torch.arange(B) % 3
    z = torch.from_numpy(activations(dtype=np.float64)).requires_grad_()
    restored = means(z, clusters(z.detach().numpy()))
    straight = z + (restored - z).detach()
    loss = nn.functional.cross_entropy(back(straight), targets)
    (loss + lam / 2 * (z - restored).square().sum(1).mean()).backward()
    cut = restored.detach().requires_grad_()
    nn.functional.cross_entropy(back(cut), targets).backward()
    own = corrected(cut.grad.numpy(), z.detach().numpy(), restored.detach().numpy(), lam)
    assert np.abs(own - z.grad.numpy()).max() < 1e-6


def test_the_true_derivative_is_the_mean_of_the_gradient_over_each_cluster_and_not_what_is_sent():
    torch.manual_seed(0)
    back = nn.Sequential(nn.Linear(D, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    targets, index = torch.arange(B) % 3, clusters(activations())
    z = torch.from_numpy(activations(dtype=np.float64)).requires_grad_()
    nn.functional.cross_entropy(back(means(z, index)), targets).backward()
    cut = means(z, index).detach().requires_grad_()
    nn.functional.cross_entropy(back(cut), targets).backward()
    gradient = cut.grad
    averaged = means(gradient, index)
    assert (z.grad - averaged).abs().max() < 1e-12
    assert torch.linalg.norm(averaged) < 0.5 * torch.linalg.norm(gradient)


def test_the_factor_of_a_batch_mean_counts():
    z, restored = activations(1), activations(2)
    zero = np.zeros((B, D), np.float32)
    assert np.allclose(corrected(zero, z, restored, 0.5), 0.05 * (z - restored))
    with_the_mistake = zero + np.float32(0.5) * (z - restored)  # λ without 1/B
    assert np.linalg.norm(with_the_mistake) == pytest.approx(B * np.linalg.norm(corrected(zero, z, restored, 0.5)))


def problem(seed: int) -> tuple[Tensor, Tensor]:
    """Two noisy XORs among six inputs make four classes: nothing that a random front half would give away."""
    rng = np.random.default_rng(seed)
    x = rng.choice([-1.0, 1.0], (400, 6))
    y = (x[:, 0] * x[:, 1] > 0) * 2 + (x[:, 2] * x[:, 3] > 0)
    inputs = x + 0.1 * rng.normal(size=x.shape)
    return torch.from_numpy(inputs.astype(np.float32)), torch.from_numpy(y.astype(np.int64))


def network() -> tuple[nn.Module, nn.Module]:
    front = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
    return front, nn.Linear(32, 4)


def train(mistake: str, steps: int = 200) -> float:
    """Return the accuracy of a network whose front half was trained, with a mistake or not, on a back that stays."""
    torch.manual_seed(1)
    front, back = network()
    inputs, targets = problem(0)
    options = Options.paper(16, centroids=8, correction=1e-3)
    optimizer = torch.optim.SGD(front.parameters(), lr=0.5)
    for step in range(steps):
        rows = torch.from_numpy(np.random.default_rng(step).choice(400, 50, replace=False))
        z = front(inputs[rows])
        numbers = z.detach().numpy()
        made = quantize(numbers, options, step, step)
        received = receive(made.data, options)
        cut = torch.from_numpy(received.restored).requires_grad_()
        optimizer.zero_grad()
        nn.functional.cross_entropy(back(cut), targets[rows]).backward()
        gradient = cut.grad.numpy()
        if mistake == "centroid gradient":
            index = torch.from_numpy(received.message.index.T.reshape(-1).astype(np.int64))
            parts = torch.from_numpy(gradient).reshape(-1, 2)
            sums = torch.zeros(8, 2).index_add(0, index, parts)
            counts = torch.bincount(index, minlength=8).clamp(min=1)[:, None]
            gradient = (sums / counts)[index].reshape(gradient.shape).numpy()
        dz = correct(answer(gradient, options, step), numbers, received.restored, options, step)
        z.backward(torch.from_numpy(dz))
        optimizer.step()
    with torch.no_grad():
        return float((back(front(inputs)).argmax(1) == targets).float().mean())


def test_training_on_the_gradient_of_centroids_stalls_where_ours_learns():
    right, wrong = train(""), train("centroid gradient")
    assert right > 0.95 and wrong < 0.6


def test_a_relative_correction_does_not_depend_on_the_scale_of_activations():
    z, restored, gradient = activations(1), activations(2), activations(3)
    options = Options(Q, correction=0.1, relative=True)
    lam = strength(gradient, z, restored, options, 0)
    for scale in (1e-3, 1e3):
        own = strength(gradient, scale * z, scale * restored, options, 0)
        assert np.allclose(own * scale, lam, rtol=1e-4)
    term = lam / B * (z - restored)
    share = np.linalg.norm(term, axis=1).mean() / np.linalg.norm(gradient, axis=1).mean()
    assert share == pytest.approx(0.1, rel=1e-5)


def test_a_cap_bounds_the_correction_by_the_gradient_and_leaves_a_small_one_alone():
    z, restored, gradient = activations(1), activations(2), 1e-4 * activations(3)
    tight = strength(gradient, z, restored, Options(Q, correction=10, cap=0.5), 0)
    assert np.linalg.norm(tight / B * (z - restored)) == pytest.approx(0.5 * np.linalg.norm(gradient), rel=1e-5)
    assert strength(gradient, z, restored, Options(Q, correction=1e-9, cap=0.5), 0) == 1e-9


def test_a_ramp_ends_where_it_should_and_nothing_divides_by_zero():
    assert [ramp(step, 4) for step in (0, 1, 3, 4, 100)] == [0.25, 0.5, 1, 1, 1] and ramp(0, 0) == 1
    z, zero = activations(1), np.zeros(B, np.float32)
    assert relative(0.1, zero + 1, zero) == 0 == cap(0.5, zero + 1, zero)
    for options in (Options(Q, relative=True), Options(Q, cap=0.5)):
        assert strength(z, z, z, options, 0) == 0


@pytest.mark.parametrize("start", Start)
@pytest.mark.parametrize("coding", Coding)
@pytest.mark.parametrize("codebook_bits", [8, 32])
def test_both_ends_have_the_same_numbers_with_every_switch(start, coding, codebook_bits):
    options = Options(
        Q, 3, 4, start=start, coding=coding, codebook_bits=codebook_bits, refresh_steps=2, least_members=2
    )
    memory, shared = Memory(options.shape(B, D)), None
    for step in range(4):
        made = quantize(activations(step), options, step, step, shared)
        again = quantize(activations(step), options, step, step, shared)
        given = None if shared is None else Shared.from_bytes(shared.to_bytes(), D)
        received = receive(made.data, options, given)
        assert made.data == again.data and received.restored.tobytes() == made.restored.tobytes()
        book = received.message.codebook
        sent = start is not Start.SHARED or step % 2 == 0
        assert (len(book.data) > 0) == sent
        memory = memory.after([(book.centroids if sent else None, received.message.index)])
        shared = memory.publish(model=coding is Coding.SHARED)


def test_without_a_shared_state_a_device_says_all_there_is_to_say():
    for options in (Options(Q, start=Start.SHARED), Options(Q, start=Start.WARM), Options(Q, coding=Coding.SHARED)):
        made = quantize(activations(), options, 1, 1)
        assert receive(made.data, options).restored.tobytes() == made.restored.tobytes()


def test_a_message_by_other_options_or_for_another_batch_is_refused():
    options = Options(Q, centroids=4)
    made = quantize(activations(), options, 0, 1)
    with pytest.raises(CodecError, match="expected q 12, R 1, L 2, got q 12, R 1, L 4"):
        receive(made.data, Options(Q, centroids=2))
    with pytest.raises(CodecError, match="expected 479 activations or fewer, got 10 x 48"):
        receive(made.data, options, most_values=479)
    with pytest.raises(CodecError, match="expected activations of shape"):
        quantize(activations()[0], options, 0, 1)
    with pytest.raises(CodecError, match="divide 48 values"):
        quantize(activations(), Options(7), 0, 1)
    with pytest.raises(CodecError, match=r"expected gradients of shape \(10, 48\), got \(5, 96\)"):
        correct(answer(activations().reshape(5, 96), options, 1), activations(), made.restored, options, 0)
