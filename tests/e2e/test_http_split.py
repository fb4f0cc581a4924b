"""Split training over real HTTP: agents with front halves, an aggregator with the back half in its worker process."""

import asyncio
import json
from collections import Counter
from contextlib import asynccontextmanager

import aiohttp
import numpy as np
import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families
from safetensors.numpy import load

from device_app.errors import NoWebSocket, Unreachable
from device_app.spool import Spool
from device_app.trainer import Trainer
from fedge.seeds import derive, uniform
from fedge.split.exchange import Batch, Hello, read_exchange
from schemas.messages import Refusal, UpdateHeader
from schemas.packing import pack
from schemas.status import Role, RoundPhase, RunPhase
from server_app.blobs import RunFiles, load_state
from tests.support.http import Device, Refused
from tests.support.split_federation import federating, plan
from tests.support.split_task import U_TASK
from tests.support.watchdog import watching

pytestmark = pytest.mark.asyncio(loop_scope="module")
SLOW = 90.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def trainer():
    async with Trainer() as trainer:
        yield trainer


@asynccontextmanager
async def counting(federation):
    """Yield how often each batch was taken, by device, round's seed and step."""
    worker, taken, opened = federation.service.context.house.back_worker, Counter(), []
    ask = worker.ask

    async def counted(request, parts=()):
        answer = await ask(request, parts)
        if request["ask"] == "split_open":
            opened.append(request["seed"])
        if request["ask"] == "split_step":
            taken.update((opened[-1], name, step) for name, step in request["sent"])
        return answer

    worker.ask = counted
    yield taken
    del worker.ask


class Cuts:
    """A link whose split steps are cut at random: before a batch leaves, or before its answer is read."""

    def __init__(self, link, seed, share):
        self.link, self.seed, self.share, self.drawn, self.cuts = link, seed, share, 0, 0

    @asynccontextmanager
    async def request(self, method, path, *asked, **how):
        if path.endswith("/split") and self.is_cut():
            raise Unreachable("cut before a batch left", "cut")
        async with self.link.request(method, path, *asked, **how) as answer:
            if path.endswith("/split") and self.is_cut():
                raise Unreachable("cut before an answer came", "cut")
            yield answer

    @asynccontextmanager
    async def socket(self, path, query, max_bytes):
        async with self.link.socket(path, query, max_bytes) as socket:
            yield CutSocket(socket, self)

    def is_cut(self):
        self.drawn += 1
        found = float(uniform(derive("cut", self.seed, self.drawn), 1)[0]) < self.share
        self.cuts += found
        return found


class CutSocket:
    def __init__(self, socket, cuts):
        self.socket, self.cuts = socket, cuts

    async def send(self, data):
        if self.cuts.is_cut():
            raise Unreachable("cut before a batch left", "cut")
        await self.socket.send(data)

    async def receive(self):
        if self.cuts.is_cut():
            await asyncio.sleep(0.02)  # it may well have been taken by then
            raise Unreachable("cut before an answer came", "cut")
        return await self.socket.receive()


class Blocked:
    """A link whose way to the aggregator does not let WebSockets through."""

    def __init__(self, link):
        self.link = link

    def request(self, *asked, **how):
        return self.link.request(*asked, **how)

    @asynccontextmanager
    async def socket(self, path, query, max_bytes):
        raise NoWebSocket("blocked", "no_websocket")
        yield


async def asked_for(federation, path):
    async with aiohttp.ClientSession() as session:
        headers = {"Authorization": f"Bearer {federation.tokens[Role.OPERATOR]}"}
        async with session.get(federation.service.url + path, headers=headers) as answer:
            assert answer.status == 200
            return await answer.read()


async def published(federation, run):
    return load(await asked_for(federation, f"/v1/runs/{run}/model"))


def split_gauges(text, run):
    """Return the figures of ``run`` under fedge_split, by name and direction."""
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    found = [sample for sample in samples if sample.name.startswith("fedge_split") and sample.labels["run"] == run]
    names = [f"{s.name.removeprefix('fedge_split_')} {s.labels.get('direction', '')}".strip() for s in found]
    return dict(zip(names, [sample.value for sample in found], strict=True))


