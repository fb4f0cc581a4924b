"""Which devices a task comes with, for the demo and the simulation, where one machine plays all of them."""

from __future__ import annotations

from collections.abc import Mapping

from fedge.errors import TaskError, UnknownName
from fedge.tasks.base import KNOWN, HasSites, Task


def sites_of(path: str, task: Task, count: int | None = None) -> dict[str, Mapping[str, object]]:
    """Return the first ``count`` sites of ``task``, device name -> options of ``train_data``; all of them if None.

    Raises:
        TaskError: the task names no sites, or fewer than ``count``.
    """
    if not isinstance(task, HasSites):
        raise TaskError(
            f"task {path!r} does not say which devices it has: give it a method sites() that returns "
            "{device name: options of train_data}"
        )
    found = task.sites()
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
