"""The worker process, for real: it builds models, tests them, says what went wrong, and is replaced when it dies."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

from fedge.tasks.torch_model import get_params, layout_of
from fedge.tasks.wisdm import task
from server_app.errors import WorkerError
from server_app.worker import Worker

WISDM = "fedge.tasks.wisdm:task"


async def test_the_worker_makes_the_model_that_every_device_makes_and_tests_it() -> None:
    model = task.model(7)
    expected = layout_of(model)
    async with Worker.running() as worker:
        layout, params = await worker.initial(WISDM, 7)
        assert layout == expected
        np.testing.assert_array_equal(params, get_params(model, expected))
        metrics = await worker.evaluate(WISDM, params)
        assert set(metrics) == {"accuracy", "loss"}
        assert 0 < metrics["accuracy"] < 1

        with pytest.raises(WorkerError, match=r"did you mean 'fedge.tasks.wisdm:task'"):
            await worker.initial("fedge.tasks.wisdn:task", 0)
        with pytest.raises(WorkerError, match="expected a vector of shape"):
            await worker.evaluate(WISDM, params[:-1])

        process = worker._process
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()
        assert await worker.evaluate(WISDM, params) == metrics
    assert worker._process is None
