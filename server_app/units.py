"""Bytes, seconds and ratios as people read them. Bytes are decimal: 1 kB is 1000 bytes, as on a mobile contract."""

from __future__ import annotations

_BYTE_UNITS = ("B", "kB", "MB", "GB", "TB")


def as_bytes(count: float) -> str:
    """Return ``count`` bytes in three to four digits, such as ``8.41 MB``."""
    for unit in _BYTE_UNITS:
        if count < 999.5 or unit == _BYTE_UNITS[-1]:
            break
        count /= 1000
    if unit == "B" or count >= 99.95:
        return f"{count:.0f} {unit}"
    return f"{count:.1f} {unit}" if count >= 9.995 else f"{count:.2f} {unit}"


def as_seconds(seconds: float) -> str:
    """Return a length of time, such as ``8.2 s``, ``4 min 20 s`` or ``3 h 05 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def as_ratio(whole: float, part: float) -> str:
    """Return how many times smaller ``part`` is than ``whole``, such as ``14.9x``; a dash where there is no part."""
    return f"{whole / part:.1f}x" if part else "-"


def as_points(points: float | None) -> str:
    """Return percentage points in three digits, such as ``12.3 points``; a dash where there are none."""
    if points is None:
        return "-"
    return f"{points:.3g} points" if abs(points) < 999.5 else f"{points:,.0f} points"


def as_percent(share: float | None) -> str:
    """Return a share of one as percent, such as ``91.2 %``; a dash where there is none."""
    return "-" if share is None else f"{100 * share:.1f} %"
