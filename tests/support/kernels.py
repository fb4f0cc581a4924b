"""Which implementation of the hot loops the codecs use: any instruction set, the NumPy twin, or a watched one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from fedge.codecs import native

ISAS = tuple(isa for isa in ("baseline", "avx2", "avx512") if native.kernels and native.kernels.use_isa(isa))
IMPLEMENTATIONS = (*ISAS, "numpy")
"""What runs on this machine; all compute the same bits."""


class ExactBuffers:
    """The extension, given every ``bytes`` in memory of exactly its length.

    CPython ends each ``bytes`` with a zero, so that a read one byte behind it looks harmless to a sanitizer.
    """

    def __init__(self, kernels: Any) -> None:
        self._kernels = kernels

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._kernels, name)

        def call(*arguments: Any) -> Any:
            return function(*(_exact(value) if isinstance(value, bytes) else value for value in arguments))

        return call


def _exact(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8).copy()


@contextmanager
def using(kernels: Any) -> Iterator[None]:
    """Let every codec use ``kernels`` in place of the extension; ``None`` is the NumPy twin."""
    users = [m for name, m in sys.modules.items() if name.startswith("fedge.codecs.") and hasattr(m, "kernels")]
    before = [module.kernels for module in users]
    for module in users:
        module.kernels = kernels
    try:
        yield
    finally:
        for module, one in zip(users, before, strict=True):
            module.kernels = one


@contextmanager
def implementation(name: str) -> Iterator[None]:
    """Use one of :data:`IMPLEMENTATIONS`."""
    if name == "numpy":
        with using(None):
            yield
        return
    before = native.kernels.isa()
    native.kernels.use_isa(name)
    try:
        yield
    finally:
        native.kernels.use_isa(before)
