"""Throw damaged payloads and streams at the codecs: ``python -m tests.fuzz.fuzz_payloads --count 1000000 --seed 1``.

Case number i is drawn from (seed, i) alone, on any machine, so what was found is found again with
``--first i --count 1``. The last line has a digest of all that was decoded: where two machines print the same one,
they agree to the bit. A crash or a hang ends the run with a traceback and a status other than 0; ``--trace`` then
names each case before it is tried.
"""

# ruff: noqa: T201  a program that says what it found

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from random import Random

import numpy as np

from fedge.codecs import native, native_status
from tests.fuzz import payloads, streams
from tests.support.kernels import ExactBuffers, using

BATCH, PROGRESS = 500, 100_000
STREAM_EVERY = 10
GROWTH_BYTES = 96 << 20  # what a whole run may add to the process: caches, and a sanitizer's quarantine
WARM_UP = 5 * BATCH


@dataclass(slots=True)
class Tally:
    """What happened so far."""

    decoded: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    digest: hashlib.blake2b = field(default_factory=lambda: hashlib.blake2b(digest_size=16))

    def count(self, kind: str, results: list[np.ndarray]) -> None:
        (self.decoded if results else self.refused)[kind] += 1
        for x in results:
            self.digest.update(x)
        self.digest.update(b"." if results else b"refused.")


def attempt(seed: int, number: int, tally: Tally, trace: bool = False) -> None:
    """Draw and check case ``number`` of ``seed``.

    Raises:
        AssertionError: a promise was broken; the message says how to see it again.
    """
    rng = Random(seed << 40 | number)
    is_stream = number % STREAM_EVERY == 3
    case = streams.draw(rng) if is_stream else payloads.draw(rng)
    if trace:
        print(number, case, flush=True)
    try:
        if is_stream:
            tally.count("stream", streams.check(case))
        else:
            x = payloads.check(case, number)
            tally.count(case.damage, [] if x is None else [x])
    except Exception as error:
        raise AssertionError(f"--seed {seed} --first {number} --count 1: {error!r} in {case!r:.2000}") from error


def fuzz(seed: int, first: int, count: int, trace: bool = False, batch_seconds: float | None = None) -> Tally:
    """Check ``count`` cases; a batch that takes longer than ``batch_seconds`` ends the process.

    Raises:
        AssertionError: a promise was broken, or the process grew.
    """
    tally, before = Tally(), 0
    for done in range(0, count, BATCH):
        with ends_within(batch_seconds):
            for number in range(first + done, first + min(done + BATCH, count)):
                attempt(seed, number, tally, trace)
        if done <= WARM_UP:
            before = resident_bytes()
        if done % PROGRESS == 0 < done:
            print(f"  {done:,} ...", flush=True)
    growth = resident_bytes() - before
    assert growth <= GROWTH_BYTES, f"the process grew by {growth:,} bytes, expected at most {GROWTH_BYTES:,}"
    return tally


@contextmanager
def ends_within(seconds: float | None) -> Iterator[None]:
    """End the process with a traceback if the block takes longer. No signal gets through to a loop in C."""
    if seconds:
        faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        if seconds:
            faulthandler.cancel_dump_traceback_later()


def resident_bytes() -> int:
    """Return the most memory this process ever held."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """Run as the arguments say and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--batch-seconds", type=float, default=120.0, help="how long 500 cases may take")
    parser.add_argument("--trace", action="store_true", help="print each case before it is tried")
    parser.add_argument("--exact-buffers", action="store_true", help="for sanitizers: no byte behind a payload is ours")
    args = parser.parse_args()
    faulthandler.enable()
    print(native_status(), getattr(native.kernels, "__file__", ""), flush=True)
    started = time.perf_counter()
    watched = using(ExactBuffers(native.kernels)) if args.exact_buffers and native.kernels else nullcontext()
    with watched:
        tally = fuzz(args.seed, args.first, args.count, args.trace, args.batch_seconds)
    seconds = time.perf_counter() - started
    for kind in sorted({*tally.decoded, *tally.refused}):
        print(f"  {kind:26} {tally.decoded[kind]:9,} decoded {tally.refused[kind]:9,} refused")
    total, refused = args.count, tally.refused.total()
    print(f"{total:,} cases, {refused:,} refused, nothing found in {seconds:.0f} s; digest {tally.digest.hexdigest()}")


if __name__ == "__main__":
    sys.exit(main())
