"""Where a model is cut: a front half for devices, a back half for the server.

    halves(model)                  a model that knows: it has front() and back()
    cut(sequential, at="6", example=x)     from the layer of that name on everything is the back half
    cut(model, at="fc1", order=("conv1", "pool", "flatten", "fc1", "fc2"))        layers of any module, in this order

Halves hold the model's own layers under its own names, so that a step of a half is a step of the model, the model is
evaluated whole, and its params are the params of both: ``halved`` says which are whose. What they compute must be what
the model computes; ``check`` tries it on some inputs.

A U-shaped split has a third part, the *head*: the last layers, which stay on the device as well, and the labels with
them (``cut(.., until="9")``). Devices then train front and head, the server what is between.

A task that can be trained split says where, and of what shape one example's inputs are:

    def split(self, model):
        return cut(model, at="6", example=torch.zeros(1, 1, 28, 28))
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from fedge.errors import TaskError
from fedge.layout import Layout
from fedge.tasks.torch_model import specs, state_of


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
    """A model in parts that share no parameter. ``shape``: of one example's activations, if it is known.

    ``head``: the last layers, where devices keep them; None: they are the back half's.
    """

    front: nn.Module
    back: nn.Module
    shape: tuple[int, ...] | None = None
    head: nn.Module | None = None

    def __post_init__(self) -> None:
        device = [self.front] if self.head is None else [self.front, self.head]
        front, *head = ({id(tensor) for tensor in part.parameters()} for part in device)
        back = {id(tensor) for tensor in self.back.parameters()}
        if not front:
            raise TaskError("split: expected a front half with parameters to train, got none")
        common = len(front & back) + sum(len(own & (front | back)) for own in head)
        if common:
            raise TaskError(f"split: expected parts with no parameter in common, got {common} in more than one")

    @property
    def tail(self) -> nn.Module:
        """The head; where there is none, a module that does nothing."""
        return nn.Identity() if self.head is None else self.head


@dataclass(frozen=True, slots=True, eq=False)
class Halved:
    """A task's model in two halves, and which tensors of its layout are whose, by the whole model's names.

    ``front`` is what devices train: the front half, and the head if there is one.
    """

    parts: Halves
    layout: Layout
    front: Mapping[str, Tensor]
    back: Mapping[str, Tensor]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example's activations.

        Raises:
            TaskError: the task does not say.
        """
        if self.parts.shape is None:
            raise TaskError("split: expected halves with the shape of activations, got none; give cut an example")
        return self.parts.shape


def halved(task: object, model: nn.Module) -> Halved:
    """Return the halves of ``model``, which ``task`` made.

    Raises:
        TaskError: the task cannot be trained split, or some tensor is in neither half.
    """
    if not isinstance(task, SplitTask):
        named = getattr(task, "name", type(task).__name__)
        raise TaskError(f"task {named!r}: expected split(model), which says where its model is cut, got none")
    parts, state = task.split(model), state_of(model)
    if not isinstance(parts, Halves):
        raise TaskError(f"split(model): expected the Halves that cut or halves gives, got {type(parts).__name__}")
    owned, rest, head = ({id(one) for one in state_of(part).values()} for part in (parts.front, parts.back, parts.tail))
    owned |= head
    lost = [name for name, one in state.items() if id(one) not in owned | rest]
    if lost:
        raise TaskError(f"split: expected every tensor of the model in one half, got {', '.join(lost)} in neither")
    front = {name: one for name, one in state.items() if id(one) in owned}
    back = {name: one for name, one in state.items() if id(one) not in owned}
    return Halved(parts, Layout.halves(specs(front), specs(back)), front, back)


def halves(model: nn.Module) -> Halves:
    """Return the halves of a model that knows them.

    Raises:
        TaskError: it does not, or they share parameters.
    """
    if not isinstance(model, Splits):
        raise TaskError(f"split: expected a model with front() and back(), got {type(model).__name__}")
    return Halves(model.front(), model.back())


def cut(model: nn.Module, at: str, order: Sequence[str] = (), example: Tensor | None = None, until: str = "") -> Halves:
    """Cut ``model`` before its layer ``at``; and before ``until``, from which on the head is, if it is given.

    ``order``: names of all its layers as they are applied, one after another; left out, ``model`` is a Sequential.
    ``example``: inputs ``[1, ..]``, whatever their values, from which the shape of activations is learnt.

    Raises:
        TaskError: there is no such layer, nothing before it, or the halves share parameters.
    """
    if not order and not isinstance(model, nn.Sequential):
        raise TaskError(f"split: expected a Sequential, or the order of its layers, got {type(model).__name__}")
    # Not named_children: that has a layer that is used twice once.
    names = list(order) or [name for name, _ in model.named_modules(remove_duplicate=False) if name and "." not in name]
    if at not in names[1:]:
        raise TaskError(f"split: expected a layer of {', '.join(map(repr, names[1:]))} to cut at, got {at!r}")
    try:
        layers = [(name.replace(".", "_"), model.get_submodule(name)) for name in names]
    except AttributeError as error:
        raise TaskError(f"split: expected layers of {type(model).__name__}: {error}") from error
    place, end = names.index(at), names.index(until) if until in names else len(names)
    if until and not place < end < len(names):
        raise TaskError(
            f"split: expected a layer of {', '.join(names[place + 1 :])} for the head to begin, got {until!r}"
        )
    parts = layers[:place], layers[place:end], layers[end:]
    front, back, head = (nn.Sequential(OrderedDict(part)) for part in parts)
    return Halves(front, back, None if example is None else activation_shape(front, example), head if until else None)


def activation_shape(front: nn.Module, inputs: Tensor) -> tuple[int, ...]:
    """Return the shape of one example's activations, without the batch: what the back half has to be given."""
    with torch.no_grad():
        where = next((one.device for one in front.parameters()), inputs.device)
        try:
            return tuple(_evaluating(front, inputs[:1].to(where)).shape[1:])
        except (RuntimeError, IndexError, ValueError) as error:
            raise TaskError(
                f"split: expected an example that the front half takes, got {list(inputs.shape)}: {error}"
            ) from error


def check(model: nn.Module, parts: Halves, inputs: Tensor) -> None:
    """Raise :class:`TaskError` unless the halves compute what ``model`` does of ``inputs``."""
    with torch.no_grad():
        whole, split = (
            _evaluating(model, inputs),
            _evaluating(parts.tail, _evaluating(parts.back, _evaluating(parts.front, inputs))),
        )
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
