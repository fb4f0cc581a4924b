"""How the vectors of one update share its bits: grouped or not, after factors or not, and at which slope.

Three ways to send an update are weighed, each by the error that it is expected to leave: vectors as they are; those
whose chunks are unlike with chunks of like energy brought together; and what a few products of columns and rows leave
of matrices, after these (``factors.py``). All blocks of all vectors then have steps by one slope, which is that of the
budget (``slope.py``), and is raised until what was written fits (``entropy.py`` writes).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedge.codecs import grouping, slope
from fedge.codecs.base import Vector
from fedge.codecs.block_codes import energies
from fedge.codecs.entropy import Lead, Prospect, Sketch, Subject, regroup, side_bytes, survey, write, write_raw
from fedge.codecs.factors import Search, levels_of, predict, shape_of
from fedge.codecs.gaussian import UNITS
from fedge.codecs.grouping import Chunks
from fedge.codecs.plan import SMALLEST_ROTATED
from fedge.codecs.slope import Levels
from fedge.errors import CodecError

WORTH_GROUPING, WORTH_FACTORS, WORTH_LEVELS = 0.97, 0.98, 0.95
_PASSES = 8  # of looking for factors, each at the slope that those of the last have left


def encode_together(parts: Sequence[tuple[Vector, int, Chunks, bool]], bits: float, most_bytes: int) -> list[bytes]:
    """Return a payload for each (vector, seed, chunks, thorough), all by one slope: ``bits`` per coordinate on average.

    All of them take at most ``most_bytes``; ``bits`` pays for codes, and for what grouping needs beside them. Factors
    are looked for in vectors that are to be looked at thoroughly, and if there is one, directions in all.

    Raises:
        CodecError: a coordinate that is not finite.
    """
    known = {i: write_raw(x) for i, (x, *_) in enumerate(parts) if x.size < SMALLEST_ROTATED}
    jump = slope.EARLY if any(thorough for *_, thorough in parts) else None
    subjects = {i: Subject(x, chunks, jump) for i, (x, _, chunks, _) in enumerate(parts) if i not in known}
    seeds, room = [seed for _, seed, *_ in parts], most_bytes - sum(map(len, known.values()))
    budget = bits * sum(subject.vector.size for subject in subjects.values())
    surveys = {i: survey(subject) for i, subject in subjects.items()}
    plain = {i: way for i, (way, _) in surveys.items()}
    prospects = {i: found for i, (_, found) in surveys.items() if found}
    hoped = Levels.joined([(prospects.get(i) or way).levels for i, way in plain.items()])
    at_slope = slope.solve(budget, [hoped])
    worth = {i: to for i, to in prospects.items() if _worth_grouping(plain[i], to, at_slope)}
    matrices = {i for i, (*_, thorough) in enumerate(parts) if thorough and i in subjects}
    led = _led(subjects, matrices, budget, at_slope, slope.error_at(at_slope, hoped), seeds)
    choices = itertools.chain(_with_leads(led, plain, worth, budget), _without(plain, worth, budget))
    for choice in sorted(choices, key=lambda choice: choice.error):
        if (written := _write_within(room, choice, seeds)) is not None:
            return [(known | written)[i] for i in range(len(parts))]
    raise CodecError(f"expected room for {len(subjects)} vectors at the coarsest steps, got {room} bytes")


def _worth_grouping(plain: Sketch, grouped: Prospect, at_slope: int) -> bool:
    """Whether grouping saves 3 % of the cost: error, and bits at the price of error. Vectors without structure gain
    about as much as the order costs, and stay as they are. The price is that of a slope for which the order was free,
    too low where the order takes much of the bits: see :class:`_Choice`."""

    def cost(levels: Levels, side: int) -> float:
        bits = slope.bits_at(at_slope, [levels]) + 8 * side
        return slope.error_at(at_slope, levels) + slope.price_of_bit(at_slope) * bits

    return cost(grouped.levels, grouped.side_bytes) < WORTH_GROUPING * cost(plain.levels, plain.side_bytes)


def _with_leads(
    led: Mapping[int, Subject], plain: Mapping[int, Sketch], worth: Mapping[int, Prospect], budget: float
) -> Iterator[_Choice]:
    """Yield the way to send vectors after what leads them, if there is one."""
    if led:
        grouped = {i: regroup(plain[i].subject, to) for i, to in worth.items() if i not in led}
        after = {i: regroup(subject, to) for i, subject in led.items() if (to := survey(subject)[1])}
        yield _Choice.of({**plain, **grouped, **after}, budget)


def _without(plain: Mapping[int, Sketch], worth: Mapping[int, Prospect], budget: float) -> Iterator[_Choice]:
    """Yield the ways to send vectors as they are and grouped."""
    yield _Choice.of(plain, budget)
    if worth:
        grouped = {i: regroup(plain[i].subject, to) for i, to in worth.items()}
        yield _Choice.of({**plain, **grouped}, budget)


def _left_for_codes(budget: float, ways: Mapping[int, Sketch]) -> float:
    """Return what is left of ``budget`` when grouping and factors have been paid."""
    extra = sum(way.side_bytes - side_bytes(way.vector.size) for way in ways.values())
    return budget - 8 * extra - sum(way.factor_bits for way in ways.values())


def _chunk_levels(subject: Subject) -> Levels:
    sizes = subject.chunks.sizes(subject.vector.size)
    return levels_of(energies(subject.vector, sizes)[0], sizes)


def _led(
    subjects: Mapping[int, Subject],
    matrices: Collection[int],
    budget: float,
    at_slope: int,
    error: float,
    seeds: Sequence[int],
) -> dict[int, Subject]:
    """Return those of ``matrices`` that have factors worth their bits, as what these leave of them; none if all of them
    would not save 2 % of ``error``, which is expected at ``at_slope`` without."""
    shapes = {i: shape_of(subjects[i].chunks, subjects[i].vector.size) for i in matrices}
    searches = {i: Search(subjects[i].vector, subjects[i].chunks, shape) for i, shape in shapes.items() if shape}
    others: list[Levels] = []
    for _ in range(_PASSES):
        for search in searches.values():
            search.extend(at_slope)
        if not any(search.rank for search in searches.values()):
            return {}
        others = others or [_chunk_levels(subject) for i, subject in subjects.items() if i not in searches]
        spent = sum(search.bits for search in searches.values())
        levels = Levels.joined([*(search.levels for search in searches.values()), *others])
        last, at_slope = at_slope, slope.solve(budget - spent, [levels])
        if at_slope > last - UNITS // 16:
            break
    if slope.error_at(at_slope, levels) > WORTH_FACTORS * error:
        return {}
    led = {}
    for i, search in searches.items():
        classes = grouping.classes_of(search.energy, search.sizes)
        if found := search.factors(at_slope, classes):
            rest = subjects[i].vector.copy()
            with np.errstate(over="ignore"):
                rest[search.shape.where] -= predict(*found, seeds[i])
            if np.isfinite(rest).all():
                led[i] = Subject(rest, subjects[i].chunks, jump=slope.EARLY, lead=Lead(*found, classes))
    return led


@dataclass(frozen=True, slots=True)
class _Choice:
    """One way to send an update. At the lowest rates, to say of which class each chunk is may take more than there is,
    so what grouping gives is compared once more when all of it is known."""

    ways: Mapping[int, Sketch]
    budget: float
    at_slope: int
    error: float  # that is expected; inf if the codes cannot have so few bits

    @classmethod
    def of(cls, ways: Mapping[int, Sketch], budget: float) -> _Choice:
        """Return ``ways`` with ``budget`` bits for codes, and for what grouping and factors need beside them; blocks
        become directions where that leaves least error, if they may."""
        budget = _left_for_codes(budget, ways)
        if any(way.subject.jump is None for way in ways.values()):
            return cls._at(ways, budget)
        late = {i: way.jumping(slope.LATE) for i, way in ways.items()}
        best = min(cls._at(ways, budget), cls._at(late, budget), key=lambda choice: choice.error)
        if any(way.subject.lead for way in ways.values()):
            return best  # who writes factors may write directions
        # A few dozen coordinates may have bits for levels and none for a group. Their scale is less sure then.
        never = cls._at({i: way.jumping(None) for i, way in ways.items()}, budget)
        return never if never.error < WORTH_LEVELS * best.error else best

    @classmethod
    def _at(cls, ways: Mapping[int, Sketch], budget: float) -> _Choice:
        levels = Levels.joined([way.levels for way in ways.values()])
        at_slope = slope.solve(budget, [levels])
        fits = slope.bits_at(at_slope, [levels]) <= budget
        return cls(ways, budget, at_slope, slope.error_at(at_slope, levels) if fits else math.inf)


def _write_within(room: int, choice: _Choice, seeds: Sequence[int]) -> dict[int, bytes] | None:
    """Return the payloads; None if the coarsest steps take more than ``room`` bytes."""
    at_slope, ways = choice.at_slope, choice.ways
    coarsest = slope.coarsest([way.levels for way in ways.values()])
    while True:
        written = {i: write(way, at_slope, seeds[i]) for i, way in ways.items()}
        over = sum(map(len, written.values())) - room
        if over <= 0:
            return written
        if at_slope >= coarsest:
            return None
        at_slope = min(at_slope + 1 + int(8 * over * UNITS / max(choice.budget, 1.0)), coarsest)
