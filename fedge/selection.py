"""Who is invited to a round: a uniform draw without replacement, the same wherever it is repeated.

Each available device gets the word derived from (seed, round, device); the lowest ones are the cohort. A device's
chance does not depend on the order or the names of the others, and leaving one out does not reshuffle the rest.
"""

from __future__ import annotations

from collections.abc import Iterable

from fedge.seeds import derive


def choose_cohort(seed: int, round_number: int, available: Iterable[str], count: int) -> tuple[str, ...]:
    """Return at most ``count`` of the ``available`` devices, in the order of their draw."""
    drawn = sorted((derive(seed, "cohort", round_number, device), device) for device in set(available))
    return tuple(device for _, device in drawn[:count])
