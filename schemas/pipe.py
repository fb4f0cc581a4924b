"""Messages between a program and its worker process, over stdin and stdout.

    u32 length | msgpack map | u32 count | count x (u64 length | raw bytes)

The map holds small plain values, the raw parts hold vectors. Both ends are ours and on one machine, so the only
bound is a sane length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgpack

from schemas.errors import PackingError

MAX_HEADER_BYTES = 1 << 26


def pack_parcel(header: Mapping[str, Any], parts: Sequence[bytes | memoryview] = ()) -> list[bytes | memoryview]:
    """Return the pieces to write, in order; vectors are not copied."""
    head = bytes(msgpack.packb(dict(header), use_bin_type=True))
    pieces: list[bytes | memoryview] = [
        len(head).to_bytes(4, "little"),
        head,
        len(parts).to_bytes(4, "little"),
    ]
    for part in parts:
        pieces += [memoryview(part).nbytes.to_bytes(8, "little"), part]
    return pieces


def read_parcel(read: Callable[[int], bytes]) -> tuple[dict[str, Any], list[bytes]] | None:
    """Read one parcel with ``read(n)``, which returns n bytes, or fewer at the end of the stream.

    Returns:
        header and parts, or None where the stream ended between two parcels.

    Raises:
        PackingError: where it ended inside one.
    """
    first = read(4)
    if not first:
        return None
    head = unpack_header(_exactly(read, header_length(first)))
    count = int.from_bytes(_exactly(read, 4), "little")
    parts = [_exactly(read, int.from_bytes(_exactly(read, 8), "little")) for _ in range(count)]
    return head, parts


def header_length(prefix: bytes) -> int:
    """Return the header's length from its 4-byte prefix."""
    length = int.from_bytes(prefix, "little")
    if len(prefix) != 4 or length > MAX_HEADER_BYTES:
        raise PackingError(f"expected a parcel of at most {MAX_HEADER_BYTES} header bytes, got {length}")
    return length


def unpack_header(data: bytes) -> dict[str, Any]:
    """Return the map in ``data``."""
    header = msgpack.unpackb(data, raw=False)
    if not isinstance(header, dict):
        raise PackingError(f"expected a map at the head of a parcel, got {type(header).__name__}")
    return header


def _exactly(read: Callable[[int], bytes], count: int) -> bytes:
    data = read(count)
    if len(data) != count:
        raise PackingError(f"expected {count} more bytes of a parcel, got {len(data)}: the other side ended")
    return data
