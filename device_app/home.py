"""A device's home folder: who it is and what it may train. One agent at a time.

device.toml    its configuration (``schemas.config.DeviceConfig``; ``deploy/device.toml`` documents each key)
credential     its secret, made here, readable by its owner alone
device         the id the aggregator gave it; empty from the start of an enrolment to its success
lock           held while an agent runs
spool/         what must survive a power cut (``device_app.spool``)
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from device_app.durable import PLAIN_DISK, Disk
from device_app.errors import HomeError
from schemas.base import parse_toml
from schemas.config import DeviceConfig
from schemas.errors import InvalidInput

CREDENTIAL_BYTES = 32
REMEDY = "run 'fedge-device enroll'"


def default_home() -> Path:
    """Return $FEDGE_DEVICE_HOME, or ``~/.fedge-device``."""
    return Path(os.environ.get("FEDGE_DEVICE_HOME") or Path.home() / ".fedge-device")


@dataclass(frozen=True, slots=True)
class Home:
    """One device's folder."""

    root: Path
    disk: Disk = PLAIN_DISK

    @property
    def config_path(self) -> Path:
        """Where the configuration lies."""
        return self.root / "device.toml"

    @property
    def credential_path(self) -> Path:
        """Where the secret lies."""
        return self.root / "credential"

    @property
    def device_path(self) -> Path:
        """Where the id lies that the aggregator gave this device."""
        return self.root / "device"

    @property
    def spool_path(self) -> Path:
        """Where the spool lies."""
        return self.root / "spool"

    @property
    def device(self) -> str | None:
        """The id the aggregator gave: "" while no enrolment succeeded, None where only the aggregator can tell."""
        try:
            return self.device_path.read_text("ascii").strip()
        except (OSError, UnicodeDecodeError):
            return None

    def write_device(self, device: str) -> None:
        """Keep the id the aggregator gave, durably; "" says that there is none yet."""
        self._make()
        self.disk.write(self.device_path, [device.encode()])

    def expect_enrolled(self) -> None:
        """Return where an enrolment succeeded, or nobody knows.

        Raises:
            HomeError: an enrolment was begun here and none succeeded.
        """
        if self.device == "":
            raise HomeError(f"{self.root} is not enrolled: its enrolment did not succeed; {REMEDY}")

    def config(self) -> DeviceConfig:
        """Return the configuration.

        Raises:
            HomeError: there is none, or it breaks a rule; names every key that is wrong.
        """
        try:
            return parse_toml(DeviceConfig, self.config_path.read_text("utf-8"), str(self.config_path))
        except FileNotFoundError as error:
            raise HomeError(f"expected {self.config_path}, got none; run 'fedge-device enroll' first") from error
        except (OSError, UnicodeDecodeError, InvalidInput) as error:
            raise HomeError(str(error)) from error

    def write_config(self, config: DeviceConfig) -> None:
        """Keep ``config``, durably."""
        self._make()
        self.disk.write(self.config_path, [to_toml(config).encode()])

    def credential(self) -> str:
        """Return the secret.

        Raises:
            HomeError: there is none.
        """
        try:
            return self.credential_path.read_text("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise HomeError(f"expected a credential in {self.credential_path}: {error}") from error

    def make_credential(self) -> str:
        """Return the secret; draw one and make it durable if there is none yet."""
        if not self.credential_path.exists():
            self._make()
            drawn = secrets.token_urlsafe(CREDENTIAL_BYTES)
            self.disk.write(self.credential_path, [drawn.encode()], mode=0o600)
        return self.credential()

    @property
    def is_running(self) -> bool:
        """Whether an agent uses this home right now."""
        try:
            with self.locked():
                return False
        except HomeError:
            return self.root.is_dir()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other agent out of this home, until this process ends or leaves the block.

        Raises:
            HomeError: another agent is in, or the folder cannot be written.
        """
        try:
            descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise HomeError(f"could not use {self.root}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError as error:
            raise HomeError(f"another agent uses {self.root}; one home takes one agent") from error
        finally:
            os.close(descriptor)

    def _make(self) -> None:
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise HomeError(f"could not make {self.root}: {error.strerror}") from error


def to_toml(config: DeviceConfig) -> str:
    """Return ``config`` as the TOML it is read from; keys at their default are left out."""
    document = config.model_dump(mode="json", exclude_defaults=True)
    tasks = document.pop("tasks", [])
    limits = document.pop("limits", {})
    lines = [_line(key, value) for key, value in document.items()]
    for task in tasks:
        lines += ["", "[[tasks]]", *(_line(key, value) for key, value in task.items())]
    for direction, limit in limits.items():
        lines += ["", f"[limits.{direction}]", *(_line(key, value) for key, value in limit.items())]
    return "\n".join(lines) + "\n"


def _line(key: str, value: object) -> str:
    return f"{_key(key)} = {_value(value)}"


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else _text(key)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(_line(key, item) for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, str):
        return _text(value)
    return json.dumps(value) if isinstance(value, bool) else repr(value)


def _text(text: str) -> str:
    """Return ``text`` as a basic string; TOML escapes as JSON does, but for DEL and characters past U+FFFF."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
