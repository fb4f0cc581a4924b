"""Per-bit accuracy: how much accuracy one communicated bit has bought.

    PBA(T) = (Acc(w_T) - Acc(w_0)) / B_T

w_0 is a run's initial model, w_T the one published after round T, Acc the accuracy of either on the same test data, and
B_T all bits that all devices have sent up to the end of round T: abandoned rounds, repeated uploads and, where sockets
were counted, HTTP and polls included.

Liu, Rini, Salehkalaibar and Chen, M22 (https://arxiv.org/abs/2301.09269) speak of the improvement in accuracy that one
communicated bit brings; this is that quantity for a run as it is measured, over its whole uplink.

**Its trap.** Accuracy saturates and bits do not: the first bits buy the most, so alone this number favours doing almost
nothing, such as one round at the lowest rate. It ranks runs that sent equally many bits; elsewhere read it beside
accuracy and bytes.
"""

from __future__ import annotations

BITS_PER_MEGABIT = 1e6


def per_bit_accuracy(accuracy: float | None, initial_accuracy: float | None, bytes_up: int) -> float | None:
    """Return PBA in percentage points per megabit (a million bits); negative where training did harm.

    Accuracies are shares of one, ``accuracy`` that of w_T; ``bytes_up`` is B_T in bytes. None where either accuracy was
    not measured or nothing was sent.

    >>> per_bit_accuracy(0.85, 0.25, 5_000_000)  # 60 points for 40 megabits
    1.5
    """
    if accuracy is None or initial_accuracy is None or bytes_up <= 0:
        return None
    return 100 * (accuracy - initial_accuracy) / (8 * bytes_up / BITS_PER_MEGABIT)
