import subprocess
import sys

import numpy as np
import pytest

from fedge.errors import TaskError, UnknownName
from fedge.tasks import KNOWN, Dataset, Task, load


@pytest.mark.parametrize("path", KNOWN)
def test_every_known_task_loads_and_keeps_its_promises(path):
    task = load(path)
    assert isinstance(task, Task)
    assert task.name in path


@pytest.mark.parametrize("path", KNOWN)
def test_a_task_is_imported_without_torch(path):
    code = f"from fedge.tasks import load; load({path!r}).test_data(); import sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("fedge.tasks.wisdom:task", UnknownName, "did you mean 'fedge.tasks.wisdm:task'"),
        ("fedge.tasks.wisdm:tusk", UnknownName, "did you mean 'fedge.tasks.wisdm:task'"),
        ("nowhere:task", UnknownName, "unknown task 'nowhere:task'"),
        ("fedge.tasks.wisdm", TaskError, "expected a task as 'package.module:object'.*got 'fedge.tasks.wisdm'"),
        ("fedge.tasks.wisdm:a.b", TaskError, "expected a task as"),
        (":task", TaskError, "expected a task as"),
        ("fedge.tasks.wisdm:CLASSES", TaskError, "expected an object with name, .*; it lacks name, model"),
        ("fedge.tasks.wisdm:Wisdm", TaskError, "it lacks an instance, not a class"),
    ],
)
def test_a_task_that_cannot_be_had_is_answered_with_what_is_wrong(path, error, message):
    with pytest.raises(error, match=message):
        load(path)


def test_a_task_module_that_needs_something_missing_says_what(tmp_path, monkeypatch):
    (tmp_path / "needy_task.py").write_text("import not_installed_here\n")
    (tmp_path / "broken_task.py").write_text("from fedge.tasks import no_such_name\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TaskError, match="its module needs 'not_installed_here', which is not installed"):
        load("needy_task:task")
    with pytest.raises(TaskError, match="importing 'broken_task' failed"):
        load("broken_task:task")


def test_a_dataset_has_as_many_targets_as_inputs():
    assert len(Dataset(np.zeros((4, 3)), np.zeros(4))) == 4
    with pytest.raises(TaskError, match="expected as many targets as inputs, got 3 for 4"):
        Dataset(np.zeros((4, 3)), np.zeros(3))
