"""The door to the C extension: import it if it was built and not turned off.

``FEDGE_NO_NATIVE=1`` in the environment, read once at import, makes every codec use its NumPy twin.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

_NAME = "fedge.codecs._native"


def _why(error: ImportError) -> str:
    """Tell an extension that was never built from one that is there and cannot be used."""
    if isinstance(error, ModuleNotFoundError) and error.name == _NAME:
        missing = "the C extension was not built (there was no C compiler when fedge was installed)"
        return f"{missing}; install a C compiler and fedge again"
    return f"the C extension is there and cannot be imported ({error}); install fedge again"


_native: Any = None
_reason = ""
if os.environ.get("FEDGE_NO_NATIVE", "") not in ("", "0"):
    _reason = "FEDGE_NO_NATIVE is set"
else:
    try:
        _native = importlib.import_module(_NAME)
    except ImportError as error:
        _reason = _why(error)

kernels: Any = _native


def native_available() -> bool:
    """Whether the C extension is in use."""
    return kernels is not None


def native_status() -> str:
    """Say in one sentence which implementation is in use and what is lost by it."""
    if kernels is not None:
        return f"The codecs run natively, with kernels for {kernels.isa()}."
    return (
        "The codecs run in NumPy: the bytes are the same, encoding and decoding take 15 to 200 times longer. "
        f"Reason: {_reason}."
    )
