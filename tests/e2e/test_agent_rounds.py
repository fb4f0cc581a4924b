"""The agent over real HTTP against an aggregator in memory: rounds that go well, and rounds that do not."""

import asyncio
import re
from functools import partial

import numpy as np
import pytest
import pytest_asyncio
from aiohttp import web

from device_app.agent import Watch, run_device
from device_app.errors import HomeError, Unauthorised
from device_app.faults import CutLink
from device_app.trainer import Trainer
from schemas.messages import Refusal
from schemas.specs import DownlinkSpec, FedAvg, LinkLimit, LocalSpec
from tests.support.device import Aggregator, dual_of, make_home, problem, running, wisdm_layout

LAYOUT = wisdm_layout()
ENDLESS = LocalSpec(epochs=10_000, batch_size=32, learning_rate=0.01)
DIVERGING = LocalSpec(epochs=5, batch_size=32, learning_rate=1e30, clip_norm=0.0)


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def trainer():
    async with Trainer() as trainer:
        yield trainer


@pytest_asyncio.fixture(loop_scope="module")
async def aggregator():
    async with Aggregator(LAYOUT, last_round=2).serving() as aggregator:
        yield aggregator


@pytest.fixture
def home(tmp_path, aggregator):
    return make_home(tmp_path / "home", aggregator.url)


def once(method, answer):
    """Answer the first request of ``method`` with ``answer()``, and let the rest pass."""
    asked = []

    async def on_request(request):
        if request.method == method and not asked:
            asked.append(request.path)
            return answer()
        return None

    return on_request


async def test_a_round_is_four_requests_and_the_dual_is_what_the_aggregator_added_up(aggregator, home, trainer):
    async with running(home, trainer):
        await aggregator.until_settled(2)
    assert [re.sub("&state=[0-9a-f]{16}$", "&state=ID", request) for request in aggregator.requests] == [
        "POST /v1/enroll",
        "GET /v1/work?wait=5",
        "GET /v1/runs/wisdm-1/download?round=1&state=ID",
        "PUT /v1/runs/wisdm-1/rounds/1/updates/me",
        "GET /v1/work?wait=5&run=wisdm-1&round=1",
        "GET /v1/runs/wisdm-1/download?round=2&state=ID",
        "PUT /v1/runs/wisdm-1/rounds/2/updates/me",
        "GET /v1/work?wait=5&run=wisdm-1&round=2",
        "GET /v1/work?wait=5",
    ]
    assert np.abs(aggregator.h).max() > 0
    assert np.array_equal(dual_of(home, LAYOUT), aggregator.h)


async def test_a_settled_spool_holds_the_state_one_dual_and_what_was_downloaded_last(aggregator, home, trainer):
    async with running(home, trainer):
        await aggregator.until_settled(2)
    kept = sorted(path.name for path in home.spool_path.iterdir())
    assert [re.sub("-[0-9a-f]{16}", "-ID", name) for name in kept] == [
        "down-wisdm-1-ID.f32",
        "dual-wisdm-1-0-2.f64",
        "state",
    ]


async def test_a_device_of_an_algorithm_without_duals_keeps_none(aggregator, home, trainer):
    aggregator.algorithm = FedAvg(name="fedavg")
    async with running(home, trainer):
        await aggregator.until_settled(2)
    assert not list(home.spool_path.glob("dual-*"))


async def test_frames_leave_in_another_order_every_round(aggregator, home, trainer):
    async with running(home, trainer):
        await aggregator.until_settled(2)
    first, second = aggregator.bodies
    assert sorted(first) == sorted(second) == list(range(len(LAYOUT.segments)))
    assert first != second != sorted(second)


async def test_a_cut_upload_goes_on_with_the_missing_segments_only(aggregator, home, trainer):
    async with running(home, trainer, partial(CutLink, fraction=0.6)):
        await aggregator.until_settled(2)
    first, rest, *_ = aggregator.bodies
    assert first and rest
    assert sorted(first + rest) == list(range(len(LAYOUT.segments)))
    assert np.array_equal(dual_of(home, LAYOUT), aggregator.h)


async def test_only_the_segments_a_receipt_names_move_the_dual(aggregator, home, trainer):
    aggregator.closes = False
    async with running(home, trainer):
        await aggregator.until(lambda: aggregator.ledger.is_complete("pi-1"))
        aggregator.last_round = 1
        await aggregator.close_round(applied=(0, 3))
        await aggregator.until_settled(1)
    dual = dual_of(home, LAYOUT)
    moved = [segment.index for segment in LAYOUT.segments if np.any(dual[segment.slice])]
    assert moved == [0, 3]
    assert np.array_equal(dual, aggregator.h)


async def test_an_abandoned_round_moves_nothing_and_the_next_one_is_taken(aggregator, home, trainer):
    aggregator.closes = False
    async with running(home, trainer):
        await aggregator.until(lambda: aggregator.ledger.is_complete("pi-1"))
        await aggregator.close_round(applied=())
        aggregator.closes = True
        await aggregator.until_settled(2)
    assert not aggregator.refusals
    assert np.array_equal(dual_of(home, LAYOUT), aggregator.h)


