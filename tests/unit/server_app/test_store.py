"""The database: its history ends in its tables, and each method is one transaction."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from fedge.protocol.run import Opened, step
from schemas.base import parse
from schemas.ids import DeviceId
from schemas.messages import Assignment, Outcome, Receipt
from schemas.plan import Plan
from schemas.specs import DownlinkSpec, FedDyn, LocalSpec, UplinkSpec
from schemas.status import Role, RoundPhase, RoundStatus, RunPhase
from server_app.migrations import upgrade
from server_app.rows import Member, Participation
from server_app.store import Store
from server_app.tables import metadata
from tests.support.http import LAYOUT, TASK, plan

PLAN = parse(Plan, plan(), "plan")


def asked(run: str, number: int) -> Assignment:
    """Return some assignment."""
    return Assignment(
        run=run,  # type: ignore[arg-type]
        round=number,
        task=TASK,
        layout=LAYOUT.digest,
        seed=5,
        algorithm=FedDyn(name="feddyn"),
        relative_size=0.5,
        local=LocalSpec(),
        uplink=UplinkSpec(),
        downlink=DownlinkSpec(),
        seconds_left=0.0,
        dual_epoch=0,
        last_applied=0,
    )


def test_migrating_an_empty_database_makes_exactly_the_tables() -> None:
    engine = sa.create_engine("sqlite://")
    with engine.begin() as connection:
        upgrade(connection)
        differences = compare_metadata(MigrationContext.configure(connection), metadata)
    assert differences == []


def test_migrating_twice_changes_nothing(tmp_path: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'd'}")
    for _ in range(2):
        with engine.begin() as connection:
            upgrade(connection)
            assert set(sa.inspect(connection).get_table_names()) == {*metadata.tables, "alembic_version"}


async def test_a_run_of_before_there_were_initial_metrics_is_kept_and_can_still_get_them(tmp_path: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'fedge.sqlite'}")
    with engine.begin() as connection:
        upgrade(connection, "0001")
        old = sa.Table("runs", sa.MetaData(), autoload_with=connection)
        assert not {"initial_metrics", "tested_bytes_up"} & set(old.columns.keys())
        numbers = dict.fromkeys(("rounds_abandoned", "abandoned_in_row", "dual_epoch", "mean_examples"), 0)
        words = {"run": "tiny-1", "plan": PLAN.model_dump(mode="json"), "phase": "running", "reason": ""}
        facts = {"created_at": 12.5, "round": 2, "state_round": 1, "rounds_closed": 1, "metrics": {"accuracy": 0.5}}
        connection.execute(old.insert().values(**words, **facts, **numbers, totals={"traffic": {"up": 9, "down": 7}}))
    engine.dispose()
    async with Store.open("", tmp_path) as store:
        run = await store.run("tiny-1")
        assert run is not None and (run.metrics, run.totals.traffic.up) == ({"accuracy": 0.5}, 9)
        assert (run.initial_metrics, run.tested_bytes_up) == (None, None)
        await store.save_run(replace(run, initial_metrics={}))
    async with Store.open("", tmp_path) as store:
        assert await store.run("tiny-1") == replace(run, initial_metrics={})


async def test_a_run_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    async with Store.open("", tmp_path) as store:
        run = await store.add_run("tiny", PLAN, 12.5)
        progress, _ = step(run.progress, Opened())
        changed = replace(run, progress=progress, layout=LAYOUT, state_round=4, metrics={"accuracy": 0.5})
        changed = replace(changed, initial_metrics={"accuracy": 0.1}, tested_bytes_up=2**40)
        await store.save_run(changed)
    async with Store.open("", tmp_path) as store:
        assert await store.run("tiny-1") == changed
        assert (await store.add_run("tiny", PLAN, 13.0)).run == "tiny-2"
        assert [row.phase for row in await store.runs()] == [RunPhase.RUNNING, RunPhase.QUEUED]


async def test_a_receipt_is_the_same_for_ever_and_there_is_none_before_the_round_is_over(tmp_path: Path) -> None:
    pi = DeviceId("pi")
    async with Store.open("", tmp_path) as store:
        run = await store.add_run("tiny", PLAN, 0.0)
        status = RoundStatus(round=1, phase=RoundPhase.COLLECTING, cohort=(pi,))
        part = Participation(pi, asked(run.run, 1))
        await store.open_round(run, status, [Member(pi, 10, 0.5)], [part])
        assert await store.receipt(run.run, 1, pi) is None
        assert await store.assignments(run.run, 1) == {pi: part.assignment}
        receipt = Receipt(run=run.run, round=1, update="ab" * 8, outcome=Outcome.PARTIAL, applied=(0, 3))
        closed = status.model_copy(update={"phase": RoundPhase.CLOSED})
        await store.end_round(run, closed, {pi: receipt}, [Member(pi, 10, 0.5, 0, 1)])
    async with Store.open("", tmp_path) as store:
        assert await store.receipt(run.run, 1, pi) == receipt
        assert await store.receipts(pi, None) == [receipt] == await store.receipts(pi, run.run)
        assert await store.receipts(pi, "other") == []
        assert (await store.members(run.run))[pi].last_applied == 1
        assert await store.rounds(run.run) == [closed]


async def test_a_round_is_opened_wholly_or_not_at_all(tmp_path: Path) -> None:
    async with Store.open("", tmp_path) as store:
        run = await store.add_run("tiny", PLAN, 0.0)
        status = RoundStatus(round=1, phase=RoundPhase.COLLECTING)
        broken = Participation(DeviceId("pi"), None)  # type: ignore[arg-type]
        with pytest.raises(AttributeError):
            await store.open_round(replace(run, dual_epoch=7), status, [Member(DeviceId("pi"), 10, 0.5)], [broken])
        assert await store.run(run.run) == run
        assert await store.rounds(run.run) == []
        assert await store.members(run.run) == {}


async def test_what_is_committed_survives_a_power_cut(tmp_path: Path) -> None:
    async with Store.open("", tmp_path) as store, store.engine.connect() as connection:
        assert await connection.scalar(sa.text("PRAGMA synchronous")) == 2
        assert await connection.scalar(sa.text("PRAGMA journal_mode")) == "wal"


async def test_tokens_are_kept_with_their_role(tmp_path: Path) -> None:
    async with Store.open("", tmp_path) as store:
        await store.add_token("ab" * 32, Role.VIEWER, "wall", 1.0)
        assert await store.tokens() == {"ab" * 32: Role.VIEWER}


async def test_a_participation_without_an_outcome_is_outstanding_until_its_receipt_is_written(tmp_path: Path) -> None:
    pi, a = DeviceId("pi"), DeviceId("a")
    async with Store.open("", tmp_path) as store:
        run = await store.add_run("tiny", PLAN, 0.0)
        first, second = (RoundStatus(round=number, phase=RoundPhase.COLLECTING) for number in (1, 2))
        await store.open_round(run, first, [], [Participation(name, asked(run.run, 1)) for name in (pi, a)])
        done = Receipt(run=run.run, round=1, update="ab" * 8, outcome=Outcome.APPLIED, applied=(0,))
        await store.end_round(run, first, {a: done}, [])
        assert await store.outstanding(run.run, 1) == {}
        assert await store.outstanding(run.run, 2) == {pi: asked(run.run, 1)}
        late = Receipt(run=run.run, round=1, update="cd" * 8, outcome=Outcome.PARTIAL, applied=(3,))
        await store.open_round(run, second, [], [Participation(a, asked(run.run, 2))])
        assert await store.outstanding(run.run, 2) == {pi: asked(run.run, 1)}
        await store.end_round(run, second, {pi: late}, [])
        assert await store.receipt(run.run, 1, pi) == late
        assert await store.outstanding(run.run, 2) == {}
        given_up = Receipt(run=run.run, round=2, update=None, outcome=Outcome.LATE, applied=())
        await store.open_round(run, RoundStatus(round=3, phase=RoundPhase.COLLECTING), [], [], {a: given_up})
        assert await store.receipts(a, None) == [done, given_up]
