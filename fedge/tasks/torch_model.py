"""A torch model as a ``Layout`` and a flat vector, and parameters that follow from a seed.

Which kind a tensor is:

    WEIGHT  a parameter of two or more dimensions and at least 64 values
    RAW     any other parameter: biases, norms, tiny matrices
    BUFFER  a persistent buffer, or a parameter that is not trained (``requires_grad`` False)

``initialise`` draws from ``fedge.seeds``, not from torch's generator, whose stream is a detail of its version and of
the CPU it runs on: server and devices must agree on the model they start from without sending it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedge import seeds
from fedge.errors import LayoutError
from fedge.layout import Kind, Layout, TensorSpec, Vector

TINY = 64
"""A parameter of fewer values than this travels uncompressed."""

_DRAWN_AT_ONCE = 1 << 14
_DTYPES = {torch.bfloat16: "float32"}


def layout_of(model: nn.Module) -> Layout:
    """Return where each parameter and buffer of ``model`` lies in the flat vector."""
    return Layout.of(specs(state_of(model)))


def specs(state: Mapping[str, Tensor]) -> list[TensorSpec]:
    """Return what each tensor is, in the order given."""
    return [TensorSpec(name, tuple(one.shape), _kind(one), _dtype(name, one)) for name, one in state.items()]


def get_params(model: nn.Module, layout: Layout) -> Vector:
    """Return the parameters and buffers of ``model`` as one float32 vector ``[d]``."""
    return read_tensors(state_of(model), layout)


def read_tensors(state: Mapping[str, Tensor], layout: Layout) -> Vector:
    """Return tensors by name as one float32 vector ``[d]``."""
    arrays = {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu()
        arrays[name] = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return layout.pack(arrays)


def set_params(model: nn.Module, layout: Layout, vector: Vector) -> None:
    """Copy ``vector`` ``[d]`` into the parameters and buffers of ``model``.

    Raises:
        LayoutError: if ``vector`` or ``model`` does not fit ``layout``.
    """
    write_tensors(state_of(model), layout, vector)


def write_tensors(state: Mapping[str, Tensor], layout: Layout, vector: Vector) -> None:
    """Copy ``vector`` ``[d]`` into tensors by name.

    Raises:
        LayoutError: if ``vector`` or the tensors do not fit ``layout``.
    """
    arrays = layout.unpack(vector)
    if state.keys() != arrays.keys():
        raise LayoutError(f"expected a model with tensors {sorted(arrays)}, got {sorted(state)}")
    with torch.no_grad():
        for name, array in arrays.items():
            if tuple(state[name].shape) != array.shape:
                shapes = f"expected shape {list(array.shape)}, got {list(state[name].shape)}"
                raise LayoutError(f"tensor {name!r}: {shapes}")
            state[name].copy_(torch.from_numpy(np.array(array)))


def initialise(model: nn.Module, seed: int) -> nn.Module:
    """Set the parameters of ``model`` to U(-1/√fan_in, 1/√fan_in) and return it.

    fan_in is the number of inputs to one output: the product of all dimensions but the first. A bias takes the bound
    of the matrix in its module. A module without a matrix (a norm) keeps what its constructor set.
    """
    with torch.no_grad():
        for path, module in model.named_modules():
            own = list(module.named_parameters(recurse=False))
            fans = [math.prod(parameter.shape[1:]) for _, parameter in own if parameter.ndim > 1]
            for name, parameter in own if fans else []:
                fan_in = math.prod(parameter.shape[1:]) if parameter.ndim > 1 else fans[0]
                _draw(parameter, seeds.derive(seed, path, name), math.sqrt(max(fan_in, 1)))
    return model


def _draw(parameter: Tensor, seed: int, root: float) -> None:
    """Fill ``parameter`` from U(-1/root, 1/root), some rows at a time: drawing takes eight times what is drawn."""
    rows = parameter if parameter.ndim else parameter[None]
    size = math.prod(rows.shape[1:])
    at_once = max(1, _DRAWN_AT_ONCE // max(size, 1))
    for first in range(0, len(rows), at_once):
        part = rows[first : first + at_once]
        drawn = seeds.uniform(seed + first * size * seeds.GAMMA, part.numel())
        part.copy_(torch.from_numpy(((2 * drawn - 1) / root).astype(np.float32)).reshape(part.shape))


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters, then persistent buffers, each tensor once: tied weights go by their first name."""
    kept = model.state_dict(keep_vars=True)
    seen: set[int] = set()
    found: dict[str, Tensor] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name in kept and id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor
    return found


def _kind(tensor: Tensor) -> Kind:
    if not isinstance(tensor, nn.Parameter) or not tensor.requires_grad:
        return Kind.BUFFER
    return Kind.WEIGHT if tensor.ndim > 1 and tensor.numel() >= TINY else Kind.RAW


def _dtype(name: str, tensor: Tensor) -> str:
    dtype: Any = _DTYPES.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))
    if tensor.is_complex() or tensor.is_quantized:
        raise LayoutError(f"tensor {name!r}: expected a real tensor, got {tensor.dtype}")
    return str(dtype)
