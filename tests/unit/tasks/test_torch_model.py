import hashlib

import numpy as np
import pytest
import torch
from torch import nn

from fedge import seeds
from fedge.errors import LayoutError
from fedge.layout import Kind
from fedge.tasks import torch_model
from fedge.tasks.torch_model import get_params, initialise, layout_of, set_params


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 4))


def test_matrices_are_weights_and_biases_and_norms_are_raw():
    kinds = {tensor.name: tensor.kind for tensor in layout_of(network()).tensors}
    assert kinds == {
        "0.weight": Kind.WEIGHT,
        "0.bias": Kind.RAW,
        "1.weight": Kind.RAW,
        "1.bias": Kind.RAW,
        "1.running_mean": Kind.BUFFER,
        "1.running_var": Kind.BUFFER,
        "1.num_batches_tracked": Kind.BUFFER,
        "3.weight": Kind.RAW,  # 32 values: too few to compress
        "3.bias": Kind.RAW,
    }


def test_what_is_not_trained_is_a_buffer_and_what_is_not_kept_is_left_out():
    model = nn.Linear(20, 10)
    model.weight.requires_grad_(False)
    model.register_buffer("scratch", torch.zeros(3), persistent=False)
    assert [(t.name, t.kind) for t in layout_of(model).tensors] == [("bias", Kind.RAW), ("weight", Kind.BUFFER)]


def test_tied_weights_are_sent_once():
    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10))
    model[1].weight = model[0].weight
    assert layout_of(model).size == 100 + 20


def test_params_set_and_got_are_the_same():
    model = network()
    layout = layout_of(model)
    vector = np.random.default_rng(0).normal(size=layout.size).astype(np.float32)
    vector[layout.offsets["1.num_batches_tracked"]] = 12
    set_params(model, layout, vector)
    assert np.array_equal(get_params(model, layout), vector)
    assert model[1].num_batches_tracked.dtype == torch.int64
    assert model[0].weight.detach().numpy().ravel()[0] == vector[layout.offsets["0.weight"]]


def test_the_vector_is_copied_both_ways():
    model = nn.Linear(20, 10)
    layout = layout_of(model)
    vector = get_params(model, layout)
    vector[:] = 1
    set_params(model, layout, vector)
    vector[:] = 2
    assert float(model.weight.detach().max()) == 1


def test_a_model_of_half_precision_is_carried_in_float32():
    model = nn.Linear(20, 10).bfloat16()
    layout = layout_of(model)
    set_params(model, layout, np.full(layout.size, 0.5, np.float32))
    assert model.weight.dtype == torch.bfloat16
    assert set(get_params(model, layout)) == {0.5}


def test_a_model_of_another_shape_is_refused():
    layout = layout_of(nn.Linear(20, 10))
    with pytest.raises(LayoutError, match=r"'weight': expected shape \[10, 20\], got \[5, 40\]"):
        set_params(nn.Linear(40, 5), layout, np.zeros(210, np.float32))
    with pytest.raises(LayoutError, match="expected a model with tensors"):
        set_params(network(), layout, np.zeros(210, np.float32))


def test_the_first_params_follow_from_the_seed_alone():
    torch.manual_seed(1)
    first = initialise(network(), seed=7)
    torch.manual_seed(2)
    again, other = initialise(network(), seed=7), initialise(network(), seed=8)
    layout = layout_of(first)
    assert get_params(first, layout).tobytes() == get_params(again, layout).tobytes()
    assert get_params(first, layout).tobytes() != get_params(other, layout).tobytes()
    digest = hashlib.blake2b(get_params(first, layout).tobytes(), digest_size=8).hexdigest()
    assert digest == "46f84507e009dcf5"


def test_the_first_params_are_uniform_within_the_root_of_the_inputs():
    model = initialise(nn.Linear(400, 100), seed=0)
    weight, bias = model.weight.detach().numpy().ravel() * 20, model.bias.detach().numpy() * 20
    for values in (weight, bias):
        assert np.abs(values).max() <= 1
        assert abs(values.mean()) < 4 * (1 / 3 / len(values)) ** 0.5
        assert abs((values**2).mean() - 1 / 3) < 4 * (4 / 45 / len(values)) ** 0.5


def test_large_params_are_drawn_in_one_stream(monkeypatch):
    digests = set()
    for at_once in (1, 100, 1 << 20):
        monkeypatch.setattr(torch_model, "_DRAWN_AT_ONCE", at_once)
        model = initialise(nn.Sequential(nn.Linear(40, 100), nn.Conv2d(3, 8, 3)), seed=3)
        digests.add(get_params(model, layout_of(model)).tobytes())
    assert len(digests) == 1
    drawn = (2 * seeds.uniform(seeds.derive(3, "0", "weight"), 4000) - 1) / 40**0.5
    assert (model[0].weight.detach().numpy().ravel() == drawn.astype(np.float32)).all()


def test_norms_keep_what_their_constructor_set():
    model = initialise(network(), seed=0)
    assert model[1].weight.tolist() == [1.0] * 8 and model[1].bias.tolist() == [0.0] * 8
