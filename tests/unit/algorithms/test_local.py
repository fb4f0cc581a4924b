from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedge import seeds
from fedge.algorithms.base import LocalTerms
from fedge.algorithms.local import LocalSpec, evaluate, train
from fedge.errors import AlgorithmError, TaskError
from fedge.layout import Layout, Vector
from fedge.tasks.base import Dataset
from fedge.tasks.torch_model import get_params, initialise, layout_of

NONE = LocalTerms(0.0)


@dataclass(frozen=True)
class Regression:
    """Least squares, so that a step can be written out by hand."""

    name: str = "regression"
    normed: bool = False

    def model(self, seed: int) -> nn.Module:
        layers = [nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1)]
        return initialise(nn.Sequential(*layers) if self.normed else nn.Linear(8, 1), seed)

    def train_data(self, options: Mapping[str, object]) -> Dataset:
        rng = np.random.default_rng(0)
        inputs = rng.normal(size=(30, 8))
        return Dataset(inputs, inputs @ rng.normal(size=(8, 1)) + 1)

    def test_data(self) -> Dataset | None:
        return self.train_data({})

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs - targets) ** 2).mean()

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        return {"error": float((outputs - targets).abs().mean())}


TASK, NORMED = Regression(), Regression(normed=True)
DATA = TASK.train_data({})


def prepared(task: Regression) -> tuple[nn.Module, Layout, Vector]:
    model = task.model(7)
    layout = layout_of(model)
    return model, layout, get_params(model, layout)


def run(task: Regression, spec: LocalSpec, terms: LocalTerms = NONE, **options):
    model, layout, anchor = prepared(task)
    return train(task, model, DATA, anchor, layout, terms, spec, options.pop("seed", 3), **options)


def by_hand(anchor: Vector, spec: LocalSpec, terms: LocalTerms, seed: int) -> np.ndarray:
    """The module's equations on the linear model, in float64: eight weights, then the bias."""
    inputs, x = np.c_[DATA.inputs, np.ones(30)], anchor.astype(np.float64)
    for epoch in range(spec.epochs):
        order = seeds.permutation(seeds.derive(seed, epoch), 30)
        for start in range(0, 30, spec.batch_size):
            rows = order[start : start + spec.batch_size]
            gradient = 2 * inputs[rows].T @ (inputs[rows] @ x - DATA.targets[rows, 0]) / len(rows)
            gradient += terms.pull * (x - anchor + (0 if terms.dual is None else terms.dual))
            if spec.clip_norm is not None:
                gradient *= min(1, spec.clip_norm / np.linalg.norm(gradient))
            x -= spec.learning_rate * (gradient + spec.weight_decay * x)
    return x - anchor


@pytest.mark.parametrize("clip_norm", [None, 0.5])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("terms", [NONE, LocalTerms(0.3), LocalTerms(0.3, np.linspace(-1, 1, 9))])
def test_training_is_the_written_equations(terms, weight_decay, clip_norm):
    spec = LocalSpec(3, 8, 0.05, weight_decay, clip_norm)
    _, _, anchor = prepared(TASK)
    result = run(TASK, spec, terms)
    np.testing.assert_allclose(result.delta, by_hand(anchor, spec, terms, 3), rtol=1e-4, atol=1e-6)
    assert (result.num_examples, result.steps, result.completed) == (30, 12, True)
    assert result.delta.dtype == np.float32


def with_torchs_adam(anchor: Vector, spec: LocalSpec, terms: LocalTerms, seed: int) -> np.ndarray:
    """The module's equations on the linear model with the steps of torch.optim.Adam, in float64."""
    inputs, targets = torch.from_numpy(np.c_[DATA.inputs, np.ones(30)]), torch.from_numpy(DATA.targets[:, 0])
    centre = torch.from_numpy(anchor).double()
    x = centre.clone().requires_grad_()
    adam = torch.optim.Adam([x], lr=spec.learning_rate, weight_decay=spec.weight_decay)
    for epoch in range(spec.epochs):
        order = seeds.permutation(seeds.derive(seed, epoch), 30)
        for start in range(0, 30, spec.batch_size):
            rows = order[start : start + spec.batch_size]
            pulled = terms.pull / 2 * ((x - centre + (0 if terms.dual is None else torch.from_numpy(terms.dual))) ** 2)
            adam.zero_grad()
            torch.autograd.backward(((inputs[rows] @ x - targets[rows]) ** 2).mean() + pulled.sum())
            if spec.clip_norm is not None:
                nn.utils.clip_grad_norm_([x], spec.clip_norm)
            adam.step()
    return (x.detach() - centre).numpy()


@pytest.mark.parametrize("clip_norm", [None, 0.5])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("terms", [NONE, LocalTerms(30.0, np.linspace(-1, 1, 9))])
def test_adam_takes_the_steps_of_torchs_adam(terms, weight_decay, clip_norm):
    spec = LocalSpec(3, 8, 0.05, weight_decay, clip_norm, "adam")
    _, _, anchor = prepared(TASK)
    expected = with_torchs_adam(anchor, spec, terms, 3)
    np.testing.assert_allclose(run(TASK, spec, terms).delta, expected, rtol=1e-3, atol=1e-5)


