"""Messages as bytes: one version byte, then msgpack.

Strict on purpose: a message of another version, longer than its cap, nested deeper than ``MAX_DEPTH``, with an
extension type, a duplicate or non-text key, a number of bytes left over, or a field its model does not know is
refused before anything is built from it.
"""

from __future__ import annotations

from typing import TypeVar

import msgpack

from schemas.base import Model, parse
from schemas.errors import PackingError

VERSION = 1
MAX_BYTES = 1 << 20
MAX_DEPTH = 8
CONTENT_TYPE = "application/msgpack"

M = TypeVar("M", bound=Model)


def pack(message: Model) -> bytes:
    """Return ``message`` as bytes. Fields at their default are left out: a header costs what it says."""
    body = message.model_dump(mode="python", exclude_defaults=True)
    return bytes([VERSION]) + bytes(msgpack.packb(_plain(body), use_bin_type=True))


def unpack(model: type[M], data: bytes, max_bytes: int = MAX_BYTES) -> M:
    """Return the message in ``data``.

    Raises:
        PackingError: ``data`` is no msgpack of our version, or breaks a bound.
        InvalidInput: it is, but its content breaks a rule of ``model``.
    """
    if len(data) > max_bytes:
        raise PackingError(f"expected at most {max_bytes} bytes of {model.__name__}, got {len(data)}")
    if not data:
        raise PackingError(f"expected a {model.__name__}, got no bytes")
    if data[0] != VERSION:
        raise PackingError(f"expected message version {VERSION}, got {data[0]}")
    _check_depth(data)
    return parse(model, _unpack(data[1:], model.__name__), model.__name__)


def _unpack(body: bytes, what: str) -> object:
    try:
        return msgpack.unpackb(
            body,
            raw=False,
            use_list=False,
            strict_map_key=True,
            object_pairs_hook=_unique,
            ext_hook=_no_extension,
        )
    except (msgpack.exceptions.UnpackException, ValueError, TypeError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise PackingError(f"expected {what} as msgpack, got {len(body)} bytes that are not: {reason}") from None


def _unique(pairs: list[tuple[object, object]]) -> dict[object, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one map")
    return found


def _no_extension(code: int, data: bytes) -> object:
    raise ValueError(f"extension type {code} is not allowed")


def _plain(value: object) -> object:
    """Enums as their text; everything else is plain already."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, str) else value


def _check_depth(data: bytes) -> None:
    """Walk the containers of a msgpack document without building it, and refuse deep ones."""
    unpacker = msgpack.Unpacker(max_buffer_size=len(data) + 1)
    unpacker.feed(data[1:])
    left: list[int] = []
    try:
        while unpacker.tell() < len(data) - 1:
            left = _step(unpacker, data[1 + unpacker.tell()], left)
            if len(left) > MAX_DEPTH:
                raise PackingError(f"expected at most {MAX_DEPTH} levels of nesting, got more")
    except (msgpack.exceptions.UnpackException, ValueError) as error:
        if isinstance(error, PackingError):
            raise
        raise PackingError(f"expected msgpack, got bytes that are not: {error or type(error).__name__}") from None


def _step(unpacker: msgpack.Unpacker, first: int, left: list[int]) -> list[int]:
    """Read one container header or skip one value; ``left`` counts what each open container still owes."""
    is_map = 0x80 <= first <= 0x8F or first in (0xDE, 0xDF)
    is_array = 0x90 <= first <= 0x9F or first in (0xDC, 0xDD)
    if is_map:
        owed = 2 * unpacker.read_map_header()
    elif is_array:
        owed = unpacker.read_array_header()
    else:
        unpacker.skip()
        owed = 0
    if left:
        left = [*left[:-1], left[-1] - 1]
    if owed:
        left = [*left, owed]
    while left and left[-1] == 0:
        left = left[:-1]
    return left
