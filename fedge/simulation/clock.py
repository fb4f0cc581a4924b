"""A virtual clock: events in the order of their instants, and nobody waits for any of them."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

Callback = Callable[[], None]


class Clock:
    """``now`` is in seconds from 0. Events at the same instant happen in the order they were planned."""

    def __init__(self) -> None:
        self.now = 0.0
        self._queue: list[tuple[float, int, Callback]] = []
        self._count = itertools.count()

    def at(self, instant: float, callback: Callback) -> None:
        """Plan ``callback`` for ``instant``; an instant that has passed means now."""
        heapq.heappush(self._queue, (max(instant, self.now), next(self._count), callback))

    def after(self, seconds: float, callback: Callback) -> None:
        """Plan ``callback`` for ``seconds`` from now."""
        self.at(self.now + seconds, callback)

    def run(self, is_done: Callable[[], bool]) -> bool:
        """Let events happen until ``is_done``; False where they ran out before."""
        while not is_done():
            if not self._queue:
                return False
            self.now, _, callback = heapq.heappop(self._queue)
            callback()
        return True
