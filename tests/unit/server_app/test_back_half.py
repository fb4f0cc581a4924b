"""The back half of a round, with the worker's work done in this process, and a worker that dies at any moment."""

import asyncio
from contextlib import asynccontextmanager

import numpy as np
import pytest

from fedge.algorithms.base import LocalTerms
from fedge.algorithms.front import FrontRun
from fedge.algorithms.local import LocalSpec
from fedge.protocol.ledger import Conflict
from fedge.protocol.split_counts import ANSWER_HEAD
from fedge.split import Options
from fedge.split.exchange import Answer, Batch, Hello, Over, Refusal
from fedge.split.shared import Shared
from fedge.tasks.split_model import halved
from fedge.tasks.torch_model import get_params
from server_app.back_half import BackHalf, Recipe
from server_app.back_process import BackProcess
from server_app.errors import Refused, WorkerDied, WorkerError
from server_app.journal import Journal, Kind, read_records
from tests.support.split_task import ACTIVATIONS, TASK, task

SPEC = {"epochs": 1, "batch_size": 20, "learning_rate": 0.1, "weight_decay": 0.0, "clip_norm": 10.0, "optimizer": "sgd"}
QUANTIZER = {"centroids": 4, "start": "shared", "coding": "shared", "refresh_steps": 3}
STEPS = 4


def anchor():
    model = task.model(3)
    return get_params(model, halved(task, model).layout)


def recipe(quantizer=QUANTIZER):
    request = {
        "ask": "split_open",
        "task": TASK,
        "pull": 0.0,
        "local": SPEC,
        "quantizer": quantizer,
        "seed": 4,
        "batch_size": 20,
        "where": "cpu",
    }
    return Recipe(request, anchor(), None)


class Desk:
    """A worker in this process that dies at its calls number ``deaths``: before it did anything, or after it did it."""

    def __init__(self, deaths=(), after=False):
        self.process, self.deaths, self.after, self.calls = BackProcess(), set(deaths), after, 0

    async def ask(self, request, parts=()):
        self.calls += 1
        await asyncio.sleep(0)
        if self.calls in self.deaths and not self.after:
            self._die()
        try:
            answer = self.process.answer(request, [bytes(part) for part in parts])
        except Exception as error:
            raise WorkerError(str(error)) from error
        if self.calls in self.deaths:
            self._die()
        return answer

    def _die(self):
        self.process = BackProcess()
        raise WorkerDied("died")


@asynccontextmanager
async def running(path, desk=None, quantizer=QUANTIZER, gather_seconds=0.0):
    loop = asyncio.get_running_loop()
    back = BackHalf(
        recipe(quantizer), desk or Desk(), path, gather_seconds, lambda: 2, lambda device: STEPS + 8, loop.time
    )
    running = asyncio.create_task(back.run())
    try:
        yield back
    finally:
        await back.abandon()
        await running


def front(number):
    model = task.model(3)
    parts = halved(task, model)
    start = get_params(model, parts.layout)[: parts.layout.front.size]
    options = Options.of(ACTIVATIONS, QUANTIZER)
    return FrontRun(
        parts, task.train_data({"device": number}), start, LocalTerms(0.0), LocalSpec(**SPEC), options, number
    )


async def steps(back, run, name, count, shared=b""):
    """Take ``count`` steps; returns the shared state after them, and how many answers there were."""
    for _ in range(count):
        made = run.forward(Shared.from_bytes(shared, ACTIVATIONS) if shared else None)
        batch = Batch(run.next, made.activations, made.labels)
        answer = await back.exchange(name, batch)
        assert isinstance(answer, Answer), answer
        repeated = await back.exchange(name, batch)
        assert (repeated.gradient, repeated.loss) == (answer.gradient, answer.loss)
        run.backward(answer.gradient, answer.loss)
        shared = answer.shared or shared
    return shared


