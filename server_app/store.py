"""The database as methods, each one transaction.

SQLAlchemy's async core over SQLite (write-ahead log, ``synchronous=FULL``: what was committed survives a power cut), or
over whatever ``database_url`` names. SQLite gets a single connection, so its writers queue here and not on its lock.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from fedge.layout import Layout
from fedge.protocol.run import Run
from schemas.base import parse
from schemas.ids import DeviceId, RunId
from schemas.messages import Assignment, Receipt
from schemas.packing import pack, unpack
from schemas.plan import Plan
from schemas.status import Role, RoundStatus, RunPhase
from server_app.migrations import upgrade
from server_app.rows import Member, Participation, RunRow, Totals, receipt_of
from server_app.tables import devices, members, participations, rounds, runs, tokens

Row = Mapping[str, Any]


def open_engine(url: str, state_dir: Path) -> AsyncEngine:
    """Return the engine of ``url``; an empty one means SQLite in ``state_dir``."""
    url = url or f"sqlite+aiosqlite:///{state_dir.absolute() / 'fedge.sqlite'}"
    if not url.startswith("sqlite"):
        return create_async_engine(url)
    engine = create_async_engine(url, pool_size=1, max_overflow=0)
    sa.event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    return engine


def _prepare_sqlite(connection: Any, record: object) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


class Store:
    """Reads and writes rows."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, state_dir: Path) -> AsyncIterator[Self]:
        """Open the database, with the newest tables."""
        engine = open_engine(url, state_dir)
        try:
            async with engine.begin() as connection:
                await connection.run_sync(upgrade)
            yield cls(engine)
        finally:
            await engine.dispose()

    async def tokens(self) -> dict[str, Role]:
        """Return what each token allows, by hash."""
        found = await self._rows(sa.select(tokens))
        return {row["hash"]: Role(row["role"]) for row in found}

    async def add_token(self, digest: str, role: Role, note: str, now: float) -> None:
        """Remember a token."""
        async with self.engine.begin() as connection:
            await connection.execute(tokens.insert().values(hash=digest, role=role, note=note, created_at=now))

    async def devices(self) -> list[dict[str, Any]]:
        """Return all devices, as ``save_devices`` took them."""
        return [dict(row) for row in await self._rows(sa.select(devices).order_by(devices.c.enrolled_at))]

    async def save_devices(self, rows: Iterable[Row]) -> None:
        """Insert or replace ``rows``."""
        async with self.engine.begin() as connection:
            for row in rows:
                await _put(connection, devices, row)

    async def add_run(self, stem: str, plan: Plan, now: float) -> RunRow:
        """Queue a run and name it ``stem-<position>``."""
        async with self.engine.begin() as connection:
            last = await connection.scalar(sa.select(sa.func.max(runs.c.position)))
            run = RunRow(RunId(f"{stem}-{(last or 0) + 1}"), plan, now, Run(plan.rounds, plan.abandon_after))
            await connection.execute(runs.insert().values(**_run_values(run)))
        return run

    async def runs(self) -> list[RunRow]:
        """Return all runs, oldest first."""
        return [_run(row) for row in await self._rows(sa.select(runs).order_by(runs.c.position))]

    async def run(self, name: str) -> RunRow | None:
        """Return one run."""
        found = await self._rows(sa.select(runs).where(runs.c.run == name))
        return _run(found[0]) if found else None

    async def save_run(self, run: RunRow) -> None:
        """Write a run down."""
        async with self.engine.begin() as connection:
            await _save_run(connection, run)

    async def members(self, run: str) -> dict[DeviceId, Member]:
        """Return the devices of a run."""
        found = await self._rows(sa.select(members).where(members.c.run == run))
        return {row["device"]: Member(**{k: v for k, v in row.items() if k != "run"}) for row in found}

    async def rounds(self, run: str) -> list[RoundStatus]:
        """Return the rounds of a run, oldest first."""
        query = sa.select(rounds.c.status).where(rounds.c.run == run).order_by(rounds.c.round)
        return [parse(RoundStatus, row["status"], "round") for row in await self._rows(query)]

    async def round(self, run: str, number: int) -> RoundStatus | None:
        """Return one round."""
        query = sa.select(rounds.c.status).where(rounds.c.run == run, rounds.c.round == number)
        found = await self._rows(query)
        return parse(RoundStatus, found[0]["status"], "round") if found else None

    async def save_round(self, run: str, status: RoundStatus) -> None:
        """Write a round's status down."""
        async with self.engine.begin() as connection:
            await _save_round(connection, run, status)

    async def open_round(
        self,
        run: RunRow,
        status: RoundStatus,
        fresh: Sequence[Member],
        asked: Sequence[Participation],
        given_up: Mapping[DeviceId, Receipt] | None = None,
    ) -> None:
        """Write down that a round begins: who is new in the run, and what each invited device is asked.

        ``given_up`` are receipts of devices of whom nothing of an earlier round will come any more.
        """
        async with self.engine.begin() as connection:
            await _save_run(connection, run)
            await _save_round(connection, run.run, status)
            for member in fresh:
                await _save_member(connection, run.run, member)
            for one in asked:
                values = {"assignment": pack(one.assignment), **_key(run.run, status.round, one.device)}
                await _put(connection, participations, {**values, "update": None, "outcome": None, "applied": None})
            await _save_receipts(connection, given_up or {})

    async def end_round(
        self, run: RunRow, status: RoundStatus, receipts: Mapping[DeviceId, Receipt], moved: Sequence[Member]
    ) -> None:
        """Write down that a round is over: every receipt that it decides, of whatever round, and the members whose
        last applied round moved."""
        async with self.engine.begin() as connection:
            await _save_run(connection, run)
            await _save_round(connection, run.run, status)
            for member in moved:
                await _save_member(connection, run.run, member)
            await _save_receipts(connection, receipts)

    async def save_receipts(self, receipts: Mapping[DeviceId, Receipt]) -> None:
        """Write down what became of participations."""
        async with self.engine.begin() as connection:
            await _save_receipts(connection, receipts)

    async def assignments(self, run: str, number: int) -> dict[DeviceId, Assignment]:
        """Return what each invited device of a round was asked."""
        where = (participations.c.run == run, participations.c.round == number)
        found = await self._rows(sa.select(participations).where(*where))
        return {row["device"]: unpack(Assignment, row["assignment"]) for row in found}

    async def outstanding(self, run: str, number: int) -> dict[DeviceId, Assignment]:
        """Return what devices were asked before round ``number`` that has no receipt yet."""
        where = (participations.c.run == run, participations.c.round < number, participations.c.outcome.is_(None))
        found = await self._rows(sa.select(participations).where(*where).order_by(participations.c.round))
        return {row["device"]: unpack(Assignment, row["assignment"]) for row in found}

    async def receipt(self, run: str, number: int, device: str) -> Receipt | None:
        """Return what became of a device's part in a round; None if it had none, or the round is not over."""
        query = sa.select(participations).where(_is(participations, _key(run, number, device)))
        found = await self._rows(query)
        return receipt_of(found[0]) if found and found[0]["outcome"] is not None else None

    async def receipts(self, device: str, run: str | None) -> list[Receipt]:
        """Return all receipts of a device, oldest first, of one run or of all."""
        query = sa.select(participations).where(
            participations.c.device == device, participations.c.outcome.is_not(None)
        )
        if run is not None:
            query = query.where(participations.c.run == run)
        joined = query.join(runs, runs.c.run == participations.c.run)
        ordered = joined.order_by(runs.c.position, participations.c.round)
        return [receipt_of(row) for row in await self._rows(ordered)]

    async def _rows(self, query: sa.Select[Any]) -> Sequence[Row]:
        async with self.engine.connect() as connection:
            return [dict(row) for row in (await connection.execute(query)).mappings()]


