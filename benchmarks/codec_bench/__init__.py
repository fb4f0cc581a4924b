"""The parts of ``fedge bench codecs``; ``benchmarks/codecs.py`` is their door.

configurations   what is measured: one line a codec
torch_eden       the yardsticks of speed: EDEN as one would write it in torch, and as it was published
theory           the yardsticks of error: the rate-distortion floor, and EDEN on whole vectors
inputs           what is encoded: drawn vectors, and real updates
error            error over bits that travel
speed            time over size
tables, plots    what the reader sees
"""
