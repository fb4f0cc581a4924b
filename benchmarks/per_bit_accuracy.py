"""Accuracy per bit: Fashion-MNIST by FedAvg under a budget of uplink bits, M22 beside EDEN and what else there is.

    python -m benchmarks.per_bit_accuracy --data DIR --out DIR [--seeds 3] [--jobs 2] [--break-even] [--tables]

A few devices train the network of ``fedge.tasks.fashion_mnist`` (80,202 parameters), each on fresh examples in every
round, and send updates at so many bits per weight. Every method has the bytes of M22 at that rate for the whole update:
frame headers, side information and positions count, and so do the biases, which travel as float32; ``none`` sends all
as float32. All else is fedge as it runs in the field: layout, local loop, frames, error feedback, sums, server step.
Two devices have equal parts of the shuffled examples; more have class priors from a Dirichlet law.

The measure is that of Y. Liu et al., M22, https://arxiv.org/abs/2301.09269, with all uplink bits of all devices in B:

    PBA(T) = (accuracy of w_T - accuracy of w_0) / B_T                     (printed in points of a percent per Mbit)

It diverges as B goes to 0, so it is compared at equal B alone. Runs are lines of ``OUT/runs.jsonl``, written as they
finish; a run that is there already is not repeated. ``--break-even`` runs M22 with error feedback and EDEN for 2 to 40
devices of which all or 30 % take part in a round. Tables and plots: ``per_bit_tables.py``; ``--tables`` runs nothing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import get_args

from benchmarks import per_bit_tables as tables
from benchmarks.per_bit_runs import EXAMPLES, METHODS, ROUNDS, Case, run
from fedge.algorithms.local import Optimizer
from fedge.tasks.sources import VARIABLE
from fedge.update import FLOAT32_BITS

FIRST = ("m22", "m22-lengthened", "stc", "tinyscript", "topk-uniform", "topk-fp4", "topk-fp8")
OTHERS = ("m22-empirical", "m22-M2", "m22-M4to0")
WITHOUT = ("m22-projection", "m22-M2-designed", "m22", "stc", "tinyscript", "qsgd", "sketch")


def grid(seed_count: int) -> Iterator[Case]:
    """Yield the runs of the default grid, what matters most first: a run that is cut short has whole tables."""
    places = [(n, optimizer) for n in (10, 2) for optimizer in get_args(Optimizer)]
    every = range(seed_count)
    yield from (Case(n, o, "none", False, FLOAT32_BITS, s) for s, (n, o) in product(every, places))
    for rates in ((1.0, 0.1), (0.3, 2.0)):
        for s, bits, (n, o) in product(every, rates, places):
            yield Case(n, o, "eden", False, bits, s)
            yield from (Case(n, o, method, True, bits, s) for method in FIRST)
    for with_feedback, methods, rates in ((False, WITHOUT, (1.0, 0.1, 0.3, 2.0)), (True, OTHERS, (1.0, 0.1))):
        for s, bits, (n, o) in product(every, rates, places):
            yield from (Case(n, o, method, with_feedback, bits, s) for method in methods)


def break_even(seed_count: int) -> Iterator[Case]:
    """Yield M22 with error feedback and EDEN by number of devices, participation and rate."""
    for rates, seed, part, n in product(((1.0, 0.1), (0.5,)), range(seed_count), (1.0, 0.3), (2, 5, 10, 20, 40)):
        for bits in rates if n * part > 1 else ():
            yield Case(n, "sgd", "eden", False, bits, seed, part)
            yield Case(n, "sgd", "m22", True, bits, seed, part)


def main() -> None:
    """Parse the command line, run what is not there yet, print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="DIR", help=f"the data sets; otherwise {VARIABLE}")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--examples", type=int, default=EXAMPLES)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), metavar="METHOD", help="only these")
    for name, kind in (("bits", float), ("devices", int), ("optimizers", str)):
        parser.add_argument(f"--{name}", type=kind, nargs="+", help="only these")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--break-even", action="store_true")
    parser.add_argument("--tables", action="store_true", help="of the runs that are there; run nothing")
    options = parser.parse_args()
    if options.data is not None:
        os.environ[VARIABLE] = str(options.data)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "runs.jsonl"
    if not options.tables:
        cases = (break_even if options.break_even else grid)(options.seeds)
        wanted = [replace(case, rounds=options.rounds, examples=options.examples) for case in cases]
        run_all([case for case in wanted if _is_asked_for(case, options)], path, options.jobs)
    tables.write(path, options.out)


def run_all(cases: list[Case], path: Path, jobs: int) -> None:
    """Run what of ``cases`` is not in the file at ``path``, in ``jobs`` processes, and add it there."""
    done = {tables.key_of(line) for line in tables.read(path)}
    left = [case for case in cases if case.key not in done]
    print(f"{len(cases)} runs, {len(cases) - len(left)} of them done before")
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as processes, path.open("a") as file:
        for count, result in enumerate(as_completed([processes.submit(run, case) for case in left]), 1):
            found = result.result()
            file.write(json.dumps(found) + "\n")
            file.flush()
            facts = f"{found['devices']:>3} {found['optimizer']:4} {found['bits']:>4} {found['method']:16}"
            score = f"{found['accuracy'][-1]:.4f} {found['bits_per_coordinate']:8.4f} {found['cpu_seconds']:6.1f}"
            print(f"{count:>5}/{len(left)} {facts} {score}")
            sys.stdout.flush()


def _is_asked_for(case: Case, options: argparse.Namespace) -> bool:
    asked = (options.methods, options.bits, options.devices, options.optimizers)
    has = (case.method, case.bits, case.devices, case.optimizer)
    return all(only is None or one in only for only, one in zip(asked, has, strict=True))


if __name__ == "__main__":
    main()
