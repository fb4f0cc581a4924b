"""The demo's devices: a home folder each, enrolled in one go.

``fedge-device enroll`` does the same for one device, in a process of its own that starts torch; for 36 devices that
would take longer than the demo. What is written here is what it writes: ``device.toml`` and ``credential``. The
requests go the way all of the devices' requests go, so their bytes are counted, too.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import aiohttp

from fedge.tasks.base import load
from schemas.ids import DeviceId
from schemas.messages import Enroll, TaskOffer
from schemas.packing import CONTENT_TYPE, pack
from schemas.specs import Limits, LinkLimit
from server_app.errors import ServerError


class EnrolmentRefused(ServerError):
    """The aggregator would not have a device of the demo."""


@dataclass(frozen=True, slots=True)
class Site:
    """One device of the demo: where it lives, the options of its data, and the most bits it sends."""

    name: str
    home: Path
    options: Mapping[str, object]
    uplink_bits: float | None = None

    @property
    def limits(self) -> Limits:
        """Return what the device tells the aggregator of its link."""
        return Limits(uplink=LinkLimit(bits=self.uplink_bits))


def offers(task_path: str, sites: Sequence[Site]) -> dict[str, TaskOffer]:
    """Return what each device has to offer: how many examples, and the layouts of the model. Imports torch."""
    from fedge.tasks.split_model import SplitTask, halved
    from fedge.tasks.torch_model import layout_of

    task = load(task_path)
    model = task.model(0)
    layout = layout_of(model).digest
    split = halved(task, model).layout.digest if isinstance(task, SplitTask) else None
    counts = {site.name: len(task.train_data(site.options)) for site in sites}
    return {name: TaskOffer(num_examples=n, layout=layout, split_layout=split) for name, n in counts.items()}


async def enroll(
    server: str, token: str, task_path: str, sites: Sequence[Site], offered: Mapping[str, TaskOffer]
) -> None:
    """Write every home and make its device known to the aggregator.

    Raises:
        EnrolmentRefused: the aggregator would not have one of them.
    """
    timeout = aiohttp.ClientTimeout(total=60.0)
    async with aiohttp.ClientSession(server, timeout=timeout) as session:
        for site in sites:
            credential = write_home(site, server, task_path)
            message = Enroll(
                credential=credential,
                name=DeviceId(site.name),
                token=token,
                tasks={task_path: offered[site.name]},
                limits=site.limits,
                version=version("fedge"),
                platform=f"{platform.system()} {platform.machine()} demo",
            )
            headers = {"Authorization": f"Bearer {credential}", "Content-Type": CONTENT_TYPE}
            async with session.post("/v1/enroll", data=pack(message), headers=headers) as response:
                if response.status >= 300:
                    raise EnrolmentRefused(f"{site.name} was refused with {response.status}: {await response.text()}")


def write_home(site: Site, server: str, task_path: str) -> str:
    """Write ``device.toml`` and ``credential`` as ``fedge-device enroll`` does; returns the credential."""
    site.home.mkdir(parents=True, mode=0o700)
    data = ", ".join(f"{key} = {json.dumps(value)}" for key, value in site.options.items())
    lines = [f'server = "{server}"', f'name = "{site.name}"', "", "[[tasks]]", f'task = "{task_path}"']
    lines += [f"data = {{ {data} }}"]
    lines += ["", "[limits.uplink]", f"bits = {site.uplink_bits}"] if site.uplink_bits is not None else []
    (site.home / "device.toml").write_text("\n".join(lines) + "\n", "utf-8")
    credential = secrets.token_urlsafe(32)
    with os.fdopen(os.open(site.home / "credential", os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
        file.write(credential)
    return credential
