"""Catches whoever holds the event loop up.

Wall-clock time says little on a machine that is shared, so each callback is measured by the processor time of the
loop's own thread, and waiting for the disk is caught at the calls that do it.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

DISK = ("fsync", "fdatasync", "pwrite", "pread", "ftruncate", "replace")


@contextmanager
def watching(monkeypatch: pytest.MonkeyPatch, max_cpu_seconds: float) -> Iterator[list[str]]:
    """Yield a list that gets a line for each callback that ran too long, and each call that waited for the disk."""
    found: list[str] = []
    thread, run = threading.current_thread(), asyncio.Handle._run

    def timed(handle: asyncio.Handle) -> None:
        started = time.thread_time()
        run(handle)
        spent = time.thread_time() - started
        if spent > max_cpu_seconds and threading.current_thread() is thread:
            found.append(f"{handle!r} took {spent:.3f} s of processor time")

    def guard(name: str, call: Any) -> Any:
        def guarded(*arguments: Any, **named: Any) -> Any:
            if threading.current_thread() is thread:
                found.append(f"os.{name} on the event loop")
            return call(*arguments, **named)

        return guarded

    with monkeypatch.context() as patch:
        patch.setattr(asyncio.Handle, "_run", timed)
        for name in DISK:
            patch.setattr(os, name, guard(name, getattr(os, name)))
        yield found
