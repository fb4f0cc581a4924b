"""What every run shares, and how readers hear of changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server_app.back_half import Asks
from server_app.devices import Devices
from server_app.store import Store
from server_app.traffic import TrafficBook
from server_app.worker import Evaluator


class Changes:
    """Lets readers wait for the next change of any run or round."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def next(self) -> asyncio.Event:
        """Return an event that is set at the next change."""
        return self._next

    def notify(self) -> None:
        """Wake all who wait."""
        self._next.set()
        self._next = asyncio.Event()


@dataclass(frozen=True, slots=True)
class House:
    """What every run shares. ``clock`` is monotonic, ``wall_clock`` seconds since 1970; ``spawn`` owns tasks.

    ``back_worker`` trains back halves, on the torch device ``split_device``: a process of its own, so that no step
    waits for an evaluation.
    """

    state_dir: Path
    offline_seconds: float
    store: Store
    devices: Devices
    worker: Evaluator
    traffic: TrafficBook
    changes: Changes
    clock: Callable[[], float]
    wall_clock: Callable[[], float]
    spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
    max_download_state_bytes: int
    back_worker: Asks
    split_device: str
