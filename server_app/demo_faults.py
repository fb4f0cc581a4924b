"""``fedge demo --faults``: what is done to four of the devices, when, and what became of it.

    restarted   SIGKILL in mid-round, started again two seconds later with the same home
    lost        SIGKILL in mid-round, never seen again
    narrow      a link that carries half a bit per coordinate
    cut         every upload breaks off half-way, and the rest is sent over a new connection

In mid-round means: the device is invited to the open round, and its update has not arrived. Where that does not happen
in the first half of the run, it is killed between rounds.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

from schemas.ids import DeviceId
from schemas.status import DeviceStatus, RoundPhase, RoundStatus, RunStatus
from server_app.demo_children import Child
from server_app.report import Note
from server_app.units import as_bytes

RESTART_SECONDS = 2.0
NARROW_BITS = 0.5
CUT_AFTER = 0.5


@dataclass(frozen=True, slots=True)
class Cast:
    """Which device plays which part."""

    restarted: str
    lost: str
    narrow: str
    cut: str

    @classmethod
    def of(cls, names: Sequence[str]) -> Cast:
        """Cast the second to the fifth of ``names``."""
        return cls(*names[1:5])

    @property
    def alone(self) -> tuple[str, ...]:
        """Return those who need an agent process of their own."""
        return (self.restarted, self.lost, self.cut)


LEAST_DEVICES = 6


@dataclass(slots=True)
class Faults:
    """Does the killing at the right moment. ``start`` starts the agent of one device again."""

    cast: Cast
    agents: dict[str, Child]
    start: Callable[[str], Awaitable[Child]]
    clock: Callable[[], float]
    killed_in: dict[str, int] = field(default_factory=dict)
    _back_at: float | None = None

    @property
    def is_due(self) -> bool:
        """Whether something is still to be done, so that the run is worth a closer look."""
        return len(self.killed_in) < 2 or self._back_at is not None

    async def look(self, run: RunStatus) -> None:
        """Do what is due now."""
        for name in (self.cast.restarted, self.cast.lost):
            if name not in self.killed_in and (_is_at_work(name, run.round) or _is_late(run)):
                await self.agents[name].kill()
                self.killed_in[name] = run.round.round if run.round is not None else run.rounds_closed
                if name == self.cast.restarted:
                    self._back_at = self.clock() + RESTART_SECONDS
        if self._back_at is not None and self.clock() >= self._back_at:
            self._back_at = None
            self.agents[self.cast.restarted] = await self.start(self.cast.restarted)

    def notes(self, rounds: Sequence[RoundStatus], devices: Sequence[DeviceStatus]) -> tuple[Note, ...]:
        """Say what became of each."""
        cast, back = self.cast, self.killed_in.get(self.cast.restarted)
        lost = self.killed_in.get(self.cast.lost)
        return (
            Note(
                cast.restarted,
                f"killed in round {back}, started again {RESTART_SECONDS:g} s later" if back else "not killed in time",
                _restarted(cast.restarted, back, rounds),
            ),
            Note(
                cast.lost,
                f"killed in round {lost} for good" if lost else "not killed in time",
                _lost(cast.lost, lost, rounds),
            ),
            Note(
                cast.narrow,
                f"its link carries {NARROW_BITS:g} bit per coordinate",
                _narrow(cast.narrow, rounds, devices),
            ),
            Note(cast.cut, f"every upload cut after {CUT_AFTER:.0%}", _cut(cast.cut, rounds)),
        )


def _is_at_work(name: str, round: RoundStatus | None) -> bool:
    return (
        round is not None
        and round.phase is RoundPhase.COLLECTING
        and name in round.cohort
        and name not in (*round.updates, *round.gone)
    )


def _is_late(run: RunStatus) -> bool:
    return 2 * run.rounds_closed >= run.rounds_planned


def _counts(name: str, rounds: Sequence[RoundStatus]) -> tuple[int, int, int]:
    """Return in how many rounds ``name`` was invited, complete, partial."""
    groups = ([r.cohort for r in rounds], [r.updates for r in rounds], [r.partial for r in rounds])
    invited, complete, partial = (sum(name in names for names in group) for group in groups)
    return invited, complete, partial


def _restarted(name: str, killed_in: int | None, rounds: Sequence[RoundStatus]) -> str:
    if killed_in is None:
        return "-"
    here = next((r for r in rounds if r.round == killed_in), None)
    later = _counts(name, [r for r in rounds if r.round > killed_in])
    if here is None or name not in here.cohort:
        fate = "was not invited at the time"
    elif name in here.updates:
        fate = f"its update of round {killed_in} still arrived"
    else:
        fate = f"round {killed_in} closed without it, with {len(here.updates)} of {len(here.cohort)} updates"
    return f"{fate}; {later[1]} of {later[0]} later invitations answered in full"


def _lost(name: str, killed_in: int | None, rounds: Sequence[RoundStatus]) -> str:
    if killed_in is None:
        return "-"
    here = next((r for r in rounds if r.round == killed_in), None)
    closed = f"round {killed_in} closed with {len(here.updates)} of {len(here.cohort)} updates" if here else "-"
    later = _counts(name, [r for r in rounds if r.round > killed_in])
    return f"{closed}; invited {later[0]} times after that" if later[0] else f"{closed}; not invited again"


def _narrow(name: str, rounds: Sequence[RoundStatus], devices: Sequence[DeviceStatus]) -> str:
    invited, complete, _ = _counts(name, rounds)
    a_round = {d.device: d.traffic.up / max(1, _counts(d.device, rounds)[0]) for d in devices}
    others = median(cost for device, cost in a_round.items() if device != name)
    costs = f"{as_bytes(a_round[DeviceId(name)])} up for each, the others {as_bytes(others)}"
    return f"{complete} of {invited} updates complete; {costs}"


def _cut(name: str, rounds: Sequence[RoundStatus]) -> str:
    invited, complete, partial = _counts(name, rounds)
    return f"{complete} of {invited} updates complete all the same, {partial} counted in part"
