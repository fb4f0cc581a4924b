"""M22: top K by magnitude, quantized for a distortion that leans on large coordinates. ``codec.py`` says how.

families.py, gamma.py        the two laws of coordinates, and the functions they are made of
estimate.py                  which law given coordinates have
design.py, newton.py         the best quantizer of a law; quantizer.py: what it costs and gives
histogram.py, codebook.py    how many levels, and which, for the coordinates at hand
prices.py, ranking.py        what K coordinates cost, and which are the K largest
encoder.py                   plans, drafts, cells, amplitude, budget
subset.py, payload.py        the bytes
"""

from fedge.codecs.m22.codec import M22
from fedge.codecs.m22.design import design

__all__ = ["M22", "design"]
