"""The network of ``fedge.tasks.shakespeare``: it reads characters and says at every one which comes next.

    [n, t] → embedding 8 → LSTM 100 → LSTM 100 → linear V → [n, t, V]

The sizes are those of LEAF (Caldas et al., https://arxiv.org/abs/1812.01097) and of the FedDyn authors.

Embeddings begin with variance 1, as torch's do, and not with the 1/(3·8) that ``initialise`` gives them: with small
inputs plain SGD stays for long where every character is predicted from its frequency alone. On one role, two
epochs at learning rate 4 came to 2.8 nats a character instead of 3.2.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from fedge.tasks.torch_model import initialise

EMBEDDING = 8
HIDDEN = 100
LAYERS = 2


class CharLstm(nn.Module):
    """Characters int64 ``[n, t]`` to logits float32 ``[n, t, characters]``."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, EMBEDDING)
        self.lstm = nn.LSTM(EMBEDDING, HIDDEN, LAYERS, batch_first=True)
        self.output = nn.Linear(HIDDEN, characters)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits of what follows each character."""
        states, _ = self.lstm(self.embedding(inputs))
        return cast(Tensor, self.output(states))


def build(characters: int, seed: int) -> CharLstm:
    """Return a new network. Its parameters follow from ``seed`` alone."""
    network = CharLstm(characters)
    initialise(network, seed)
    with torch.no_grad():
        network.embedding.weight.mul_(math.sqrt(3 * EMBEDDING))
    return network
