"""Which devices a task comes with, for the demo and the simulation: device name -> the options its data is named by.

A real device names its own data in ``device.toml``. Where one machine plays all of them, somebody has to know who is
there: the task says so in a method ``sites``, or it is one of the ready tasks in ``READY``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

from fedge.errors import TaskError, UnknownName
from fedge.tasks.base import KNOWN, Task
from fedge.tasks.wisdm import USERS

Sites = Mapping[str, Mapping[str, object]]


@runtime_checkable
class HasSites(Protocol):
    """A task that knows the devices it can be simulated with."""

    def sites(self) -> Sites:
        """Return device name -> options of ``train_data``."""
        ...


READY: Mapping[str, Callable[[], Sites]] = {
    "fedge.tasks.wisdm:task": lambda: {f"user-{user:02d}": {"user": user} for user in USERS},
}


def sites_of(path: str, task: Task, count: int | None = None) -> dict[str, Mapping[str, object]]:
    """Return the first ``count`` sites of ``task``, all of them if None.

    Raises:
        TaskError: the task names no sites, or fewer than ``count``.
    """
    if isinstance(task, HasSites):
        found = task.sites()
    elif path in READY:
        found = READY[path]()
    else:
        raise TaskError(
            f"task {path!r} does not say which devices it has: give it a method sites() that returns "
            "{device name: options of train_data}"
        )
    if count is not None and not 1 <= count <= len(found):
        raise TaskError(f"task {path!r}: expected 1 to {len(found)} devices, got {count}")
    return dict(list(found.items())[:count])


def task_path(name: str) -> str:
    """Return the path of a ready task by its short name, such as ``wisdm``; a path is returned as it is.

    Raises:
        UnknownName: no ready task is called so.
    """
    if ":" in name:
        return name
    short = {path.rpartition(".")[2].partition(":")[0]: path for path in KNOWN}
    if name not in short:
        raise UnknownName("task", name, short)
    return short[name]
