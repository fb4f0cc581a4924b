"""Names of things on the wire. All are short, printable and safe in a path and in a log line."""

from __future__ import annotations

from typing import Annotated, NewType

from pydantic import Field, StringConstraints

RunId = NewType("RunId", str)
DeviceId = NewType("DeviceId", str)

NAME = r"^[a-z0-9][a-z0-9._-]{0,62}$"
DIGEST = r"^[0-9a-f]{16,64}$"
TASK = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"
SECRET = r"^[A-Za-z0-9_-]{32,128}$"
URL = r"^https?://([^\s/:\[\]]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?(/\S*)?$"
LEVEL = r"^(DEBUG|INFO|WARNING|ERROR)$"

EXPECTED: dict[str, str] = {
    NAME: "1 to 63 lower-case letters, digits, '.', '_' or '-', the first a letter or digit",
    DIGEST: "16 to 64 hexadecimal digits in lower case",
    TASK: "package.module:object, such as fedge.tasks.wisdm:task",
    SECRET: "a token as fedge-server init or fedge token create prints it: 32 to 128 letters, digits, - or _",
    URL: "http://HOST:PORT or https://HOST:PORT",
    LEVEL: "DEBUG, INFO, WARNING or ERROR",
}
"""What each pattern stands for, as a person is told it."""

#: A run's id as it travels: chosen by the aggregator, for example ``wisdm-3``.
RunName = Annotated[RunId, StringConstraints(pattern=NAME), Field(description=EXPECTED[NAME])]
#: A device's id as it travels: its own name, made unique by the aggregator, for example ``pi-kitchen``.
DeviceName = Annotated[DeviceId, StringConstraints(pattern=NAME), Field(description=EXPECTED[NAME])]
#: Hexadecimal digest: of a layout, or of an update (its ``update_id``).
Digest = Annotated[str, StringConstraints(pattern=DIGEST), Field(description=EXPECTED[DIGEST])]
#: ``package.module:object``, the way a task is named.
TaskPath = Annotated[str, StringConstraints(pattern=TASK, max_length=200), Field(description=EXPECTED[TASK])]
#: An enrolment token, or the credential that a device draws.
Secret = Annotated[str, StringConstraints(pattern=SECRET), Field(description=EXPECTED[SECRET])]
#: Where an aggregator answers.
ServerUrl = Annotated[str, StringConstraints(pattern=URL), Field(description=EXPECTED[URL])]
#: How much is logged.
LogLevel = Annotated[str, StringConstraints(pattern=LEVEL), Field(description=EXPECTED[LEVEL])]
