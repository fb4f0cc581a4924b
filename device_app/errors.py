"""Everything the device's programs raise on purpose.

DeviceError
├── HomeError          the home folder lacks something a person must provide, or another agent uses it
├── SpoolError         the disk would not take or give what the spool needs
│   └── StateLost      what is on disk is not what was written: missing, cut off or altered
├── TrainerError       the task or its data cannot be used, or training failed
│   └── TrainerDied    the trainer process ended in mid-request
└── AggregatorError    the aggregator gave no useful answer
    ├── Unreachable    no connection, a broken one, a server error: worth another try
    │   └── NoWebSocket    there is a connection, and something on it does not let WebSockets through
    ├── Unauthorised   it does not know this device: a person has to enrol it
    ├── RoundGone      the round, or the whole run, takes nothing more
    └── Declined       it refuses this request, and would refuse it again
"""

from __future__ import annotations


class DeviceError(Exception):
    """Base of everything this package raises on purpose."""


class HomeError(DeviceError):
    """The home folder lacks something a person must provide, or another agent uses it."""


class SpoolError(DeviceError):
    """The disk would not take or give what the spool needs."""


class StateLost(SpoolError):
    """What is on disk is not what was written."""


class TrainerError(DeviceError):
    """The task or its data cannot be used, or training failed."""


class TrainerDied(TrainerError):
    """The trainer process ended in mid-request."""


class AggregatorError(DeviceError):
    """The aggregator gave no useful answer. ``reason`` is its stable word for why, or one of ours."""

    def __init__(self, message: str, reason: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds


class Unreachable(AggregatorError):
    """No connection, a broken one, or a server error: worth another try."""


class NoWebSocket(Unreachable):
    """Something between here and the aggregator does not let WebSockets through, or the aggregator does not."""


class Unauthorised(AggregatorError):
    """The aggregator does not know this device."""


class RoundGone(AggregatorError):
    """The round, or the whole run, takes nothing more."""


class Declined(AggregatorError):
    """The aggregator refuses this request, and would refuse it again."""