def test_adam_starts_every_run_without_moments():
    spec = LocalSpec(2, 8, 0.05, optimizer="adam")
    assert run(TASK, spec).delta.tobytes() == run(TASK, spec).delta.tobytes()


def test_a_local_optimum_is_left_alone_whatever_the_clip():
    """There ∇L + pull·(x - anchor + dual) is 0; clipping only a part of it would move x."""
    _, _, anchor = prepared(TASK)
    inputs = np.c_[DATA.inputs, np.ones(30)]
    dual = -2 * inputs.T @ (inputs @ anchor - DATA.targets[:, 0]) / 30 / 0.1
    result = run(TASK, LocalSpec(5, 30, 0.1, clip_norm=1e-2), LocalTerms(0.1, dual))
    assert np.abs(result.delta).max() < 1e-5


def test_a_pull_stronger_than_the_learning_rate_allows_leads_to_its_point_and_not_past_it():
    dual = np.linspace(-1, 1, 9)
    result = run(TASK, LocalSpec(10, 8, 0.1), LocalTerms(1000.0, dual))
    np.testing.assert_allclose(result.delta, -dual, atol=0.02)


def test_half_precision_is_not_trained():
    model = TASK.model(7).bfloat16()
    layout = layout_of(model)
    anchor = get_params(model, layout)
    with pytest.raises(TaskError, match=r"expected parameters of float32, got \['torch.bfloat16'\]"):
        train(TASK, model, DATA, anchor, layout, NONE, LocalSpec(1, 8, 0.1), seed=0)


def test_the_same_seed_gives_the_same_bits_and_another_one_does_not():
    torch.set_num_threads(1)
    spec = LocalSpec(2, 8, 0.05)
    first = run(NORMED, spec).delta
    torch.manual_seed(99)
    assert run(NORMED, spec).delta.tobytes() == first.tobytes()
    assert run(NORMED, spec, seed=4).delta.tobytes() != first.tobytes()


def test_training_leaves_torchs_own_generator_alone():
    model, layout, anchor = prepared(NORMED)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train(NORMED, model, DATA, anchor, layout, NONE, LocalSpec(1, 8, 0.05), seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_statistics_report_what_they_changed_by_and_feel_no_pull():
    model, layout, anchor = prepared(NORMED)
    terms = LocalTerms(0.1, np.full(layout.size, 5.0))
    result = train(NORMED, model, DATA, anchor, layout, terms, LocalSpec(2, 10, 0.01), seed=3)
    changes = layout.unpack(result.delta)
    assert changes["1.num_batches_tracked"] == 6
    np.testing.assert_allclose(anchor + result.delta, get_params(model, layout), atol=1e-6)
    assert np.abs(changes["1.running_mean"]).max() < 2


def test_progress_is_told_after_every_epoch_with_a_falling_loss():
    told: list[tuple[int, float]] = []
    result = run(TASK, LocalSpec(4, 8, 0.05), on_progress=lambda *args: told.append(args))
    assert [epoch for epoch, _ in told] == [0, 1, 2, 3]
    assert told[0][1] > told[3][1] == result.loss


def test_a_run_that_is_told_to_stop_stops_before_its_next_step():
    asked = iter([False, False, True])
    result = run(TASK, LocalSpec(4, 8, 0.05), should_stop=lambda: next(asked))
    assert (result.steps, result.completed) == (2, False)


def test_a_run_that_diverges_says_so():
    with pytest.raises(TaskError, match=r"training diverged, epoch \d+ has loss (nan|inf)"):
        run(TASK, LocalSpec(200, 8, 1e6))


def test_no_examples_are_refused():
    model, layout, anchor = prepared(TASK)
    nothing = Dataset(DATA.inputs[:0], DATA.targets[:0])
    with pytest.raises(TaskError, match="at least 1 training example"):
        train(TASK, model, nothing, anchor, layout, NONE, LocalSpec(1, 8, 0.1), seed=0)
    with pytest.raises(TaskError, match="at least 1 test example"):
        evaluate(TASK, model, anchor, layout, nothing)


def test_evaluation_is_the_mean_over_examples_whatever_the_batches(monkeypatch):
    model, layout, anchor = prepared(NORMED)
    whole = evaluate(NORMED, model, anchor, layout, DATA)
    monkeypatch.setattr("fedge.algorithms.local.EVALUATION_BATCH", 7)
    assert evaluate(NORMED, model, anchor, layout, DATA) == pytest.approx(whole, rel=1e-5)
    assert set(whole) == {"error", "loss"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((0, 8, 0.1), "at least 1 epoch .* got 0 epochs"),
        ((1, 0, 0.1), "got 1 epochs, batch_size 0"),
        ((1, 8, 0.0), "expected learning_rate > 0"),
        ((1, 8, float("nan")), "expected learning_rate > 0 .* got nan"),
        ((1, 8, 0.1, -1.0), "weight_decay >= 0, got 0.1 and -1.0"),
        ((1, 8, 0.1, 0.0, 0.0), "clip_norm above 0 or none, got 0.0"),
        ((1, 8, 0.1, 0.0, None, "lion"), "an optimizer, sgd or adam, got 'lion'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(AlgorithmError, match=message):
        LocalSpec(*settings)
