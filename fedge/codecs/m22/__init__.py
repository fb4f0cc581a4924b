"""M22: top K by magnitude, quantized for a distortion that leans on large coordinates. ``codec.py`` says how."""

from fedge.codecs.m22.codec import M22

__all__ = ["M22"]