def _key(run: str, number: int, device: str) -> dict[str, Any]:
    return {"run": run, "round": number, "device": device}


def _is(table: sa.Table, key: Row) -> sa.ColumnElement[bool]:
    return sa.and_(*(table.c[name] == value for name, value in key.items()))


async def _put(connection: AsyncConnection, table: sa.Table, row: Row) -> None:
    """Replace or insert one row, in the words every database has."""
    key = {column.name: row[column.name] for column in table.primary_key}
    changed = await connection.execute(table.update().where(_is(table, key)).values(dict(row)))
    if changed.rowcount == 0:
        await connection.execute(table.insert().values(dict(row)))


async def _save_run(connection: AsyncConnection, run: RunRow) -> None:
    await connection.execute(runs.update().where(runs.c.run == run.run).values(**_run_values(run)))


async def _save_round(connection: AsyncConnection, run: str, status: RoundStatus) -> None:
    await _put(connection, rounds, {"run": run, "round": status.round, "status": status.model_dump(mode="json")})


async def _save_member(connection: AsyncConnection, run: str, member: Member) -> None:
    values = {name: getattr(member, name) for name in Member.__slots__}
    await _put(connection, members, {"run": run, **values})


async def _save_receipts(connection: AsyncConnection, receipts: Mapping[DeviceId, Receipt]) -> None:
    for device, receipt in receipts.items():
        key = _key(receipt.run, receipt.round, device)
        answer = {"update": receipt.update, "outcome": receipt.outcome, "applied": list(receipt.applied)}
        await connection.execute(participations.update().where(_is(participations, key)).values(answer))


_PROGRESS = ("phase", "round", "rounds_closed", "rounds_abandoned", "abandoned_in_row", "reason")


def _run_values(run: RunRow) -> dict[str, Any]:
    progress = {name: getattr(run.progress, name) for name in _PROGRESS}
    return progress | {
        "run": run.run,
        "plan": run.plan.model_dump(mode="json"),
        "created_at": run.created_at,
        "ended_at": run.ended_at,
        "layout": run.layout.to_json() if run.layout else None,
        "state_round": run.state_round,
        "dual_epoch": run.dual_epoch,
        "mean_examples": run.mean_examples,
        "metrics": dict(run.metrics),
        "initial_metrics": None if run.initial_metrics is None else dict(run.initial_metrics),
        "tested_bytes_up": run.tested_bytes_up,
        "totals": run.totals.model_dump(mode="json"),
        "phase": str(run.phase),
        "reason": run.progress.reason[:500],
    }


def _run(row: Row) -> RunRow:
    plan = parse(Plan, row["plan"], "plan")
    progress = {name: row[name] for name in _PROGRESS} | {"phase": RunPhase(row["phase"])}
    return RunRow(
        run=row["run"],
        plan=plan,
        created_at=row["created_at"],
        progress=Run(plan.rounds, plan.abandon_after, **progress),
        ended_at=row["ended_at"],
        layout=Layout.from_json(row["layout"]) if row["layout"] else None,
        state_round=row["state_round"],
        dual_epoch=row["dual_epoch"],
        mean_examples=row["mean_examples"],
        metrics=row["metrics"],
        initial_metrics=row["initial_metrics"],
        tested_bytes_up=row["tested_bytes_up"],
        totals=parse(Totals, row["totals"], "totals"),
    )
