"""Shrinkage: weights for devices at unlike rates that trade a bias for less error. Opt-in; the default is plain.

Device c's segment x_c, of weight w_c, arrives as x̂_c with E x̂_c = x_c and E‖x̂_c - x_c‖² = A_c‖x_c‖², independently of
the others. Beside the plain sum T_0 = Σ w_c x̂_c run sums that lean on the devices with little error,

    T_j = Σ_c w_c · δ_j/(δ_j + A_c) · x̂_c,   δ = ``PIVOTS``

and at the end of the round the combination Σ z_j T_j is taken that is nearest to Σ w_c x_c in expectation:

    minimize over z   E‖Σ_j z_j T_j - Σ_c w_c x_c‖²   ⇒   H z = H e_0 - n   ⇒   Σ_j z_j T_j = T_0 - Σ_j (H⁺n)_j T_j
    H_ij = <T_i, T_j>,   n_j = Σ_c w_c² δ_j/(δ_j + A_c) · A_c‖x_c‖²,   ‖x_c‖² estimated as ‖x̂_c‖²/(1 + A_c)

n_j is what the errors alone put into <T_0, T_j>: least squares with the target's part known, which is Stein's unbiased
risk estimate for a linear family. The best weights of all, v = (G + Λ)⁻¹ G w with G the Gram matrix of the x_c and
Λ = diag(A_c‖x_c‖²), need every pair of updates. These need neither G nor a model of it, only how far a few sums point
the same way, and come within a few percent of the best where the devices' norms are alike
(``benchmarks/heterogeneous.py``). A device's weight is w_c times a factor that depends on A_c alone. Where no frame has
an error the result is the plain sum, to the bit. Where frames count as γ_c·x̂_c (FedDyn's trust in coarse codes), x_c
stands for γ_c·x_c here: its relative error is A_c as before, and the sum aimed at Σ w_c γ_c x_c.

Memory is O(d), one pass, nothing remembered between rounds: adding the journal's frames again in its order gives the
same bits. C. Stein, Estimation of the Mean of a Multivariate Normal Distribution, 1981,
https://doi.org/10.1214/aos/1176345632; the codec's errors: Vargaftik et al., EDEN, ICML 2022,
https://arxiv.org/abs/2108.08842.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fedge import codecs
from fedge.frames import Frame
from fedge.layout import Layout, Segment

PLAIN: Final = "plain"
SHRINKAGE: Final = "shrinkage"

PIVOTS = (0.03, 0.5)
"""A device whose error is a pivot has half its weight in that sum: about 3.2 bits, and just over 1 bit, of EDEN."""

# Directions that the sums hardly span are left alone: devices of one rate make all sums parallel.
_SMALLEST_EIGENVALUE = 1e-9

Sum = npt.NDArray[np.float64]


class Shrinkage:
    """The leaning sums of one round over the segments of ``layout``; the plain sum is ``SegmentSums.total``."""

    __slots__ = ("_scratch", "noise", "totals")

    def __init__(self, layout: Layout) -> None:
        self.totals: Sum = np.zeros((len(PIVOTS), layout.size))
        """T_1, T_2, .., float64 [pivots, d]."""
        self.noise: Sum = np.zeros((len(layout.segments), 1 + len(PIVOTS)))
        """n, float64 [segments, 1 + pivots]."""
        # Fresh arrays of a segment's size come from the kernel page by page: twice the time of the sums.
        self._scratch: Sum = np.empty((2, max((segment.size for segment in layout.segments), default=0)))

    def add(self, segment: Segment, x: npt.NDArray[np.floating[Any]], weight: float, error: float) -> None:
        """Add ``x``, float ``[segment.size]`` and finite, whose expected error is ``error · ‖x_c‖²``."""
        weighted, part = self._scratch[:, : segment.size]
        weighted[:] = x
        weighted *= weight
        lost = error / (1.0 + error) * float(np.multiply(weighted, weighted, out=part).sum())
        self.noise[segment.index, 0] += lost
        for j, pivot in enumerate(PIVOTS):
            factor = pivot / (pivot + error)
            self.totals[j, segment.slice] += np.multiply(weighted, factor, out=part)
            self.noise[segment.index, j + 1] += factor * lost

    def shrink(self, segment: Segment, plain: Sum) -> Sum:
        """Return the best combination of ``plain``, T_0 on ``segment``, and the leaning sums, float64 ``[size]``."""
        noise = self.noise[segment.index]
        if noise[0] == 0.0:
            return plain
        sums = [plain, *(total[segment.slice] for total in self.totals)]
        gram = np.array([[_dot(a, b) for b in sums] for a in sums])
        if gram[0, 0] <= noise[0]:  # no signal above the error: the positive part of Stein's estimate
            return np.zeros_like(plain)
        scale = np.sqrt(np.diag(gram))
        scale[scale == 0.0] = 1.0  # a leaning sum may cancel where the plain one does not
        inverse = np.linalg.pinv(gram / np.outer(scale, scale), rcond=_SMALLEST_EIGENVALUE, hermitian=True)
        taken = inverse @ (noise / scale) / scale
        shrunk = plain.copy()
        for share, total in zip(taken, sums, strict=True):
            shrunk -= share * total
        return shrunk


def error_of(frame: Frame) -> float:
    """Return A of ``frame``: its decoded segment has E‖x̂ - x‖² = A‖x‖².

    Raises:
        CodecError: no codec has this number or rate, or the payload is none of its.
    """
    return codecs.by_code(frame.codec, frame.bits).error(frame.payload, frame.count)


def _dot(a: Sum, b: Sum) -> float:
    """Return <a, b>. Not by BLAS: its sums depend on how many threads it was given."""
    return float(np.add.reduce(a * b))
