"""Builds the one C extension. Everything else about the package is in pyproject.toml.

The extension uses the stable ABI (one wheel serves Python 3.11 and later) and is optional: where no compiler
is found the install goes on, and the NumPy twin in ``fedge.codecs`` computes the same bytes more slowly.
``-ffp-contract=off``: a fused multiply-add would make x86 and ARM disagree in the last bit.

``FEDGE_SANITIZE=1`` in the environment builds it with the address and undefined-behaviour sanitizers, for
``make sanitize`` alone: such an extension works only where their run-time library was loaded first.
"""

import os
from pathlib import Path

from setuptools import Extension, setup

KERNELS = Path("fedge/codecs/kernels")
SANITIZE = os.environ.get("FEDGE_SANITIZE", "") not in ("", "0")
SANITIZERS = [
    "-fsanitize=address,undefined,float-cast-overflow",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
    "-O1",
    "-g1",
    "-fno-var-tracking",
]

setup(
    ext_modules=[
        Extension(
            "fedge.codecs._native",
            sources=sorted(map(str, KERNELS.glob("*.c"))),
            depends=sorted(map(str, KERNELS.glob("*.h"))),
            extra_compile_args=[
                "-O3",
                "-std=gnu11",
                "-ffp-contract=off",
                "-fno-math-errno",
                "-Wall",
                "-Wextra",
                "-fvisibility=hidden",
                *(SANITIZERS if SANITIZE else []),
            ],
            extra_link_args=SANITIZERS if SANITIZE else [],
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            py_limited_api=True,
            optional=not SANITIZE,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
