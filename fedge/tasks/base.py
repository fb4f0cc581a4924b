"""A task: model, data, loss and metrics under one name, installed on the device.

A device never runs code from the server. Its configuration names a task by where it lives, like a WSGI application:

    task = "fedge.tasks.wisdm:task"          package.module:object

``load`` imports that object. Importing a task module does nothing: torch and data come in when they are asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy.typing as npt

from fedge.errors import TaskError, UnknownName

if TYPE_CHECKING:
    from torch import Tensor, nn

KNOWN: tuple[str, ...] = (
    "fedge.tasks.wisdm:task",
    "fedge.tasks.fashion_mnist:task",
    "fedge.tasks.shakespeare:task",
)
"""The tasks that come with fedge."""


def full_path(name: str) -> str:
    """Return the path of the task of ``KNOWN`` whose module is called ``name``; any other name as it is."""
    return {path.rpartition(".")[2].partition(":")[0]: path for path in KNOWN}.get(name, name)


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Examples: ``inputs`` ``[n, ..]`` and ``targets`` ``[n, ..]``.

    Floating arrays reach the model as float32 tensors, integer arrays as int64.
    """

    inputs: npt.NDArray[Any]
    targets: npt.NDArray[Any]

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise TaskError(f"expected as many targets as inputs, got {len(self.targets)} for {len(self.inputs)}")

    def __len__(self) -> int:
        return len(self.inputs)


@runtime_checkable
class Task(Protocol):
    """What a federation trains. Every device and the server build the same model from the same seed."""

    @property
    def name(self) -> str:
        """A short name for tables and logs."""
        ...

    def model(self, seed: int) -> nn.Module:
        """Return a new model. Its parameters follow from ``seed`` alone, on any CPU and torch."""
        ...

    def train_data(self, options: Mapping[str, object]) -> Dataset:
        """Return this device's examples. ``options`` come from its configuration.

        Raises:
            TaskError: if ``options`` name no data.
        """
        ...

    def test_data(self) -> Dataset | None:
        """Return the server's test examples; None if it has none."""
        ...

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss over a batch, a scalar."""
        ...

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return figures that are means over the examples, "accuracy" among them for a classifier."""
        ...


@runtime_checkable
class HasSites(Protocol):
    """A task that also knows which devices it can be played with on one machine, for the demo and the simulation.

    A real device names its own data in its configuration; nobody has to know them all.
    """

    def sites(self) -> Mapping[str, Mapping[str, object]]:
        """Return device name -> options of ``train_data``."""
        ...


def load(path: str) -> Task:
    """Return the task at ``path``, written ``package.module:object``.

    Raises:
        UnknownName: if no such module or object exists; names the nearest known task.
        TaskError: if ``path`` is not of that form, its module fails to import, or the object is no task.
    """
    module_name, colon, attribute = path.partition(":")
    if not (module_name and colon and attribute.isidentifier()):
        raise TaskError(f"expected a task as 'package.module:object', such as {KNOWN[0]!r}, got {path!r}")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name + ".").startswith(error.name + "."):
            raise UnknownName("task", path, KNOWN) from error
        raise TaskError(f"task {path!r}: its module needs {error.name!r}, which is not installed") from error
    except ImportError as error:
        raise TaskError(f"task {path!r}: importing {module_name!r} failed: {error}") from error
    if not hasattr(module, attribute):
        raise UnknownName("task", path, {*KNOWN, *(f"{module_name}:{name}" for name in _tasks_in(module))})
    task: object = getattr(module, attribute)
    if not isinstance(task, Task) or isinstance(task, type):
        missing = ", ".join(name for name in _MEMBERS if not hasattr(task, name)) or "an instance, not a class"
        raise TaskError(f"task {path!r}: expected an object with {', '.join(_MEMBERS)}; it lacks {missing}")
    return task


_MEMBERS = ("name", "model", "train_data", "test_data", "loss", "metrics")


def _tasks_in(module: object) -> list[str]:
    return [name for name, value in vars(module).items() if isinstance(value, Task) and not isinstance(value, type)]