def calm(path):
    async def train():
        async with running(path) as back:
            for name, number in (("a", 1), ("b", 2)):
                await steps(back, front(number), name, STEPS)
            return await back.close()

    return asyncio.run(train())


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("deaths", [(1,), (2,), (5,), (9,), (10,), (4, 6), (3, 9, 16)], ids=str)
def test_a_worker_that_dies_at_any_moment_changes_no_bit(tmp_path, deaths, after):
    async def train():
        async with running(tmp_path / "journal", Desk(deaths, after)) as back:
            for name, number in (("a", 1), ("b", 2)):
                await steps(back, front(number), name, STEPS)
            status = back.status()
            return await back.close(), status

    learnt, status = asyncio.run(train())
    np.testing.assert_array_equal(learnt, calm(tmp_path / "calm"))
    assert (status.steps, status.batches, status.refused) == (2 * STEPS, 2 * STEPS, 0)


def test_an_aggregator_that_dies_goes_on_with_the_next_step_and_knows_the_last_answer(tmp_path):
    async def train():
        path, one, other, shared = tmp_path / "journal", front(1), front(2), b""
        for _ in range(STEPS):
            async with running(path) as back:
                hello = await back.hello("a")
                assert isinstance(hello, Hello) and hello.step == one.next
                shared = await steps(back, one, "a", 1, shared)
        async with running(path) as back:
            await steps(back, other, "b", STEPS)
        async with running(path) as back:
            assert (await back.answer("a", STEPS - 1)).step == STEPS - 1
            return await back.close()

    np.testing.assert_array_equal(asyncio.run(train()), calm(tmp_path / "calm"))


def test_what_devices_were_told_beside_their_answers_is_counted_on(tmp_path):
    async def train():
        path, run = tmp_path / "journal", front(1)
        async with running(path) as back:
            await back.hello("a")
            shared = await steps(back, run, "a", 3)
            ended = back.status()
            await back.abandon(is_suspended=True)
        async with running(path) as back:
            await back.ready()
            assert back.status() == ended and ended.repeats == 3 and ended.shared > 0
            hello = await back.hello("a")
            told = back.status()
            await steps(back, run, "a", 1, hello.shared or shared)
        killed = tmp_path / "killed"
        killed.write_bytes(path.read_bytes())
        async with running(killed) as back:  # what was told before its last step is there
            await back.ready()
            return told, back.status()

    told, after = asyncio.run(train())
    assert (after.steps, after.repeats, after.shared) == (4, told.repeats, told.shared)
    assert after.overhead.down - told.overhead.down == ANSWER_HEAD


def test_a_torn_journal_and_batches_without_their_step_count_for_nothing(tmp_path):
    async def train():
        path, run = tmp_path / "journal", front(1)
        async with running(path) as back:
            await steps(back, run, "a", 2)
        data = path.read_bytes()
        with path.open("rb") as file:
            ends = [stop for record, stop in read_records(file) if record.kind is Kind.SPLIT_BATCH]
        for size in (ends[1], ends[1] - 1, len(data) - 1):
            path.write_bytes(data[:size])
            async with running(path) as back:
                assert back.counts.batches == 0
                hello = await back.hello("a")
                assert (hello.step, back.counts.batches) == (1, 1)
        return path

    path = asyncio.run(train())
    Journal.open(path, lambda record: None).close()


def test_a_journal_that_takes_nothing_refuses_the_step_and_takes_it_the_next_time(tmp_path, monkeypatch):
    async def train():
        run = front(1)
        made = run.forward()
        batch = Batch(0, made.activations, made.labels)
        async with running(tmp_path / "journal") as back:
            await back.ready()
            with monkeypatch.context() as patch:
                patch.setattr(Journal, "append", full_disk)
                with pytest.raises(Refused, match="507 not_stored: the aggregator could not write this down"):
                    await back.exchange("a", batch)
            assert isinstance(await back.exchange("a", batch), Answer)
            return back.status()

    assert asyncio.run(train()).batches == 1


def full_disk(journal, records):
    raise OSError(28, "No space left on device")


def test_a_device_takes_no_more_steps_than_it_was_asked_for(tmp_path):
    async def train():
        async with running(tmp_path / "journal") as back:
            with pytest.raises(Conflict, match="expected steps below 12 of a, got 12"):
                await back.exchange("a", Batch(12, b"", b""))
            with pytest.raises(Refused, match="409 unknown_step"):
                await back.answer("a", 3)

    asyncio.run(train())


