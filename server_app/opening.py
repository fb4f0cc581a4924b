"""What opens a round: enough devices, a cohort drawn among them, and all of it written down.

    enough devices -> members, cohort, assignments -> journal -> one transaction (run, round, members, participations)

A round that was open when the aggregator ended is taken up again from the same rows and its journal.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace

from fedge.aggregation import SegmentSums
from fedge.algorithms import Algorithm
from fedge.layout import Layout
from fedge.protocol import coordinator
from fedge.protocol.coordinator import CohortChosen, Round
from fedge.protocol.ledger import Ledger
from fedge.protocol.offer import assign, quota_of
from fedge.selection import choose_cohort
from schemas.ids import DeviceId
from schemas.messages import Assignment
from schemas.status import RoundPhase, Traffic
from server_app import planning
from server_app.blobs import RunFiles
from server_app.book import Book, gone_of, open_book
from server_app.devices import Device
from server_app.evaluation import RunRecord
from server_app.house import House
from server_app.rows import Member, Participation, with_measured

log = logging.getLogger(__name__)

Asked = Mapping[DeviceId, Assignment]
Members = Mapping[DeviceId, Member]


class Opening:
    """Opens the rounds of one run, and knows its ``members``."""

    def __init__(self, house: House, record: RunRecord, algorithm: Algorithm, files: RunFiles) -> None:
        self.house, self.record, self.algorithm, self.files = house, record, algorithm, files
        self.members: dict[DeviceId, Member] = {}
        self._eligibility = planning.Eligibility(record.row.plan)

    async def open(
        self, layout: Layout, number: int, pause: Callable[[str], None], traffic: Callable[[], Traffic]
    ) -> Book:
        """Wait until enough devices are available, choose a cohort, and write the round down.

        ``pause`` is told what the round waits for, before each wait, and "" at the end; what it raises ends the wait.
        """
        eligible, available = await self._enough_devices(layout, pause)
        run, fresh = planning.join(self.record.row, eligible, self.members)
        members = self.members | {member.device: member for member in fresh}
        cohort = choose_cohort(run.plan.seed, number, (d.id for d in available), run.plan.cohort.devices)
        round, _ = coordinator.step(Round(number, quota_of(run.plan)), CohortChosen(cohort), self.house.clock())
        asked = {}
        for one in (self.house.devices.by_id[DeviceId(name)] for name in cohort):
            standing = planning.standing(run, members[one.id], one, self.algorithm.stateful)
            asked[one.id] = assign(run.plan, run.run, round, one.id, layout, standing, run.dual_epoch, round.opened_at)
        book = await self._start_book(layout, round, asked, members, self.house.wall_clock())
        parts = [Participation(name, offer) for name, offer in asked.items()]
        async with self.record.writing:
            run = with_measured(run, self.record.row)
            await self.house.store.open_round(run, book.round_status(traffic()), fresh, parts)
            self.record.row, self.members = run, members
        return book

    async def reopen(self, layout: Layout, number: int) -> Book | None:
        """Take up the round that was open when the aggregator ended, if one was; its time starts again."""
        run = self.record.row
        self.members = await self.house.store.members(run.run)
        status = await self.house.store.round(run.run, number)
        if status is None or status.closed_at is not None:
            return None
        asked = await self.house.store.assignments(run.run, number)
        round = Round(number, quota_of(run.plan), RoundPhase.COLLECTING, self.house.clock(), status.cohort)
        book = await self._start_book(layout, round, asked, self.members, status.opened_at or self.house.wall_clock())
        book.round = replace(book.round, updates=book.updates(), gone=gone_of(book))
        book.fetched.update(asked)  # who had fetched its assignment was not written down: nobody counts as absent
        log.info("round resumed", extra={"run": run.run, "round": number, "updates": len(book.updates())})
        return book

    async def _enough_devices(self, layout: Layout, pause: Callable[[str], None]) -> tuple[list[Device], list[Device]]:
        devices, plan = self.house.devices, self.record.row.plan
        while True:
            devices.arrived.clear()
            eligible = [d for d in devices.by_id.values() if self._eligibility.allows(layout, d)]
            available = [d for d in eligible if devices.is_available(d)]
            if len(available) >= plan.cohort.updates.min:
                pause("")
                return eligible, available
            pause(f"{len(available)} of {plan.cohort.updates.min} devices online")
            await devices.arrived.wait()

    async def _start_book(self, layout: Layout, round: Round, asked: Asked, members: Members, opened_at: float) -> Book:
        weights = {device: self.algorithm.weight(members[device].num_examples) for device in asked}
        run = self.record.row
        ledger, sums = Ledger(len(layout.segments)), SegmentSums(layout, run.plan.aggregation.weights)
        book = Book(run.run, round, opened_at, layout, asked, weights, self.algorithm.trust, ledger, sums)
        book.commit = await asyncio.to_thread(open_book, book, self.files.journal(round.number))
        return book
