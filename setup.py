"""Builds the one C extension. Everything else about the package is in pyproject.toml.

The extension uses the stable ABI (one wheel serves Python 3.11 and later) and is optional: where no compiler
is found the install goes on, and the NumPy twin in ``fedge.codecs`` computes the same bytes more slowly.
``-ffp-contract=off``: a fused multiply-add would make x86 and ARM disagree in the last bit.
"""

from pathlib import Path

from setuptools import Extension, setup

KERNELS = Path("fedge/codecs/kernels")

setup(
    ext_modules=[
        Extension(
            "fedge.codecs._native",
            sources=[str(KERNELS / name) for name in ("module.c", "avx512.c", "avx2.c", "baseline.c")],
            depends=sorted(map(str, KERNELS.glob("*.h"))),
            extra_compile_args=[
                "-O3",
                "-std=gnu11",
                "-ffp-contract=off",
                "-fno-math-errno",
                "-Wall",
                "-Wextra",
                "-fvisibility=hidden",
            ],
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            py_limited_api=True,
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
