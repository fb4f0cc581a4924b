"""Ready tasks, and how to write one: ``docs/tasks.md``. No task needs torch until its model is asked for."""

from fedge.tasks.base import KNOWN, Dataset, Task, load

__all__ = ["KNOWN", "Dataset", "Task", "load"]
