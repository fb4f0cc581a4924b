"""From what a link can carry to bits per coordinate.

A device states bits, bytes for a round, or a speed held for some seconds. The plan's bits are the most it is asked
for; a tighter limit lowers them to the highest rate whose frames, headers and raw tensors included, fit:

    bits = max { b in [0.05, 8] : update_bytes(layout, codec, b) <= limit },     b <= the plan's bits

The size of an update is known exactly before it is encoded, so a budget is kept to the byte. A download that moves a
state has a message header as well. In mode "mcm" all devices get the same messages, and at times the whole state as
float32: a device that cannot take that cannot take part.
"""

from __future__ import annotations

import math

from fedge.downlink.common import most_bytes
from fedge.downlink.message import HEADER_BYTES as MESSAGE_HEADER_BYTES
from fedge.errors import BudgetError
from fedge.layout import Layout
from fedge.update import update_bytes
from schemas.specs import DownlinkSpec, LinkLimit, UplinkSpec

MIN_BITS = 0.05
# Half a bit of one coordinate in the largest segment: finer steps change no byte.
_RESOLUTION = 2.0**-17


def rate(layout: Layout, spec: UplinkSpec | DownlinkSpec, limit: LinkLimit) -> float:
    """Return the bits per coordinate to use: those of ``spec``, or fewer where the device's ``limit`` is tighter.

    Raises:
        BudgetError: not even the lowest rate fits, or the plan's codec has only one rate and it does not; the
            message says how many bytes would do.
    """
    most = spec.bits if limit.bits is None else min(spec.bits, limit.bits)
    allowed = bytes_allowed(limit)
    header = 0
    if isinstance(spec, DownlinkSpec) and spec.has_memory:
        header = MESSAGE_HEADER_BYTES
        if spec.mode == "mcm":
            return _common_rate(layout, spec.bits, limit, allowed)
    needed = header + update_bytes(layout, spec.codec_name, most)
    if spec.codec == "none":
        return _float32_rate(spec.bits, limit, needed, allowed)
    if allowed is None or needed <= allowed:
        return most
    least = header + update_bytes(layout, spec.codec_name, MIN_BITS)
    if least > allowed:
        raise BudgetError(
            f"expected a budget of at least {least} bytes for {layout.size} coordinates by codec {spec.codec_name}, "
            f"got {allowed}"
        )
    return _highest_that_fits(layout, spec.codec_name, most, allowed - header)


def bytes_allowed(limit: LinkLimit) -> int | None:
    """Return how many bytes ``limit`` leaves for one round's frames in one direction; None: as many as it takes."""
    allowed = [] if limit.bytes_per_round is None else [limit.bytes_per_round]
    if limit.bytes_per_second is not None and limit.deadline_seconds is not None:
        carried = limit.bytes_per_second * limit.deadline_seconds
        # Two finite numbers may well have an infinite product: no limit at all.
        allowed += [math.floor(carried)] if math.isfinite(carried) else []
    return min(allowed, default=None)


def full_rate(layout: Layout, spec: DownlinkSpec, limit: LinkLimit) -> float:
    """Return the bits per coordinate of the whole model: those of ``spec``, or fewer by the device's ``limit``.

    Raises:
        BudgetError: as ``rate``.
    """
    if spec.mode != "rand-mcm":
        return spec.full_bits
    return rate(layout, spec.model_copy(update={"bits": spec.full_bits}), limit)


def _common_rate(layout: Layout, bits: float, limit: LinkLimit, allowed: int | None) -> float:
    if limit.bits is not None:
        raise BudgetError(f'expected a device without a limit in bits in downlink mode "mcm", got {limit.bits:g}')
    needed = most_bytes(layout)
    if allowed is not None and allowed < needed:
        raise BudgetError(f'expected a budget of at least {needed} bytes in downlink mode "mcm", got {allowed}')
    return bits


def _float32_rate(bits: float, limit: LinkLimit, needed: int, allowed: int | None) -> float:
    if limit.bits is not None:
        raise BudgetError(f"expected a device without a limit in bits where the codec is none, got {limit.bits}")
    if allowed is not None and needed > allowed:
        raise BudgetError(f"expected a budget of at least {needed} bytes for float32, got {allowed}")
    return bits


def _highest_that_fits(layout: Layout, codec: str, most: float, limit_bytes: int) -> float:
    fits, too_much = MIN_BITS, most
    while too_much - fits > _RESOLUTION:
        middle = (fits + too_much) / 2
        if update_bytes(layout, codec, middle) <= limit_bytes:
            fits = middle
        else:
            too_much = middle
    return fits
