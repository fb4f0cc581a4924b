"""Names of things on the wire. All are short, printable and safe in a path and in a log line."""

from __future__ import annotations

from typing import Annotated, NewType

from pydantic import StringConstraints

RunId = NewType("RunId", str)
DeviceId = NewType("DeviceId", str)

NAME = r"^[a-z0-9][a-z0-9._-]{0,62}$"

#: A run's id as it travels: chosen by the aggregator, for example ``wisdm-3``.
RunName = Annotated[RunId, StringConstraints(pattern=NAME)]
#: A device's id as it travels: its own name, made unique by the aggregator, for example ``pi-kitchen``.
DeviceName = Annotated[DeviceId, StringConstraints(pattern=NAME)]
#: Hexadecimal digest: of a layout, or of an update (its ``update_id``).
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16,64}$")]
#: ``package.module:object``, the way a task is named.
TaskPath = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$", max_length=200)]
