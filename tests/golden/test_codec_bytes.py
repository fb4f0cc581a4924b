"""Bytes we promised to decode for ever, and to write the same on every machine.

``codecs/{codec}-{bits}-{size}.bin`` is the payload of :func:`vector` with the seed ``SEED``, ``decoded.json`` the
SHA-256 of the float32 vector that it decodes to, with and without loss. Where the name says ``uneven``, ``ranked`` or
``directed``, the vector is another (``MAKE``), the last two looked at thoroughly. A file is added with a new format;
its bytes are never changed. What is still read and no longer written moves to ``codecs/read_only``, and what is
written now takes its name. M22 promises how bytes are read only: its encoder takes logarithms, whose last digit is
the machine's.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from fedge import seeds
from fedge.codecs import Part, build
from tests.support.kernels import IMPLEMENTATIONS, implementation

HERE = Path(__file__).parent / "codecs"
DECODED = json.loads((HERE / "decoded.json").read_text())
SEED = 20_260_101
READ_ONLY = HERE / "read_only"  # version 1 where 4 or 7 is written; scales from sums in float64; version 5


def key(path: Path) -> str:
    return path.relative_to(HERE).with_suffix("").as_posix()


def vector(size: int) -> np.ndarray:
    """Heavy tails from integers alone: no random generator and no C library that could change."""
    x = seeds.uniform(1, size) + seeds.uniform(2, size) + seeds.uniform(3, size) - 1.5
    return np.ldexp(x, (seeds.words(4, size) % np.uint64(6)).astype(int)).astype(np.float32)


def uneven(size: int) -> np.ndarray:
    """Rows of 128 coordinates, some up to a thousand times as strong as others: coordinates that are grouped."""
    rows = (seeds.words(6, -(-size // 128)) % np.uint64(11)).astype(int).repeat(128)[:size]
    return np.ldexp(vector(size), -rows).astype(np.float32)


def ranked(size: int) -> np.ndarray:
    """Rows of 128 coordinates that are nearly sums of two, uneven both ways: a matrix with factors."""
    rows = -(-size // 128)
    a, b = uneven(rows * 256)[::128].reshape(2, rows), vector(256).reshape(2, 128)
    exact = np.ldexp(a[0], 4)[:, None] * b[0] + np.ldexp(a[1], 2)[:, None] * b[1]
    return (exact.ravel()[:size] + np.ldexp(vector(size), -6)).astype(np.float32)


MAKE = {"uneven": uneven, "ranked": ranked, "directed": uneven}
THOROUGH = ("ranked", "directed")


def digest(x: np.ndarray) -> str:
    return hashlib.sha256((x + np.float32(0)).astype("<f4").tobytes()).hexdigest()


@pytest.fixture(params=IMPLEMENTATIONS)
def everywhere(request):
    with implementation(request.param):
        yield


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("path", sorted(HERE.rglob("*.bin")), ids=key)
def test_a_payload_is_written_and_read_as_on_the_day_it_was_promised(path):
    name, bits, size = path.stem.rsplit("-", 2)
    *_, kind = name.split("-")
    codec, d = build(name.removesuffix(f"-{kind}") if kind in MAKE else name, float(bits)), int(size)
    make = MAKE.get(kind, vector)
    data = path.read_bytes()
    received = seeds.uniform(5, d) < 0.7
    (written,) = codec.encode_all([Part(make(d), SEED, thorough=kind in THOROUGH)])
    assert written == data or path.parent == READ_ONLY or name == "m22"
    decoded = codec.decode(data, d, SEED), codec.decode(data, d, SEED, received)
    assert [digest(x) for x in decoded] == DECODED[key(path)]


def test_every_promise_has_its_file():
    assert sorted(DECODED) == sorted(key(path) for path in HERE.rglob("*.bin"))
    assert len(DECODED) >= 90
