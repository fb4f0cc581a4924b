"""The door to the C extension: import it if it was built and not turned off.

``FEDGE_NO_NATIVE=1`` in the environment, read once at import, makes every codec use its NumPy twin.
"""

from __future__ import annotations

import os
from typing import Any

_native: Any = None
_reason = ""
if os.environ.get("FEDGE_NO_NATIVE", "") not in ("", "0"):
    _reason = "FEDGE_NO_NATIVE is set"
else:
    try:
        from fedge.codecs import _native  # type: ignore[no-redef, attr-defined, unused-ignore]
    except ImportError as error:
        _reason = f"fedge.codecs._native cannot be imported ({error})"

kernels: Any = _native


def native_available() -> bool:
    """Whether the C extension is in use."""
    return kernels is not None


def native_status() -> str:
    """Say in one sentence which implementation is in use and what is lost by it."""
    if kernels is not None:
        return f"The codecs run natively, with kernels for {kernels.isa()}."
    return (
        f"The codecs run in NumPy because {_reason}: the bytes are the same, "
        "encoding and decoding take many times longer."
    )
