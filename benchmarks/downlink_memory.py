"""Memory and disk of an aggregator whose devices all download at once, over HTTP on the loopback interface.

    python -m benchmarks.downlink_memory [--devices 1000] [--size 1000000] [--rounds 3] [--cap-mib 1024]

The aggregator is a process of its own. Every device asks for the model and then reads nothing until the last has been
answered, as a cohort on dead slow links would have it; then all read on, name the state that they got, and send an
update at 1 bit. A line a round: seconds, the most memory that the process ever had and what it has now, the download
states on disk beside the cap, how many were deleted for want of room, and bytes sent. Devices here keep names of states
and no vectors; nothing else is spared. Exits with 1 if the states ever took more disk than the cap, or if the process
took more memory than the cap and a small aggregator together.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fedge.downlink.message import next_of, origin
from fedge.layout import Kind, Layout, TensorSpec
from fedge.seeds import uniform
from fedge.update import encode_update, uplink
from schemas.base import parse
from schemas.config import ServerConfig
from schemas.messages import Assignment
from schemas.status import Role, ServerStatus
from server_app.service import Service, init_state
from tests.support.http import TASK, Device, ReadyWorker

MIB = 1 << 20


def layout_of(size: int) -> Layout:
    """Return one matrix of about ``size`` weights."""
    return Layout.of([TensorSpec("w", (round(size**0.5), round(size**0.5)), Kind.WEIGHT)])


@dataclass
class Phone(Device):
    """A device that keeps the name of its state and not the vector."""

    said: str = ""
    bytes_down: int = field(default=0)

    async def fetch(self, asked: Assignment, begun: asyncio.Barrier) -> None:
        """Download, and read nothing until all have begun."""
        path = f"{self.url}/v1/runs/{asked.run}/download?round={asked.round}"
        headers = {"Authorization": f"Bearer {self.credential}"}
        query = f"&state={self.said}" if asked.downlink.has_memory else ""
        async with self.session.get(path + query, headers=headers) as answer:
            answer.raise_for_status()
            await begun.wait()
            head, size = await answer.content.read(64), 64
            async for chunk in answer.content.iter_any():
                size += len(chunk)
        self.bytes_down += size
        self.said = next_of(head) if asked.downlink.has_memory else ""


async def serve(state_dir: str, size: int, cap: int) -> None:
    """Be the aggregator: print the port, serve until SIGTERM."""
    config = ServerConfig(
        port=0, state_dir=state_dir, tasks=(TASK,), max_download_state_bytes=cap, offline_seconds=3600.0
    )
    async with Service(config, ReadyWorker(layout_of(size)).running) as service:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, service.stop)
        sys.stdout.write(f"{service.port}\n")
        sys.stdout.flush()
        await service.wait_closed()


def memory_of(process: int) -> tuple[int, int]:
    """Return the most and the present resident memory of a process, bytes."""
    text = Path(f"/proc/{process}/status").read_text()
    found = {name: int(kib) << 10 for name, kib in re.findall(r"^(VmHWM|VmRSS):\s+(\d+) kB", text, re.MULTILINE)}
    return found["VmHWM"], found["VmRSS"]


async def measure(options: argparse.Namespace, folder: Path) -> bool:
    """Run the federation; return whether all stayed below the cap."""
    config, cap = ServerConfig(state_dir=str(folder), tasks=(TASK,)), options.cap_mib * MIB
    tokens = await init_state(config)
    command = (sys.executable, "-m", "benchmarks.downlink_memory", "--serve", str(folder))
    sizes = ("--size", str(options.size), "--cap-mib", str(options.cap_mib))
    child = await asyncio.create_subprocess_exec(*command, *sizes, stdout=asyncio.subprocess.PIPE)
    try:
        assert child.stdout is not None
        url = f"http://127.0.0.1:{int(await child.stdout.readline())}"
        layout = layout_of(options.size)
        phones = [Phone(url, f"d{i:04d}", tokens[Role.ENROLL], layout=layout) for i in range(options.devices)]
        for phone in phones:
            await phone.enroll()
            phone.said = origin(layout).id
        try:
            return await _rounds(options, phones, tokens[Role.OPERATOR], child.pid, cap)
        finally:
            for phone in phones:
                await phone.close()
    finally:
        child.terminate()
        await child.wait()


async def _rounds(options: argparse.Namespace, phones: Sequence[Phone], token: str, server: int, cap: int) -> bool:
    everyone = len(phones)
    document = {
        "task": TASK,
        "rounds": options.rounds,
        "cohort": {
            "devices": everyone,
            "updates": {"min": everyone, "max": everyone},
            "seconds": {"min": 0, "max": 36000},
        },
        "uplink": {"coding": "fixed"},
        "downlink": {"mode": options.mode, "bits": options.bits},
    }
    async with phones[0].session.post(
        f"{phones[0].url}/v1/runs", json=document, headers={"Authorization": f"Bearer {token}"}
    ) as answer:
        assert answer.status == 201, await answer.text()
    small = memory_of(server)[0]
    print(f"{everyone} devices, {options.size:,} coordinates, cap {options.cap_mib} MiB; before: {small / MIB:.0f} MiB")
    delta = ((uniform(7, phones[0].layout.size) - 0.5) * 0.01).astype(np.float32)
    asked: list[Assignment | None] = [None] * everyone
    is_below = True
    for number in range(1, options.rounds + 1):
        begin, sent = time.perf_counter(), sum(phone.bytes_down for phone in phones)
        offers = await asyncio.gather(*(p.assignment(one) for p, one in zip(phones, asked, strict=True)))
        begun = asyncio.Barrier(everyone)
        await asyncio.gather(*(p.fetch(offer, begun) for p, offer in zip(phones, offers, strict=True)))
        spec = offers[0].uplink
        # The same bytes from each: what they decode to does not matter here.
        frames = encode_update(phones[0].layout, delta, uplink(0, number, ""), spec.codec_name, spec.bits)
        kept = await _status(phones[0], token)
        await asyncio.gather(
            *(p.upload(offer, frames, p.header(frames)) for p, offer in zip(phones, offers, strict=True))
        )
        peak, now = memory_of(server)
        states = kept.download_states
        assert states is not None
        down = (sum(phone.bytes_down for phone in phones) - sent) / MIB
        seconds = time.perf_counter() - begin
        print(
            f"round {number}: {seconds:6.1f} s, memory {now / MIB:5.0f} MiB, at most {peak / MIB:5.0f}; "
            f"{states.count} states, {states.bytes / MIB:7.1f} MiB, {states.evicted} deleted, "
            f"{states.resyncs} resyncs; sent {down:.1f} MiB",
            flush=True,
        )
        is_below = is_below and states.bytes <= cap and peak <= cap + 2 * small
        asked = list(offers)
    return is_below


async def _status(phone: Phone, token: str) -> ServerStatus:
    headers = {"Authorization": f"Bearer {token}"}
    async with phone.session.get(f"{phone.url}/v1/status", headers=headers) as answer:
        return parse(ServerStatus, await answer.json(), "status")


def main() -> None:
    """Parse the command line; exit with 1 above the cap."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--size", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cap-mib", type=int, default=1024)
    parser.add_argument("--mode", default="rand-mcm", choices=["none", "snapshot", "mcm", "rand-mcm"])
    parser.add_argument("--bits", type=float, default=2.0)
    parser.add_argument("--serve", metavar="DIR", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.serve, options.size, options.cap_mib * MIB))
        return
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(0 if asyncio.run(measure(options, Path(folder))) else 1)


if __name__ == "__main__":
    main()