async def test_a_round_that_ends_in_mid_training_stops_it_and_the_warm_trainer_takes_the_next(
    aggregator, home, trainer
):
    aggregator.local = ENDLESS
    async with running(home, trainer, watch=Watch(after_seconds=0.2, every_seconds=0.1)):
        await aggregator.until(lambda: "updates/me" in aggregator.last_request)
        trained_by = trainer.process_id
        aggregator.local = LocalSpec(epochs=1)
        await aggregator.close_round()
        await aggregator.until_settled(2)
    assert trainer.process_id == trained_by
    assert [len(body) for body in aggregator.bodies] == [len(LAYOUT.segments)]


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        ({"task": "other.package:task"}, Refusal.UNKNOWN_TASK),
        ({"layout": "0" * 32}, Refusal.LAYOUT_DIFFERS),
        ({"local": DIVERGING}, Refusal.TRAINING_FAILED),
        ({"last_applied": 9}, Refusal.STATE_LOST),
        ({"downlink": DownlinkSpec(codec="none")}, Refusal.BUDGET_TOO_SMALL),
    ],
)
async def test_a_device_that_cannot_take_part_says_why_and_polls_again(
    aggregator, home, trainer, monkeypatch, change, refusal
):
    config = home.config()
    limit = LinkLimit(bytes_per_round=4 * LAYOUT.size - 1)
    home.write_config(config.model_copy(update={"limits": config.limits.model_copy(update={"downlink": limit})}))
    asked = aggregator.assignment()
    monkeypatch.setattr(aggregator, "assignment", lambda: asked.model_copy(update=change))
    async with running(home, trainer):
        await aggregator.until(lambda: bool(aggregator.refusals))
        aggregator.last_round = 0
        await aggregator.close_round()
        await aggregator.until_settled(1)
    assert aggregator.refusals[0].refusal is refusal
    assert aggregator.refusals[0].reason
    assert aggregator.bodies == []


async def test_a_device_whose_dual_was_damaged_refuses_and_starts_afresh_in_the_next_epoch(aggregator, home, trainer):
    async with running(home, trainer):
        await aggregator.until_settled(2)
    path = home.spool_path / "dual-wisdm-1-0-2.f64"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    aggregator.last_round = 4
    async with running(home, trainer):
        await aggregator.until(lambda: bool(aggregator.refusals))
        await aggregator.start_epoch()
        await aggregator.until_settled(4)
    assert [refused.refusal for refused in aggregator.refusals] == [Refusal.STATE_LOST]
    assert np.array_equal(dual_of(home, LAYOUT), aggregator.h)


@pytest.mark.parametrize("damage", [b"", b"fdg1 and then nothing that is a state"])
async def test_a_device_whose_state_was_lost_refuses_instead_of_ending(aggregator, home, trainer, damage):
    async with running(home, trainer):
        await aggregator.until_settled(2)
    (home.spool_path / "state").write_bytes(damage)
    aggregator.last_round = 3
    async with running(home, trainer):
        await aggregator.until(lambda: bool(aggregator.refusals))
    assert aggregator.refusals[0].refusal is Refusal.STATE_LOST


@pytest.mark.parametrize("method", ["POST", "GET", "PUT"])
@pytest.mark.parametrize("answer", [lambda: problem(503, "not_ready"), lambda: problem(409, "conflict")])
async def test_a_refused_request_is_tried_again(aggregator, home, trainer, method, answer):
    aggregator.on_request = once(method, answer)
    async with running(home, trainer):
        await aggregator.until_settled(2)
    assert np.array_equal(dual_of(home, LAYOUT), aggregator.h)


async def test_a_device_waits_as_long_as_it_is_asked_to(aggregator, home, trainer):
    loop = asyncio.get_running_loop()
    asked_at = []

    async def busy_at_first(request):
        asked_at.append(loop.time())
        return problem(429, "busy", retry_after="0.9") if len(asked_at) == 1 else None

    aggregator.on_request = busy_at_first
    async with running(home, trainer):
        await aggregator.until(lambda: len(asked_at) > 1)
    assert asked_at[1] - asked_at[0] >= 0.9


async def test_a_poll_that_is_not_held_does_not_become_a_hot_loop(aggregator, home, trainer, caplog):
    async def answer_at_once(request):
        return web.Response(status=204) if request.path == "/v1/work" else None

    aggregator.on_request = answer_at_once
    async with running(home, trainer):
        await aggregator.until(lambda: len(aggregator.requests) > 3)
    waits = [record for record in caplog.records if record.message == "waiting to try again"]
    assert [record.failures for record in waits][:2] == [1, 2]


async def test_a_device_the_aggregator_does_not_know_ends(aggregator, home, trainer):
    aggregator.on_request = once("GET", lambda: problem(401, "unauthorized"))
    with pytest.raises(Unauthorised, match="because of unauthorized"):
        await run_device(home, trainer)


async def test_one_home_takes_one_agent(aggregator, home, trainer):
    async with running(home, trainer):
        await aggregator.until(lambda: bool(aggregator.requests))
        with pytest.raises(HomeError, match="another agent"):
            await run_device(home, trainer)
