"""What error could be: the rate-distortion floor, and EDEN at fixed rates on the whole vector, bare and padded.

All are of vNMSE = ||x_hat - x||²/||x||² of an unbiased estimate, at b bits per coordinate in all.
"""

from __future__ import annotations

import math

from fedge.codecs.centroids import DISTORTION


def floor(bits: float) -> float:
    """Return 1/(4^b - 1): no unbiased code of i.i.d. Gaussian coordinates has a smaller vNMSE.

    From Shannon's D(b) = 4^-b; dividing the reproduction by 1 - D makes it unbiased, and D/(1 - D) of its error.
    Vectors whose coordinates differ in variance may go below.
    """
    return 1.0 / math.expm1(bits * math.log(4))


def whole_vector_eden(bits: float) -> float:
    """Return the vNMSE of EDEN with one scale and one rate for the whole vector, any b > 0.

    With D that of the Lloyd-Max quantizer, D/(1 - D). Between whole bits a share of the coordinates has one bit more:
    D is the mean. Below one bit a share b of them is sent, at one bit: π/(2b) - 1. Beyond 8 bits it has no quantizer,
    and stays where it was. No headers, no padding: more than the implementations keep.
    """
    if bits < 1:
        return math.pi / (2 * bits) - 1
    low = min(int(bits), len(DISTORTION))
    high = min(low + 1, len(DISTORTION))
    share = bits - low if high > low else 0.0
    mixed = (1 - share) * DISTORTION[low - 1] + share * DISTORTION[high - 1]
    return mixed / (1 - mixed)


def padded_eden(bits: float, size: int) -> float:
    """Return the vNMSE of EDEN on the whole vector as it is coded with one Hadamard transform, any b > 0.

    ``size`` d coordinates are padded with zeros to N, the next power of two, and rotated; each of the N is quantized
    with w whole bits, and so many are dropped that the rest, a share p, fit b·d bits:

        vNMSE = (d/N)·((1 + A_w)/p - 1),    p = min(1, b·d/(N·w))

    with A_w the error at w bits. d/N, because the padding takes its share of the error with it when it is cut off (less
    than that where zeros at the end meet one Hadamard transform). w is the best of 1 to 8.
    """
    padded = 1 << max(size - 1, 0).bit_length()
    shares = {width: min(1.0, bits * size / (padded * width)) for width in range(1, len(DISTORTION) + 1)}
    kept = min((1 + whole_vector_eden(width)) / share for width, share in shares.items())
    return size / padded * (kept - 1)