def test_a_worker_that_dies_again_and_again_ends_the_round_and_leaves_nobody_waiting(tmp_path, monkeypatch):
    monkeypatch.setattr("server_app.back_half.PAUSE_SECONDS", 0.0)

    async def train():
        run = front(1)
        async with running(tmp_path / "journal", Desk(range(3, 99))) as back:
            await steps(back, run, "a", 1)
            made = run.forward()
            assert isinstance(await back.exchange("a", Batch(1, made.activations, made.labels)), Over)
            with pytest.raises(WorkerError, match="died"):
                await back.close()
            assert isinstance(await asyncio.wait_for(back.hello("a"), 5), Over)
            return back.is_hopeless

    assert asyncio.run(train()) is False


def test_a_poll_that_is_given_up_leaves_no_task_behind(tmp_path):
    async def train():
        run = front(1)
        made = run.forward()
        async with running(tmp_path / "journal", gather_seconds=60.0) as back:
            await back.hello("other")
            waiting = asyncio.create_task(back.exchange("a", Batch(0, made.activations, made.labels)))
            await asyncio.sleep(0.02)
            before = len(asyncio.all_tasks())
            for _ in range(20):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(back.answer("a", 0), 0.001)
            await asyncio.sleep(0.01)
            assert len(asyncio.all_tasks()) == before
            waiting.cancel()

    asyncio.run(train())


def test_a_batch_that_is_none_is_refused_by_itself_and_after_a_restart_too(tmp_path):
    async def train():
        bad = Batch(0, b"garbage", b"")
        for _ in range(2):
            async with running(tmp_path / "journal") as back:
                answer = await back.exchange("liar", bad)
                assert isinstance(answer, Refusal) and "expected activations" in answer.reason
                with pytest.raises(Conflict):
                    await back.exchange("liar", Batch(0, b"other", b""))
                status = back.status()
                assert (status.batches, status.refused, status.devices) == (0, 1, ())
                assert await back.close() is None

    asyncio.run(train())


def test_who_waits_as_the_round_ends_is_told(tmp_path):
    async def train():
        run = front(1)
        made = run.forward()
        async with running(tmp_path / "journal", gather_seconds=60.0) as back:
            assert isinstance(await back.hello("other"), Hello)
            waiting = asyncio.create_task(back.exchange("a", Batch(0, made.activations, made.labels)))
            await asyncio.sleep(0.05)
            await back.abandon()
            return await waiting, await back.hello("a"), await back.exchange("b", Batch(0, b"", b""))

    assert all(isinstance(found, Over) for found in asyncio.run(train()))


def test_as_the_aggregator_ends_nobody_is_told_that_the_round_is_over(tmp_path):
    async def train():
        run = front(1)
        made = run.forward()
        async with running(tmp_path / "journal", gather_seconds=60.0) as back:
            await back.hello("other")
            waiting = asyncio.create_task(back.exchange("a", Batch(0, made.activations, made.labels)))
            await asyncio.sleep(0.05)
            await back.abandon(is_suspended=True)
            for asked in (waiting, back.hello("a"), back.exchange("b", Batch(0, b"", b""))):
                with pytest.raises(Refused, match="503 ending"):
                    await asked

    asyncio.run(train())


def test_a_back_half_that_cannot_be_made_says_why_to_all(tmp_path):
    async def train():
        async with running(tmp_path / "journal", quantizer={"subvectors": 7}) as back:
            hello = await back.hello("a")
            with pytest.raises(WorkerError, match="expected subvectors that divide"):
                await back.close()
            return hello

    hello = asyncio.run(train())
    assert isinstance(hello, Over) and "subvectors" in hello.reason


def test_the_largest_batch_fits_and_a_larger_one_is_known_to_be_too_large(tmp_path):
    async def look(quantizer):
        async with running(tmp_path / f"{quantizer is None}", quantizer=quantizer) as back:
            await back.ready()
            return back.most_bytes()

    made = front(1).forward()
    size = len(Batch(0, made.activations, made.labels).to_bytes())
    assert size < asyncio.run(look(QUANTIZER)) < asyncio.run(look(None)) < 4 * 20 * ACTIVATIONS + 200
