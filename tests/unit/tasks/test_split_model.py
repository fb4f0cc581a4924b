"""Cutting a model in two."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fedge.errors import TaskError
from fedge.tasks.split_model import activation_shape, check, cut, halves
from fedge.tasks.torch_model import initialise, layout_of


def convolutions() -> nn.Sequential:
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 3)]
    initialise(whole := nn.Sequential(*layers), 1)
    return whole


class Knows(nn.Module):
    """A model that says where it is cut."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))

    def front(self) -> nn.Module:
        return nn.Sequential(self.first, nn.ReLU())

    def back(self) -> nn.Module:
        return self.second


class Named(nn.Module):
    """A model whose layers follow each other, though it is no Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.body = nn.Linear(6, 2), nn.Sequential(nn.Linear(4, 6), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(x))


@pytest.mark.parametrize("at", ["1", "2", "3", "4"])
def test_a_sequential_is_cut_at_a_layer_and_the_halves_are_the_whole(at):
    whole, inputs = convolutions(), torch.rand(5, 1, 8, 8)
    parts = cut(whole, at)
    check(whole, parts, inputs)
    assert [*parts.front.parameters(), *parts.back.parameters()] == [*whole.parameters()]
    assert activation_shape(parts.front, inputs) == ((4, 6, 6) if at in "123" else (144,))
    assert whole.training and whole[2].training


def test_halves_keep_the_names_of_the_whole():
    whole = convolutions()
    names = [
        tensor.name for half in (cut(whole, "3").front, cut(whole, "3").back) for tensor in layout_of(half).tensors
    ]
    assert sorted(names) == sorted(tensor.name for tensor in layout_of(whole).tensors)


def test_layers_of_any_module_are_cut_in_the_order_that_is_given():
    whole, inputs = Named(), torch.rand(5, 4)
    check(whole, cut(whole, "last", ("body.0", "body.1", "last")), inputs)
    with pytest.raises(TaskError, match="expected a Sequential, or the order of its layers, got Named"):
        cut(whole, "last")
    with pytest.raises(TaskError, match="expected layers of Named"):
        cut(whole, "last", ("body.7", "last"))


def test_a_model_may_know_its_halves():
    whole = Knows()
    check(whole, halves(whole), torch.rand(3, 4))
    with pytest.raises(TaskError, match="got Linear"):
        halves(nn.Linear(2, 2))


@pytest.mark.parametrize("at", ["0", "5", "conv"])
def test_there_is_something_before_and_behind_a_cut(at):
    with pytest.raises(TaskError, match="to cut at"):
        cut(convolutions(), at)


def test_halves_that_share_or_lack_parameters_are_refused():
    tied = nn.Linear(4, 4)
    with pytest.raises(TaskError, match="no parameter in common, got 2"):
        cut(nn.Sequential(tied, nn.ReLU(), tied), "1")
    with pytest.raises(TaskError, match="front half with parameters"):
        cut(nn.Sequential(nn.ReLU(), nn.Linear(4, 4)), "1")


def test_halves_that_compute_something_else_are_found():
    whole = Named()
    with pytest.raises(TaskError, match="what the whole model does"):
        check(whole, cut(whole, "last", ("body.0", "last")), -torch.ones(3, 4))
