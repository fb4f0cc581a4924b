"""Fashion-MNIST: ten kinds of clothes, 28 x 28 grey pictures. Nobody owns them, so they are dealt out to devices.

    1x28x28 → conv 5x5, 16 → ReLU → pool 2 → conv 5x5, 32 → ReLU → pool 2 → linear 128 → ReLU → linear 10
                                                                                            80,202 parameters

Options of ``train_data``, all but ``device`` with defaults; ``fedge.tasks.partition`` says how each partition deals:

    folder      where the files are (``fedge.tasks.sources``)
    partition   iid, dirichlet (the default) or shards
    beta        0.3: of dirichlet; smaller is more uneven
    shards      2: of shards, for each device
    devices     100: how many share the examples
    device      0 .. devices - 1: which of them this is
    seed        0: names the partition

Pixels are scaled to 0..1 and standardised with the constants of the published training set.

Data: H. Xiao, K. Rasul, R. Vollgraf, Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
Algorithms, https://arxiv.org/abs/1708.07747. MIT licence, Zalando SE.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from fedge.errors import TaskError
from fedge.tasks import partition
from fedge.tasks.base import Dataset
from fedge.tasks.sources import FASHION_MNIST, folder_of, is_named_by_environment, open_path

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fedge.tasks.split_model import Halves

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
SIDE = 28
MEAN, DEVIATION = 0.2860, 0.3530
PARTITIONS = ("iid", "dirichlet", "shards")
SITES = 100

_IMAGES, _LABELS = 2051, 2049  # what idx files of images and labels begin with
_AT_ONCE = 4096

Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True)
class Split:
    """Which partition, and which device's part of it: ``train_data``'s options, checked."""

    partition: str = "dirichlet"
    beta: float = 0.3
    shards: int = 2
    devices: int = SITES
    device: int = 0
    seed: int = 0

    @classmethod
    def of(cls, options: Mapping[str, object]) -> Split:
        """Read ``options``.

        Raises:
            TaskError: one is unknown, missing or out of range.
        """
        known = {"folder", *cls.__dataclass_fields__}
        if unknown := sorted(set(options) - known):
            raise _bad(f"options of {', '.join(sorted(known))}", ", ".join(unknown))
        if "device" not in options:
            raise _bad("the option device, which part of the examples is this device's", dict(options))
        split = cls(
            str(options.get("partition", cls().partition)),
            _number(options, "beta", float, cls().beta),
            *(_number(options, name, int, getattr(cls(), name)) for name in ("shards", "devices", "device", "seed")),
        )
        if split.partition not in PARTITIONS:
            raise _bad(f"a partition of {', '.join(PARTITIONS)}", split.partition)
        if not 0 <= split.device < split.devices:
            raise _bad(f"the option device in 0..{split.devices - 1}", split.device)
        return split


@dataclass(frozen=True, slots=True)
class FashionMnist:
    """Clothes; ``train_data`` takes ``{"folder": .., "devices": 100, "device": 7}`` and how they are dealt."""

    name: str = "fashion_mnist"

    def model(self, seed: int) -> nn.Module:
        """Return a network of two convolutions and two layers."""
        from torch import nn

        from fedge.tasks.torch_model import initialise

        return initialise(
            nn.Sequential(
                nn.Conv2d(1, 16, 5),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Conv2d(16, 32, 5),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Flatten(),
                nn.Linear(512, 128),
                nn.ReLU(),
                nn.Linear(128, len(CLASSES)),
            ),
            seed,
        )

    def split(self, model: nn.Module) -> Halves:
        """Return the convolutions, whose 512 numbers a picture travel, and the layers after them."""
        import torch

        from fedge.tasks.split_model import cut

        return cut(model, "7", example=torch.zeros(1, 1, SIDE, SIDE))

    def train_data(self, options: Mapping[str, object]) -> Dataset:
        """Return this device's pictures, ``inputs`` float32 ``[n, 1, 28, 28]``, ``targets`` int64 ``[n]``."""
        split = Split.of(options)
        folder = folder_of(FASHION_MNIST, options)
        labels = _labels(folder, "train")
        return _dataset(folder, "train", labels, _rows(labels.tobytes(), split))

    def sites(self) -> dict[str, dict[str, object]]:
        """Return the 100 devices of the Dirichlet(0.3) partition of seed 0, ``fashion-00`` .. ``fashion-99``."""
        folder = str(folder_of(FASHION_MNIST, {}).absolute())
        return {f"fashion-{k:02d}": {"folder": folder, "devices": SITES, "device": k} for k in range(SITES)}

    def test_data(self) -> Dataset | None:
        """Return all test pictures; None where ``FEDGE_DATA`` is not set."""
        if not is_named_by_environment():
            return None
        folder = folder_of(FASHION_MNIST, {})
        labels = _labels(folder, "t10k")
        return _dataset(folder, "t10k", labels, np.arange(len(labels)))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy, in nats."""
        from torch.nn import functional

        return functional.cross_entropy(outputs, targets)

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return the accuracy."""
        return {"accuracy": float((outputs.argmax(1) == targets).float().mean())}


