"""Codecs: a float32 vector to few bytes, and back.

    >>> codec = Eden(bits=1.5)
    >>> data = codec.encode([1.0, -2.0, 0.5], seed=7)
    >>> codec.decode(data, size=3, seed=7).shape
    (3,)

:data:`CODECS` is the table by name, :func:`build` reads it, :func:`by_code` serves frame headers. The hot loops are
in ``_native``; where it was not built a NumPy twin computes the same bytes (:func:`native_available`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fedge.codecs.base import Codec, Part, Vector
from fedge.codecs.eden import Eden
from fedge.codecs.identity import Identity
from fedge.codecs.m22 import M22
from fedge.codecs.native import native_available, native_status
from fedge.errors import CodecError
from fedge.registry import find

__all__ = [
    "CODECS",
    "M22",
    "Codec",
    "Eden",
    "Identity",
    "Part",
    "Vector",
    "build",
    "by_code",
    "native_available",
    "native_status",
]

CODECS: Mapping[str, Callable[..., Codec]] = {
    "identity": Identity.at_rate,
    "eden": Eden.at_rate,
    "eden-entropy": Eden.entropy_coded,
    "m22": M22,
}
BY_CODE: Mapping[int, Callable[[float], Codec]] = {
    Identity.code: Identity.at_rate,
    Eden.code: Eden.at_rate,
    M22.code: M22.at_rate,
}
ALIASES: Mapping[str, str] = {"none": "identity"}


def build(name: str, bits: float, **options: Any) -> Codec:
    """Return the codec called ``name`` at ``bits`` per coordinate. ``"none"`` is another name of identity.

    ``options`` are the settings of :class:`M22` beside its rate; the other codecs have none.

    Raises:
        UnknownName: if no codec has this name.
        CodecError: if the codec has no such rate or setting.
    """
    make = find("codec", ALIASES.get(name, name), CODECS)
    try:
        return make(bits, **options)
    except TypeError:
        raise CodecError(f"codec {name}: expected none of the settings {', '.join(options)}") from None


def by_code(code: int, bits: float) -> Codec:
    """Return the codec that frame headers call ``code``.

    Raises:
        CodecError: if no codec has this number, or it has no such rate.
    """
    if code not in BY_CODE:
        known = ", ".join(f"{number} {make(bits).name}" for number, make in BY_CODE.items())
        raise CodecError(f"expected a codec number ({known}), got {code}")
    return BY_CODE[code](bits)
