"""What is configured: ``deploy/server.toml`` and ``deploy/device.toml`` document each key."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from schemas.base import Model
from schemas.ids import DeviceName, LogLevel, ServerUrl, TaskPath
from schemas.specs import Limits, Trains


class ServerConfig(Model):
    """``fedge-server serve --config server.toml``."""

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535, description="0 takes any free port")
    state_dir: str = Field(default="fedge-server", description="journals, models and the SQLite database")
    database_url: str = Field(default="", description="SQLAlchemy async URL; empty: SQLite in state_dir")
    tasks: tuple[TaskPath, ...] = Field(
        default=("fedge.tasks.wisdm:task",), min_length=1, description="tasks a plan may name"
    )
    offline_seconds: float = Field(default=30.0, gt=0, description="a device not heard of for so long is not invited")
    max_wait_seconds: float = Field(default=55.0, gt=0, le=600, description="longest long poll")
    max_frames_in_flight: int = Field(default=64, ge=1, description="frames decoded but not yet durable")
    max_uploads: int = Field(default=4, ge=1, description="upload bodies read at the same time")
    min_upload_bytes_per_second: float = Field(
        default=64.0, ge=0, description="a slower upload is cut, what it delivered counts"
    )
    max_download_state_bytes: int = Field(
        default=4 << 30,
        ge=0,
        description="on disk, of a run: what devices have of the model; the longest unused are deleted above it",
    )
    split_device: str = Field(default="cpu", description="where back halves are trained: cpu, cuda, cuda:1, ..")
    tls_certificate: str = ""
    tls_key: str = ""
    log_level: LogLevel = "INFO"


class TaskConfig(Model):
    """One task this device may train, and where its data lies (the task says which options it takes)."""

    task: TaskPath
    data: dict[str, Any] = Field(default={})
    trains: Trains = Field(
        default="either", description="front: only the front half, in split runs; whole: the whole model alone"
    )


class DeviceConfig(Model):
    """``fedge-device run``; ``fedge-device enroll`` writes the first one."""

    server: ServerUrl
    name: DeviceName
    tasks: tuple[TaskConfig, ...] = Field(min_length=1)
    limits: Limits = Limits()
    wait_seconds: float = Field(default=50.0, gt=0, le=600, description="long poll asked for")
    threads: int = Field(default=1, ge=1, description="torch threads of the trainer")
    split_transport: Literal["auto", "websocket", "poll"] = Field(
        default="auto", description="of split steps; auto: WebSocket, and long polls where that does not get through"
    )
    keeps_tape: bool = Field(
        default=True,
        description="false: the front half is run twice a step, and keeps a tenth of the memory while it waits",
    )
    tls_ca: str = Field(default="", description="certificate authority of the server, where it is private")
    log_level: LogLevel = "INFO"