async def test_a_split_run_learns_and_its_bytes_add_up(tmp_path, trainer):
    async with federating(tmp_path, trainer) as federation:
        for k in range(3):
            await federation.add(f"pi-{k}", k)
        status = await asyncio.wait_for(federation.run(plan(3)), SLOW)
        rounds = await federation.rounds(status.run)
        model = await published(federation, status.run)
        counters = await asked_for(federation, "/metrics")
    assert status.phase is RunPhase.FINISHED
    told = {"steps": status.split.steps, **{f"bytes {way}": getattr(status.split.bytes, way) for way in ("up", "down")}}
    assert told == split_gauges(counters.decode(), status.run)
    assert status.metrics["accuracy"] > 0.9 > 0.5 > status.initial_metrics["accuracy"]
    assert sorted(model) == ["0.bias", "0.weight", "2.bias", "2.weight", "4.bias", "4.weight"]
    for one in rounds:
        split = one.split
        assert (split.batches, split.repeats, split.refused) == (24, 0, 0)
        assert split.devices == ("pi-0", "pi-1", "pi-2")
        # 24 batches of 20 examples, 64 activations each; frames and updates are all that frame_bytes counts.
        assert split.float32_bytes.up == split.float32_bytes.down == 24 * 20 * 64 * 4
        assert split.bytes.up < one.frame_bytes.up < one.traffic.up < one.float32_bytes.up
        assert split.bytes.down < one.frame_bytes.down < one.traffic.down
        assert split.labels == 24 * (6 + 5)


async def test_with_cuts_and_a_death_it_learns_as_well_and_no_step_is_taken_twice(tmp_path, trainer):
    devices, links = 8, []

    async def federate(folder, share):
        changes = {
            "cohort": {"devices": devices, "updates": {"min": 7, "max": 8}, "seconds": {"min": 0.0, "max": 40.0}}
        }
        async with federating(folder, trainer, offline_seconds=2.0) as federation, counting(federation) as taken:
            for k in range(devices):

                def wrap(link, k=k):
                    links.append(Cuts(link, k, share))
                    return links[-1]

                await federation.add(f"pi-{k}", k, wrap=wrap)
            run = await federation.start(plan(devices, rounds=4, **changes))
            if share:  # all have been at work, one of them dies in the middle of it
                await federation.until(lambda: len({name for _, name, _ in taken}) == devices)
                await federation.kill("pi-3")
            status = await asyncio.wait_for(federation.until_over(run), SLOW)
            return status, taken, await federation.rounds(run)

    calm, counted, _ = await federate(tmp_path / "calm", 0.0)
    rough, counted_rough, rounds = await federate(tmp_path / "rough", 0.2)
    assert calm.phase is rough.phase is RunPhase.FINISHED
    assert sum(link.cuts for link in links) > 50
    assert set(counted.values()) == set(counted_rough.values()) == {1}
    assert sum(one.split.repeats for one in rounds) > 0
    assert rough.metrics["accuracy"] > calm.metrics["accuracy"] - 0.03 > 0.85
    # What was lost is the dead device's alone: all others made all their steps in every round that closed.
    closed = [one for one in rounds if one.phase is RoundPhase.CLOSED]
    assert all(len(one.updates) >= 7 for one in closed) and len(closed) == 4


async def federate_one(folder, trainer, **how):
    """Return the model that one device makes with the aggregator, and its rounds."""
    async with federating(folder, trainer) as federation:
        await federation.add("pi", 1, **how)
        status = await asyncio.wait_for(federation.run(plan(1, rounds=2)), SLOW)
        assert status.phase is RunPhase.FINISHED
        return await published(federation, status.run), await federation.rounds(status.run)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def undisturbed(tmp_path_factory, trainer):
    return await federate_one(tmp_path_factory.mktemp("undisturbed"), trainer)


WAYS = {
    "poll": {"split_transport": "poll"},
    "blocked": {"wrap": Blocked},
    "cut again and again": {"wrap": lambda link: Cuts(link, 4, 0.25), "split_transport": "websocket"},
    "twice through the front half": {"keeps_tape": False},
}


@pytest.mark.parametrize("way", WAYS)
async def test_however_steps_travel_the_model_is_the_same_to_the_bit(tmp_path, trainer, undisturbed, way):
    model, rounds = await federate_one(tmp_path, trainer, **WAYS[way])
    for name, tensor in undisturbed[0].items():
        np.testing.assert_array_equal(tensor, model[name])
    assert all(one.split.batches == 8 for one in rounds)


