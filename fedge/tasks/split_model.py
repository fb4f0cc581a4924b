"""Where a model is cut: a front half for devices, a back half for the server.

    halves(model)                  a model that knows: it has front() and back()
    cut(sequential, at="6")        from the layer of that name on everything is the back half
    cut(model, at="fc1", order=("conv1", "pool", "flatten", "fc1", "fc2"))        layers of any module, in this order

Halves hold the model's own layers under its own names, so that a step of a half is a step of the model, the model is
evaluated whole, and its params are the params of both. What they compute must be what the model computes; ``check``
tries it on some inputs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from fedge.errors import TaskError


@runtime_checkable
class Splits(Protocol):
    """A model that knows where it is cut: back(front(x)) is what it computes."""

    def front(self) -> nn.Module:
        """Return what devices hold, made of the model's own layers."""
        ...

    def back(self) -> nn.Module:
        """Return what the server holds, made of the model's own layers."""
        ...


@runtime_checkable
class SplitTask(Protocol):
    """A task that can be trained split, beside what every task has."""

    def split(self, model: nn.Module) -> Halves:
        """Return the halves of a model this task made."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Halves:
    """A model in two halves that share no parameter."""

    front: nn.Module
    back: nn.Module

    def __post_init__(self) -> None:
        front, back = ({id(tensor) for tensor in half.parameters()} for half in (self.front, self.back))
        if not front:
            raise TaskError("split: expected a front half with parameters to train, got none")
        if front & back:
            raise TaskError(f"split: expected halves with no parameter in common, got {len(front & back)} in both")


def halves(model: nn.Module) -> Halves:
    """Return the halves of a model that knows them.

    Raises:
        TaskError: it does not, or they share parameters.
    """
    if not isinstance(model, Splits):
        raise TaskError(f"split: expected a model with front() and back(), got {type(model).__name__}")
    return Halves(model.front(), model.back())


def cut(model: nn.Module, at: str, order: Sequence[str] = ()) -> Halves:
    """Cut ``model`` before its layer ``at``.

    ``order``: names of all its layers as they are applied, one after another; left out, ``model`` is a Sequential.

    Raises:
        TaskError: there is no such layer, nothing before it, or the halves share parameters.
    """
    if not order and not isinstance(model, nn.Sequential):
        raise TaskError(f"split: expected a Sequential, or the order of its layers, got {type(model).__name__}")
    # Not named_children: that has a layer that is used twice once.
    names = list(order) or [name for name, _ in model.named_modules(remove_duplicate=False) if name and "." not in name]
    if at not in names[1:]:
        raise TaskError(f"split: expected a layer of {', '.join(names[1:])} to cut at, got {at!r}")
    try:
        layers = [(name.replace(".", "_"), model.get_submodule(name)) for name in names]
    except AttributeError as error:
        raise TaskError(f"split: expected layers of {type(model).__name__}: {error}") from error
    place = names.index(at)
    return Halves(*(nn.Sequential(OrderedDict(part)) for part in (layers[:place], layers[place:])))


def activation_shape(front: nn.Module, inputs: Tensor) -> tuple[int, ...]:
    """Return the shape of one example's activations, without the batch: what the back half has to be given."""
    with torch.no_grad():
        return tuple(_evaluating(front, inputs[:1]).shape[1:])


def check(model: nn.Module, parts: Halves, inputs: Tensor) -> None:
    """Raise :class:`TaskError` unless the halves compute what ``model`` does of ``inputs``."""
    with torch.no_grad():
        whole, split = _evaluating(model, inputs), _evaluating(parts.back, _evaluating(parts.front, inputs))
    if whole.shape != split.shape or not torch.allclose(whole, split, rtol=1e-4, atol=1e-5):
        raise TaskError("split: expected halves that compute what the whole model does, got something else")


def _evaluating(module: nn.Module, inputs: Tensor) -> Tensor:
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        outputs: Tensor = module(inputs)
    finally:
        for part, mode in modes:
            part.training = mode
    return outputs
