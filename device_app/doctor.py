"""What ``fedge-device doctor`` checks: everything a round needs, each with what was found."""

from __future__ import annotations

import asyncio
import platform
import shutil
import ssl
import sys
import time
from dataclasses import asdict, dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from aiohttp import ClientError, ClientSession

from device_app.errors import DeviceError, HomeError
from device_app.home import Home
from device_app.trainer import Trainer
from device_app.transport import said
from fedge import codecs
from schemas.config import DeviceConfig

LEAST_FREE_BYTES = 64 << 20
MOST_CLOCK_SECONDS = 120.0
SERVER_SECONDS = 10.0
HEALTHY = 200


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; a warning is about something that works, though not as it should."""

    what: str
    is_good: bool
    detail: str
    is_warning: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the finding as a dict of JSON values."""
        return asdict(self)


async def examine(home: Home) -> list[Finding]:
    """Return what was found, in the order of looking; a thing that is wrong is a finding and no error."""
    findings = [python(), native(), await asyncio.to_thread(disk, home)]
    try:
        config = home.config()
        home.credential()
        home.expect_enrolled()
    except HomeError as error:
        return [*findings, Finding("enrolment", False, str(error))]
    findings.append(Finding("enrolment", True, f"{config.name} of {config.server}"))
    return [*findings, *await server(config), *await tasks(config)]


def python() -> Finding:
    """Look at the interpreter."""
    return Finding("python", sys.version_info >= (3, 11), f"{platform.python_version()} on {platform.machine()}")


def native() -> Finding:
    """Look for the C extension: without it all works, slower."""
    return Finding("codecs", True, codecs.native_status(), is_warning=not codecs.native_available())


def disk(home: Home) -> Finding:
    """Write, sync and delete a file where the spool lies."""
    probe = home.spool_path / "doctor"
    try:
        home.spool_path.mkdir(mode=0o700, parents=True, exist_ok=True)
        started = time.monotonic()
        home.disk.write(probe, [bytes(4096)])
        home.disk.delete(probe)
        free = shutil.disk_usage(home.spool_path).free
    except (DeviceError, OSError) as error:
        return Finding("disk", False, str(error))
    detail = f"a synced write takes {1e3 * (time.monotonic() - started):.1f} ms, {free / 2**20:.0f} MiB are free"
    return Finding("disk", free >= LEAST_FREE_BYTES, detail)


async def server(config: DeviceConfig) -> list[Finding]:
    """Reach the aggregator, and compare its clock with ours where it tells the time."""
    context = ssl.create_default_context(cafile=config.tls_ca) if config.tls_ca else True
    try:
        async with (
            asyncio.timeout(SERVER_SECONDS),
            ClientSession() as session,
            session.get(f"{config.server}/healthz", ssl=context) as response,
        ):
            at, status = response.headers.get("Date", ""), response.status
    except (ClientError, OSError, TimeoutError) as error:
        return [Finding("aggregator", False, f"{config.server}: {said(error)}")]
    found = Finding("aggregator", status == HEALTHY, f"{config.server} answered {status}")
    try:
        ahead = time.time() - parsedate_to_datetime(at).timestamp()
    except ValueError:
        return [found]
    return [found, Finding("clock", abs(ahead) < MOST_CLOCK_SECONDS, f"{ahead:+.0f} s from the aggregator's")]


async def tasks(config: DeviceConfig) -> list[Finding]:
    """Load each task and its data in a trainer process."""
    findings = []
    async with Trainer(config.threads) as trainer:
        for task in config.tasks:
            try:
                found = await trainer.describe(task.task, task.data)
                detail = f"{found.num_examples} examples, {found.layout.size} coordinates"
                findings.append(Finding(f"task {task.task}", True, detail))
            except DeviceError as error:
                findings.append(Finding(f"task {task.task}", False, str(error)))
    return findings
