"""FedLite: split training, in which weak devices hold the front half of a model. Arrays and bytes only.

    fedlite.py     the step, both ends: quantize, receive, answer, correct
    quantizer.py   product quantization by groups of positions, K-means
    message.py     bytes of activations and labels, which go up
    gradient.py    bytes of gradients, which come down
    shared.py      what server and devices may share beyond the model: a codebook, a model of indices
    options.py     settings

How it is trained in torch: ``fedge/tasks/split_model.py`` (where to cut) and ``fedge/algorithms/split.py`` (a step).
"""

from __future__ import annotations

from fedge.split.fedlite import Quantized, Received, answer, correct, quantize, receive
from fedge.split.gradient import GradientCoding, GradientMessage
from fedge.split.message import ActivationMessage, read_labels, write_labels
from fedge.split.options import Coding, Options, Start
from fedge.split.quantizer import Shape
from fedge.split.shared import Memory, Shared

__all__ = [
    "ActivationMessage",
    "Coding",
    "GradientCoding",
    "GradientMessage",
    "Memory",
    "Options",
    "Quantized",
    "Received",
    "Shape",
    "Shared",
    "Start",
    "answer",
    "correct",
    "quantize",
    "read_labels",
    "receive",
    "write_labels",
]
