"""What FedLite costs a device beside the front half it trains. One thread.

    python -m benchmarks.fedlite_speed [--batch 20] [--seconds 3]

The front half of the FEMNIST network: conv 3x3, 32, ReLU, conv 3x3, 64, ReLU, pool 2, flatten: 9,216 activations of a
28 x 28 picture, q = 1152, R = 1. Milliseconds of processor time, the medians of repetitions that take turns: forward
and backward of the front half; K-means and packing alone; the whole of ``quantize`` (columns, K-means, assignment,
packing, z~); reading the answer and correcting. Shares are of forward and backward.

Exits with 1 unless K-means and packing take under 10 % of it at L = 2 and under 30 % at L = 32.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from fedge.codecs import native_status
from fedge.split import Coding, Memory, Options, Start, answer, correct, quantize, receive
from fedge.split.quantizer import as_columns, assign, fit

VALUES, SUBVECTORS = 9216, 1152
GATES = {2: 0.10, 32: 0.30}


def seconds(action: Callable[[], object]) -> float:
    """Return the processor time of one call on this thread."""
    begin = time.thread_time()
    action()
    return time.thread_time() - begin


def front_half() -> nn.Sequential:
    """Return the front half."""
    layers = [nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers)


def pictures(batch: int) -> torch.Tensor:
    """Return pictures with a stroke or two on black, as handwriting is."""
    rng, x = np.random.default_rng(0), np.zeros((batch, 1, 28, 28), np.float32)
    for own in x:
        for _ in range(2):
            row, column = rng.integers(4, 20, 2)
            own[0, row : row + 3, 4:24] = 1
            own[0, 4:24, column : column + 3] = 1
    return torch.from_numpy(x)


def actions(batch: int, options: Options) -> dict[str, Callable[[], object]]:
    """Return what is timed, by name."""
    torch.manual_seed(0)
    front, x = front_half(), pictures(batch)
    z = front(x).detach().numpy()
    shape, gradient = options.shape(*z.shape), np.random.default_rng(1).normal(size=z.shape).astype(np.float32)
    first = quantize(z, Options(SUBVECTORS, centroids=options.centroids), 0, 1)
    known = receive(first.data, options).message
    shared = Memory(shape).after([(known.codebook.centroids, known.index)]).publish(model=True)
    state = shared if options.start is not Start.FRESH or options.coding is Coding.SHARED else None
    made, columns, data = quantize(z, options, 1, 1, state), as_columns(z, shape), answer(gradient, options, 1)
    message = receive(made.data, options, state).message
    back = torch.from_numpy(gradient)

    def train() -> None:
        front.zero_grad()
        front(x).backward(back)

    def kmeans() -> None:
        fits = options.start is not Start.SHARED
        warm = None if options.start is Start.FRESH else shared.codebook
        book = fit(columns, shape, options.fitting(warm is not None), 1, warm) if fits else shared.codebook
        assign(columns, shape, book)
        message.to_bytes(state)

    return {
        "front": train,
        "kmeans": kmeans,
        "quantize": lambda: quantize(z, options, 1, 1, state),
        "correct": lambda: correct(data, z, made.restored, options, 0),
        "receive": lambda: receive(made.data, options, state),
        "answer": lambda: answer(gradient, options, 1),
    }


def measure(batch: int, options: Options, budget_seconds: float) -> dict[str, float]:
    """Return medians in milliseconds."""
    todo, end = actions(batch, options), time.monotonic() + budget_seconds
    times: dict[str, list[float]] = {name: [] for name in todo}
    while time.monotonic() < end or len(times["front"]) < 7:
        for name, action in todo.items():
            times[name].append(seconds(action))
    return {name: 1e3 * statistics.median(found) for name, found in times.items()}


def main() -> int:
    """Print a line for each setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=3.0, help="per line")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(native_status())
    columns = f"{'front':>7} {'K-means + packing':>18} {'quantize':>16} {'correct':>8}"
    print(f"{'':22} {columns}   server {'receive':>7} {'answer':>7}")
    passed = True
    for centroids in (2, 8, 32, 256):
        kinds = {
            "paper": Options.paper(SUBVECTORS, centroids=centroids),
            "coded, EDEN down": Options(SUBVECTORS, centroids=centroids),
            "members 5": Options(SUBVECTORS, centroids=centroids, least_members=5),
            "warm": Options(SUBVECTORS, centroids=centroids, start=Start.WARM),
            "shared": Options(SUBVECTORS, centroids=centroids, start=Start.SHARED),
        }
        for name, options in kinds.items():
            ms = measure(arguments.batch, options, arguments.seconds)
            share = {key: ms[key] / ms["front"] for key in ("kmeans", "quantize")}
            passed &= centroids not in GATES or share["kmeans"] < GATES[centroids]
            columns = f"{ms['kmeans']:9.2f} ({share['kmeans']:6.1%}) {ms['quantize']:7.2f} ({share['quantize']:6.1%})"
            ends = f"{ms['correct']:8.2f}          {ms['receive']:7.2f} {ms['answer']:7.2f}"
            print(f"L {centroids:<3} {name:16} {ms['front']:7.2f} {columns} {ends}", flush=True)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
