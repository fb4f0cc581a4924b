"""A designed quantizer and what it does, in closed form.

With thresholds halfway between levels, all integrals over a cell are incomplete gamma functions
(:mod:`fedge.codecs.m22.families`), and everything that describes the quantizer Q of a law f is a sum over cells:

    D_M = E[|x|^M (x - Q(x))²; |x| >= τ]      A = E[x Q(x)],   B = E[Q(x)²],   m = E[x²]
    nmse = (m - 2A + B)/m,   cos² = A²/(m B),   a* = A/B,   S = m/A

D_M is the distortion of M22 (Liu et al., https://arxiv.org/abs/2301.09269). a*·Q is the multiple of Q nearest to x, a
contraction whatever M is; S·Q has E[x S Q(x)] = E[x²], the right length along x. M = 0 has a* = 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fedge.codecs.m22.families import absolute_moment, law
from fedge.codecs.m22.gamma import Doubles, ratio
from fedge.codecs.m22.newton import edges, masses


@dataclass(frozen=True)
class Quantizer:
    """A symmetric quantizer of a law of unit scale.

    Args:
        positive: its positive levels, float64, ascending; the negative ones mirror them.
        truncation: τ, the magnitude below which x is not quantized but counted as zero.
    """

    family: str
    shape: float
    magnitude: float
    truncation: float
    positive: Doubles

    @property
    def centroids(self) -> Doubles:
        """All levels, float64 ``[2n]``, ascending."""
        return np.concatenate((-self.positive[::-1], self.positive))

    @property
    def thresholds(self) -> Doubles:
        """What divides them, float64 ``[2n - 1]``, ascending: the midpoints of neighbours, 0 in the middle."""
        midpoints = (self.positive[1:] + self.positive[:-1]) / 2
        return np.concatenate((-midpoints[::-1], [0.0], midpoints))

    def _integrals(self, power: float) -> Doubles:
        """∫|x|^power f_|x| over each positive cell in units of E|x|^power, float64 ``[n]``: both signs together."""
        s, k = (np.array([v]) for v in law(self.family, self.shape))
        t = edges(self.positive[None], np.array([self.truncation]))
        cells: Doubles = masses(s, k, np.array([[power]]), t)[0][0, 0]
        return cells

    def _moment(self, power: float) -> float:
        return absolute_moment(self.family, self.shape, power)

    @cached_property
    def cell_probabilities(self) -> Doubles:
        """The probability of every positive cell, float64 ``[n]``; they sum to half of P(|x| >= τ)."""
        return self._integrals(0.0) / 2

    @cached_property
    def entropy_bits(self) -> float:
        """The entropy of the level's number, sign included, given that |x| >= τ."""
        p = np.concatenate((self.cell_probabilities, self.cell_probabilities))
        p = p[p > 0] / p.sum()
        return float(-(p * np.log2(p)).sum())

    @cached_property
    def D_M_norm(self) -> float:
        """D_M over E|x|^(M + 2)."""
        s, k = law(self.family, self.shape)
        a, h = (s + self.magnitude) / k, 1 / k
        first, second = ratio(a, a + h), ratio(a, a + 2 * h)  # E x and E x² under |x|^M f
        mass, mean, square = (self._integrals(self.magnitude + i) for i in range(3))
        c = self.positive
        return float((second * square - 2 * c * first * mean + c * c * mass).sum() / second)

    @property
    def m_M2(self) -> float:
        """E|x|^(M + 2), ``inf`` where float64 ends."""
        return self._moment(self.magnitude + 2)

    @property
    def D_M(self) -> float:
        """E[|x|^M (x - Q(x))²; |x| >= τ], not conditioned on |x| >= τ."""
        return self.D_M_norm * self.m_M2

    @property
    def m2(self) -> float:
        """E[x²]."""
        return self._moment(2.0)

    @cached_property
    def _products(self) -> tuple[float, float]:
        """A = E[x Q(x)] and B = E[Q(x)²]."""
        c = self.positive
        mean, mass = self._moment(1.0) * self._integrals(1.0), self._integrals(0.0)
        return float((c * mean).sum()), float((c * c * mass).sum())

    @property
    def mse(self) -> float:
        """E[(x - Q(x))²], where Q(x) = 0 if |x| < τ."""
        by, squared = self._products
        return self.m2 - 2 * by + squared

    @property
    def nmse(self) -> float:
        """The mse over E[x²]; above 1 where a large M overshoots."""
        return self.mse / self.m2

    @property
    def cos2(self) -> float:
        """The squared cosine between x and Q(x)."""
        by, squared = self._products
        return by * by / (self.m2 * squared)

    @property
    def a_star(self) -> float:
        """The factor by which Q(x) comes nearest to x."""
        by, squared = self._products
        return by / squared

    @property
    def S_unb(self) -> float:
        """The factor by which Q(x) has the length of x along x."""
        return self.m2 / self._products[0]