async def test_a_device_that_loses_its_power_at_any_step_loses_no_step(tmp_path, trainer, monkeypatch):
    async def federate(folder, cuts):
        async with federating(folder, trainer) as federation, counting(federation) as taken:
            left, write = set(cuts), Spool.write_split

            def cut(spool, assignment, kept):
                if (assignment.round, kept.step) in left:
                    left.discard((assignment.round, kept.step))
                    if kept.step % 2:
                        write(spool, assignment, kept)
                    raise PowerCutError
                write(spool, assignment, kept)

            monkeypatch.setattr(Spool, "write_split", cut)
            await federation.add("pi", 1)
            run = await federation.start(plan(1, rounds=2, split={"start": "shared", "coding": "shared"}))
            runs = federation.service.context.federation
            await federation.until(lambda: runs.driver is not None)
            while runs.driver is not None:
                if federation.agents["pi"].done():
                    await federation.kill("pi")
                    await federation.add("pi", 1)
                await asyncio.sleep(0.02)
            monkeypatch.setattr(Spool, "write_split", write)
            return await published(federation, run), taken, left

    calm, _, _ = await federate(tmp_path / "calm", ())
    cuts = [(number, step) for number in (1, 2) for step in (1, 2, 4, 7)]
    cut, taken, left = await federate(tmp_path / "cut", cuts)
    assert not left
    assert set(taken.values()) == {1}
    for name, tensor in calm.items():
        np.testing.assert_array_equal(tensor, cut[name])


class PowerCutError(Exception):
    """The agent ends here."""


async def test_both_kinds_of_devices_make_one_model_and_their_duals_add_up(tmp_path, trainer):
    mixed = plan(4, rounds=4, split={"devices": "front-only", "gather_seconds": 0.2, "gradient_bits": 4.0})
    async with federating(tmp_path, trainer) as federation:
        for k in range(4):
            await federation.add(f"pi-{k}", k, trains="front" if k < 2 else "either")
        status = await asyncio.wait_for(federation.run(mixed), SLOW)
        rounds = await federation.rounds(status.run)
        state = load_state(RunFiles(tmp_path / "server", status.run).state(rounds[-1].round))
        last = f"dual-*-{rounds[-1].round}.f64"
        spools = [tmp_path / f"pi-{k}" / "spool" for k in range(4)]
        await federation.until(lambda: all(list(spool.glob(last)) for spool in spools))  # their last receipts
        for name in list(federation.agents):
            await federation.kill(name)
        duals = [dual_in(spool, last) for spool in spools]
    assert status.phase is RunPhase.FINISHED and status.metrics["accuracy"] > 0.9
    assert all(one.split.devices == ("pi-0", "pi-1") and len(one.updates) == 4 for one in rounds)
    front = len(duals[0])
    assert len(duals[0]) == len(duals[1]) < len(duals[2]) == len(duals[3]) == len(state.h)
    total = duals[2] + duals[3] + state.back_dual
    total[:front] += duals[0] + duals[1]
    np.testing.assert_allclose(total, state.h, atol=1e-12)
    assert np.abs(state.back_dual[front:]).max() > 0 == np.abs(state.back_dual[:front]).max()


def dual_in(spool, name):
    (path,) = spool.glob(name)
    return np.frombuffer(Spool(spool).disk.read_checked(path), np.float64)


async def test_labels_stay_on_devices_that_keep_the_last_layer(tmp_path, trainer):
    async with federating(tmp_path, trainer) as federation:
        for k in range(2):
            await federation.add(f"pi-{k}", k, path=U_TASK, wrap=lambda link, k=k: Cuts(link, k, 0.1))
        status = await asyncio.wait_for(federation.run(plan(2, task=U_TASK, rounds=4)), SLOW)
        rounds = await federation.rounds(status.run)
    assert status.phase is RunPhase.FINISHED and status.metrics["accuracy"] > 0.9
    for one in rounds:
        split = one.split
        # Two exchanges a step: activations up and outputs down, gradients up and gradients down; 64 numbers each.
        assert (split.batches, split.refused, split.labels, split.loss) == (2 * 2 * 8, 0, 0, None)
        assert split.float32_bytes.up == split.float32_bytes.down == 2 * 2 * 8 * 20 * 64 * 4
        assert one.loss is not None


async def test_who_trains_front_halves_alone_is_left_out_of_other_runs_and_told_so(tmp_path, trainer):
    async with federating(tmp_path, trainer) as federation:
        await federation.add("weak", 0, trains="front")
        await federation.add("pi", 1)
        run = await federation.start(plan(1, split=None, rounds=1))
        status = await asyncio.wait_for(federation.until_over(run), SLOW)
        rounds = await federation.rounds(run)
    assert status.phase is RunPhase.FINISHED
    assert rounds[0].cohort == ("pi",) and rounds[0].split is None


