"""Everything fedge raises on purpose.

FedgeError
├── UnknownName      a name that is in no table; says which names are near
├── LayoutError      tensors and flat vector do not fit together
├── FrameError       bytes that are no frame, or not the one expected
├── CodecError       input a codec cannot encode, or a payload it cannot decode
├── AggregationError a delta or a weight that must not enter a mean
├── AlgorithmError   a setting an algorithm cannot run with, or sums it did not ask for
├── SimulationError  a simulation that cannot begin or cannot go on
├── BudgetError      a budget too small for anything useful; says the minimum
├── ProtocolError    an event that its state machine does not allow
└── TaskError        a task that cannot be found or does not keep its promises
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FedgeError(Exception):
    """Base of every error fedge raises on purpose."""


class UnknownName(FedgeError, LookupError):
    """``name`` is in no table of ``kind``; the message names the nearest ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        super().__init__(f"unknown {kind} {name!r}{hint} (known: {', '.join(known)})")
        self.nearest = near[0] if near else None


class LayoutError(FedgeError, ValueError):
    """Tensors and flat vector do not fit together."""


class FrameError(FedgeError, ValueError):
    """Bytes that are no frame, or not the frame that was expected."""


class CodecError(FedgeError, ValueError):
    """Input a codec cannot encode, or a payload it cannot decode."""


class AggregationError(FedgeError, ValueError):
    """A delta or a weight that must not enter a mean. The sums are as they were before it."""


class AlgorithmError(FedgeError, ValueError):
    """A setting an algorithm cannot run with, or sums it did not ask for."""


class SimulationError(FedgeError):
    """A simulation that cannot begin or cannot go on."""


class BudgetError(FedgeError, ValueError):
    """A budget too small for anything useful."""


class ProtocolError(FedgeError):
    """An event that its state machine does not allow in this state."""


class TaskError(FedgeError):
    """A task that cannot be found or does not keep its promises."""
