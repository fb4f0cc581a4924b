"""The trainer process and the agent's side of it, with real torch on real data."""

import asyncio
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import pytest_asyncio

from device_app.errors import TrainerDied, TrainerError
from device_app.trainer import LocalRun, Trainer
from fedge.algorithms.base import LocalTerms
from fedge.algorithms.local import LocalSpec, train
from fedge.tasks.torch_model import layout_of
from fedge.tasks.wisdm import task

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATH = "fedge.tasks.wisdm:task"
USER = {"user": 7}
LAYOUT = layout_of(task.model(0))
ANCHOR = np.linspace(-0.1, 0.1, LAYOUT.size, dtype=np.float32)
DUAL = np.linspace(0.01, -0.01, LAYOUT.size)
QUICK = LocalRun(epochs=2, batch_size=32, learning_rate=0.05, weight_decay=0.0, clip_norm=10.0)
ENDLESS = LocalRun(epochs=100_000, batch_size=32, learning_rate=0.01, weight_decay=0.0, clip_norm=None)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def trainer():
    async with Trainer() as trainer:
        yield trainer


async def begin_endless(trainer, started):
    return await trainer.train(PATH, USER, ANCHOR, LocalTerms(0.0), ENDLESS, 5, lambda *_: started.set())


async def test_a_task_is_described_by_its_layout_and_the_examples_here(trainer):
    described = await trainer.describe(PATH, USER)
    assert described.layout == LAYOUT
    assert described.num_examples == len(task.train_data(USER))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
async def test_the_delta_is_bit_for_bit_what_training_in_one_process_gives(trainer, optimizer):
    local = replace(QUICK, optimizer=optimizer)
    terms = LocalTerms(0.3, DUAL)
    epochs = []
    trained = await trainer.train(PATH, USER, ANCHOR, terms, local, 5, lambda epoch, loss: epochs.append((epoch, loss)))
    spec = LocalSpec(2, 32, 0.05, 0.0, 10.0, optimizer)
    expected = train(task, task.model(0), task.train_data(USER), ANCHOR, LAYOUT, terms, spec, 5)
    assert np.array_equal(trained.delta, expected.delta)
    assert (trained.loss, trained.num_examples) == (expected.loss, expected.num_examples)
    assert [epoch for epoch, _ in epochs] == [0, 1]


@pytest.mark.parametrize(
    ("path", "options", "says"),
    [("no.such:task", USER, "no.such:task"), (PATH, {"user": 99}, "99"), (PATH, {}, "user")],
)
async def test_a_task_or_data_that_is_not_there_is_an_error_that_names_it(trainer, path, options, says):
    with pytest.raises(TrainerError, match=says):
        await trainer.describe(path, options)


async def test_training_that_is_cancelled_stops_and_leaves_the_process_warm(trainer):
    await trainer.describe(PATH, USER)
    before, started = trainer.process_id, asyncio.Event()
    training = asyncio.create_task(begin_endless(trainer, started))
    await started.wait()
    training.cancel()
    with pytest.raises(asyncio.CancelledError):
        await training
    assert (await trainer.describe(PATH, USER)).layout == LAYOUT
    assert trainer.process_id == before


async def test_a_request_cancelled_in_the_queue_is_never_made(trainer):
    started, late = asyncio.Event(), asyncio.Event()
    first = asyncio.create_task(begin_endless(trainer, started))
    await started.wait()
    queued = asyncio.create_task(begin_endless(trainer, late))
    queued.cancel()
    first.cancel()
    await asyncio.wait([first, queued])
    await trainer.describe(PATH, USER)
    assert not late.is_set()


async def test_a_process_that_does_not_stop_in_time_is_killed_and_another_takes_its_place():
    async with Trainer(grace_seconds=0.0) as trainer:
        started = asyncio.Event()
        training = asyncio.create_task(begin_endless(trainer, started))
        await started.wait()
        before = trainer.process_id
        training.cancel()
        with pytest.raises(asyncio.CancelledError):
            await training
        assert (await trainer.describe(PATH, USER)).layout == LAYOUT
        assert trainer.process_id != before


async def test_a_process_that_dies_in_mid_training_is_an_error_and_another_takes_its_place(trainer):
    started = asyncio.Event()
    training = asyncio.create_task(begin_endless(trainer, started))
    await started.wait()
    os.kill(trainer.process_id, signal.SIGKILL)
    with pytest.raises(TrainerDied, match="ended while asked to train"):
        await training
    assert (await trainer.describe(PATH, USER)).layout == LAYOUT