async def test_a_quantizer_that_does_not_fit_the_model_fails_the_run_and_says_why(tmp_path, trainer):
    async with federating(tmp_path, trainer) as federation:
        await federation.add("pi", 0)
        status = await asyncio.wait_for(federation.run(plan(1, split={"subvectors": 7})), SLOW)
    assert status.phase is RunPhase.FAILED
    assert "the back half failed" in status.reason and "subvectors that divide" in status.reason


async def test_garbage_is_refused_and_harms_nobody(tmp_path, trainer, monkeypatch):
    async with federating(tmp_path, trainer) as federation:
        await federation.add("liar", 0)
        await federation.until(lambda: "liar" in federation.service.context.house.devices.by_id)
        credential = (tmp_path / "liar" / "credential").read_text().strip()
        await federation.kill("liar")
        await federation.add("pi", 1)
        changes = {"cohort": {"devices": 2, "updates": {"min": 1, "max": 2}, "seconds": {"min": 0.0, "max": 30.0}}}
        run = await federation.start(plan(2, rounds=1, **changes))
        with watching(monkeypatch, max_cpu_seconds=0.25) as blocked:
            async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {credential}"}) as session:
                said = await lie(federation, session, run)
            status = await asyncio.wait_for(federation.until_over(run), SLOW)
        rounds = await federation.rounds(run)
        rejected = dict(federation.service.context.rejections.by_reason)
    assert status.phase is RunPhase.FINISHED and status.metrics["accuracy"] > 0.3
    assert rounds[0].split.devices == ("pi",) and rounds[0].split.batches == 8
    assert said["taken over"] in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)
    assert said["garbage"] == 1003 and said["words"] == 1003 and said["too long"] == 1009
    assert said["refusal"].startswith("CodecError: expected activations")
    assert (said["other"], said["past"]) == (409, 409)
    assert (said["not invited"], said["no round"], said["no step"]) == (403, 404, 422)
    assert rejected["payload"] >= 2 and rejected["conflict"] == 2
    assert not blocked


async def lie(federation, session, run):
    """Do everything that a device must not, and return how it was answered."""
    url, said = federation.service.url, {}
    async with session.get(f"{url}/v1/work?wait=20") as answer:
        assert answer.status == 200
    split = f"{url}/v1/runs/{run}/split?round=1"

    async def socket(send):
        async with session.ws_connect(split) as ws:
            assert isinstance(read_exchange((await ws.receive()).data), Hello)
            await send(ws)
            message = await ws.receive()
            return ws.close_code if message.type is not aiohttp.WSMsgType.BINARY else read_exchange(message.data)

    first = await session.ws_connect(split)
    assert isinstance(read_exchange((await first.receive()).data), Hello)
    said["garbage"] = await socket(lambda ws: ws.send_bytes(b"\x01\x02garbage"))
    said["words"] = await socket(lambda ws: ws.send_str(json.dumps({"step": 1})))
    said["too long"] = await socket(lambda ws: ws.send_bytes(bytes(1 << 20)))
    said["taken over"] = (await first.receive()).type
    first = Batch(3, b"no activations", b"no labels")
    said["refusal"] = (await socket(lambda ws: ws.send_bytes(first.to_bytes()))).reason
    for name, batch in (("other", Batch(3, b"others", b"")), ("past", Batch(2, b"", b""))):
        async with session.post(split, data=batch.to_bytes()) as answer:
            said[name] = answer.status
    for name, query in (("no round", "round=9"), ("no step", "round=1&step=x")):
        async with session.get(f"{url}/v1/runs/{run}/split?{query}") as answer:
            said[name] = answer.status
    refusal = pack(UpdateHeader(update="0" * 32, num_examples=1, refusal=Refusal.TRAINING_FAILED))
    path = f"{url}/v1/runs/{run}/rounds/1/updates/me"
    async with session.put(path, data=len(refusal).to_bytes(4, "little") + refusal) as answer:
        assert answer.status == 200
    said["not invited"] = await _stranger(federation, run)
    return said


async def _stranger(federation, run):
    late = Device(federation.service.url, "late", federation.tokens[Role.ENROLL])
    try:
        await late.enroll()
        with pytest.raises(Refused) as refused:
            await late.send("GET", f"/v1/runs/{run}/split?round=1")
    finally:
        await late.close()
    return refused.value.problem.status
