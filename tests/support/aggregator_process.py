"""An aggregator in a process of its own, to be killed: ``python -m tests.support.aggregator_process STATE_DIR PORT``.

It prints its port once it listens, and runs until it is killed or gets SIGTERM.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from schemas.config import ServerConfig
from server_app.service import Service
from tests.support.http import TASK, ReadyWorker


async def main(state_dir: str, port: str) -> None:
    """Serve."""
    config = ServerConfig(port=int(port), state_dir=state_dir, tasks=(TASK,))
    async with Service(config, ReadyWorker().running) as service:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, service.stop)
        sys.stdout.write(f"{service.port}\n")
        sys.stdout.flush()
        await service.wait_closed()


@asynccontextmanager
async def process(state_dir: Path, port: int = 0) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """Run one; yields it and its port, and kills it in the end."""
    command = (sys.executable, "-m", "tests.support.aggregator_process", str(state_dir), str(port))
    child = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert child.stdout is not None
        yield child, int(await child.stdout.readline())
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
