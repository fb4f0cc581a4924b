"""What opens a round: enough devices, a cohort drawn among them, and all of it written down.

    enough devices -> members, cohort, assignments -> journal -> one transaction (run, round, members, participations)

Devices of whom an update of an earlier round is outstanding are not invited. What they send goes into the open round.

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
from fedge.protocol.staleness import late_receipts, seat
from schemas.ids import DeviceId
from schemas.messages import Assignment, Receipt
from schemas.status import RoundPhase, Traffic
from server_app import planning
from server_app.blobs import RunFiles
from server_app.book import Book, gone_of, open_book
from server_app.devices import Device
from server_app.evaluation import RunRecord
from server_app.house import House
from server_app.roster import Roster
from server_app.rows import Member, Participation, with_measured

log = logging.getLogger(__name__)

Asked = Mapping[DeviceId, Assignment]
Members = Mapping[DeviceId, Member]


class Opening:
    """Opens the rounds of one run."""

    def __init__(self, house: House, record: RunRecord, algorithm: Algorithm, files: RunFiles) -> None:
        self.house, self.record, self.algorithm, self.files = house, record, algorithm, files
        self.roster = Roster()
        self.eligibility = planning.Eligibility(record.row.plan)

    async def open(
        self, layout: Layout, number: int, pause: Callable[[str], None], traffic: Callable[[], Traffic]
    ) -> Book:
        """Wait until enough devices are available, choose a cohort, and write the round down.

        ``pause`` is told what the round waits for, before each wait, and "" at the end; what it raises ends the wait.
        """
        eligible, invited, seated = await self._enough_devices(layout, number, pause)
        run, fresh = planning.join(self.record.row, eligible, self.roster.members)
        members = self.roster.members | {member.device: member for member in fresh}
        chosen = CohortChosen((*invited, *seated))
        round, _ = coordinator.step(Round(number, quota_of(run.plan)), chosen, self.house.clock())
        asked = {}
        for one in (self.house.devices.by_id[DeviceId(name)] for name in invited):
            standing = planning.standing(run, members[one.id], one, self.algorithm.stateful)
            half = planning.half_of(run.plan, one) or "whole"
            epoch, now = run.dual_epoch, round.opened_at
            asked[one.id] = assign(run.plan, run.run, round, one.id, layout, standing, epoch, now, half)
        given_up, late = self._given_up()
        book = await self._start_book(layout, round, asked, late, members, self.house.wall_clock(), Traffic())
        parts = [Participation(name, offer) for name, offer in asked.items()]
        async with self.record.writing:
            run = with_measured(run, self.record.row)
            await self.house.store.open_round(run, book.round_status(traffic()), fresh, parts, given_up)
            self.record.row, self.roster.members = run, members
        self.roster.end_round(late)
        return book

    async def reopen(self, layout: Layout, number: int) -> Book | None:
        """Take up the round that was open when the aggregator ended, if one was; its time starts again."""
        run = self.record.row
        self.roster.members = await self.house.store.members(run.run)
        self.roster.outstanding = late = await self.house.store.outstanding(run.run, number)
        status = await self.house.store.round(run.run, number)
        if status is None or status.closed_at is not None:
            return None
        asked = await self.house.store.assignments(run.run, number)
        round = Round(number, quota_of(run.plan), RoundPhase.COLLECTING, self.house.clock(), status.cohort)
        opened_at, members = status.opened_at or self.house.wall_clock(), self.roster.members
        book = await self._start_book(layout, round, asked, late, members, opened_at, status.traffic)
        book.round = replace(book.round, updates=book.updates(), gone=gone_of(book))
        book.fetched.update(asked)  # who had fetched its assignment was not written down: nobody counts as absent
        log.info("round resumed", extra={"run": run.run, "round": number, "updates": len(book.updates())})
        return book

    async def _enough_devices(
        self, layout: Layout, number: int, pause: Callable[[str], None]
    ) -> tuple[list[Device], tuple[str, ...], tuple[str, ...]]:
        """Return who is eligible, who is invited, and who has a seat for its late update."""
        devices, plan, roster = self.house.devices, self.record.row.plan, self.roster
        while True:
            devices.arrived.clear()
            eligible = [d for d in devices.by_id.values() if self.eligibility.obstacle(layout, d) is None]
            owing = roster.outstanding.keys() - roster.idle
            free = {d.id for d in eligible if devices.is_available(d) and d.id not in owing}
            ready = {device for device in owing if devices.by_id[device].polls > 0}
            chosen = seat(plan.seed, number, free, ready, plan.cohort)
            if chosen is not None:
                pause("")
                return eligible, *chosen
            pause(f"{len(free | ready)} of {plan.cohort.updates.min} devices online{self._excluded_words(layout)}")
            await devices.arrived.wait()

    def _excluded_words(self, layout: Layout) -> str:
        devices = self.house.devices
        online = [device for device in devices.by_id.values() if devices.is_online(device)]
        excluded = self.eligibility.excluded(layout, online)
        if not excluded:
            return ""
        name, why = next(iter(excluded.items()))
        return f"; {len(excluded)} more online cannot take part, {name}: {why}"

    def _given_up(self) -> tuple[dict[DeviceId, Receipt], dict[DeviceId, Assignment]]:
        """Return the receipts of late updates that will not come, and what may still come."""
        outstanding, idle = self.roster.outstanding, self.roster.idle
        late = {device: asked for device, asked in outstanding.items() if device not in idle}
        return late_receipts({device: outstanding[device] for device in idle}), late

    async def _start_book(
        self,
        layout: Layout,
        round: Round,
        asked: Asked,
        late: Asked,
        members: Members,
        opened_at: float,
        carried: Traffic,
    ) -> Book:
        run, algorithm = self.record.row, self.algorithm
        weights = {device: algorithm.weight(members[device].num_examples) for device in (*asked, *late)}
        how = run.plan.aggregation
        fronts: dict[str, int] = {}
        fronts |= {device: len(layout.front.segments) for device, one in {**late, **asked}.items() if one.split}
        ledger, sums = Ledger(len(layout.segments), fronts), SegmentSums(layout, how.weights)
        fixed = (run.run, round, opened_at, layout, asked, weights, algorithm.trust)
        book = Book(*fixed, ledger, sums, late, how.max_staleness)
        book.carried = carried
        book.sizes = {device: members[device].num_examples for device in asked}
        await asyncio.to_thread(open_book, book, self.files.journal(round.number))
        return book
