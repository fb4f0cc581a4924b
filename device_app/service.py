"""The agent as a systemd service: ``install`` writes a unit and starts it, ``uninstall`` removes it.

Where systemd is not running the unit is written all the same, and the commands to start it are said.
"""

from __future__ import annotations

import getpass
import pwd
import subprocess
import sys
from pathlib import Path

from device_app.errors import HomeError
from device_app.home import Home

UNIT = Path("/etc/systemd/system/fedge-device.service")
_RUNNING = Path("/run/systemd/system")

# The agent waits out every fault itself; what ends it (code 3, 4, 6) needs a person, so systemd leaves it then.
TEMPLATE = """\
[Unit]
Description=fedge device agent: trains a shared model on this device's data
Wants=network-online.target
After=network-online.target

[Service]
User={user}
ExecStart={python} -m device_app run --home {home}
Restart=always
RestartSec=15
RestartPreventExitStatus=2 3 4 6
KillMode=mixed
TimeoutStopSec=20
Nice=5
NoNewPrivileges=true
PrivateTmp=true
ProtectSystem=full
Environment=PYTHONUNBUFFERED=1

[Install]
WantedBy=multi-user.target
"""


def unit_text(home: Path, user: str, python: str = sys.executable) -> str:
    """Return the unit that runs the agent of ``home`` as ``user``."""
    return TEMPLATE.format(home=_quoted(str(home)), user=user, python=_quoted(python))


def install(home: Home, user: str, unit: Path = UNIT) -> list[str]:
    """Write ``unit`` for ``home`` and start it; return what was done, a line each.

    Raises:
        HomeError: the home is not enrolled, ``user`` does not exist, or the unit cannot be written.
    """
    home.config()
    home.credential()
    home.expect_enrolled()
    user = user or getpass.getuser()
    try:
        pwd.getpwnam(user)
        unit.write_text(unit_text(home.root, user), "utf-8")
    except KeyError as error:
        raise HomeError(f"expected an account {user!r} on this machine, got none") from error
    except OSError as error:
        raise HomeError(f"could not write {unit}: {error.strerror}; run this with sudo") from error
    return [f"wrote {unit}", *_systemctl(["daemon-reload"], ["enable", "--now", unit.name])]


def uninstall(unit: Path = UNIT) -> list[str]:
    """Stop and remove ``unit``; return what was done, a line each. Safe to repeat.

    Raises:
        HomeError: it cannot be removed.
    """
    if not unit.exists():
        return [f"there is no {unit}"]
    said = _systemctl(["disable", "--now", unit.name])
    try:
        unit.unlink()
    except OSError as error:
        raise HomeError(f"could not remove {unit}: {error.strerror}; run this with sudo") from error
    return [*said, f"removed {unit}", *_systemctl(["daemon-reload"]), "the home folder was left as it is"]


def _systemctl(*commands: list[str]) -> list[str]:
    if not _RUNNING.is_dir():
        return [f"systemd is not running here; to be run: systemctl {' '.join(command)}" for command in commands]
    said = []
    for command in commands:
        done = subprocess.run(["systemctl", *command], capture_output=True, text=True, check=False)
        outcome = "done" if done.returncode == 0 else f"failed: {done.stderr.strip()}"
        said.append(f"systemctl {' '.join(command)}: {outcome}")
    return said


def _quoted(text: str) -> str:
    """Return ``text`` as one word of a unit file."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'