task = FashionMnist()


def _rows(labels: bytes, split: Split) -> partition.Rows:
    """Return the examples of ``split.device``, in the order of the file."""
    return np.sort(_deal(labels, split.partition, split.beta, split.shards, split.devices, split.seed)[split.device])


# One machine that plays many devices deals once: 60,000 examples take a fifth of a second.
@lru_cache(maxsize=1)
def _deal(labels: bytes, how: str, beta: float, shards: int, devices: int, seed: int) -> list[partition.Rows]:
    known = np.frombuffer(labels, np.uint8)
    if how == "iid":
        return partition.iid(len(known), devices, seed)
    if how == "shards":
        return partition.shards(known, devices, shards, seed)
    return partition.dirichlet(known, devices, beta, seed)


def _dataset(folder: Path, part: str, labels: npt.NDArray[np.uint8], rows: partition.Rows) -> Dataset:
    images = _images(folder, part, len(labels), rows).astype(np.float32) / 255
    return Dataset(((images - MEAN) / DEVIATION).astype(np.float32), labels[rows].astype(np.int64))


def _labels(folder: Path, part: str) -> npt.NDArray[np.uint8]:
    path = open_path(FASHION_MNIST, folder, f"{part}-labels-idx1-ubyte.gz")
    with gzip.open(path) as file:
        (count,) = _header(path, file.read, _LABELS, 1)
        labels = np.frombuffer(_exactly(path, file.read, count), np.uint8)
    if count == 0 or labels.max() >= len(CLASSES):
        raise TaskError(f"{path}: expected labels 0..{len(CLASSES) - 1}, got {np.unique(labels).tolist()}")
    return labels


def _images(folder: Path, part: str, count: int, rows: partition.Rows) -> npt.NDArray[np.uint8]:
    """Read ``rows``, ascending, of ``count`` pictures; uint8 ``[n, 1, 28, 28]``.

    The file is read in pieces: a device never holds the pictures of all others.
    """
    path = open_path(FASHION_MNIST, folder, f"{part}-images-idx3-ubyte.gz")
    found = np.empty((len(rows), 1, SIDE, SIDE), np.uint8)
    with gzip.open(path) as file:
        shape = _header(path, file.read, _IMAGES, 3)
        if shape != (count, SIDE, SIDE):
            raise TaskError(f"{path}: expected {count} pictures of {SIDE} x {SIDE}, as many as labels, got {shape}")
        for start in range(0, count, _AT_ONCE):
            stop = min(start + _AT_ONCE, count)
            piece = np.frombuffer(_exactly(path, file.read, (stop - start) * SIDE * SIDE), np.uint8)
            first, last = np.searchsorted(rows, (start, stop))
            found[first:last, 0] = piece.reshape(-1, SIDE, SIDE)[rows[first:last] - start]
    return found


def _header(path: Path, read: Callable[[int], bytes], magic: int, dimensions: int) -> tuple[int, ...]:
    found, *shape = np.frombuffer(_exactly(path, read, 4 + 4 * dimensions), ">u4").tolist()
    if found != magic:
        raise TaskError(f"{path}: expected an idx file that begins with {magic}, got {found}")
    return tuple(shape)


def _exactly(path: Path, read: Callable[[int], bytes], count: int) -> bytes:
    try:
        data = read(count)
    except (OSError, EOFError, zlib.error) as error:
        raise TaskError(f"{path}: expected a whole gzip file: {error}") from error
    if len(data) != count:
        raise TaskError(f"{path}: expected {count} more bytes, got {len(data)}")
    return data


def _number(options: Mapping[str, object], name: str, kind: type[Number], default: Number) -> Number:
    """Return a number that may be written as text, as the command line does."""
    value = options.get(name, default)
    try:
        number = kind(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else None
    except (ValueError, OverflowError):
        number = None
    if number is None or not math.isfinite(number) or (isinstance(value, float) and number != value):
        raise _bad(f"the option {name} to be {'a whole number' if kind is int else 'a number'}", value)
    return number


def _bad(expected: str, got: object) -> TaskError:
    return TaskError(f"task 'fashion_mnist': expected {expected}, got {got!r}")
