"""The devices' download states on disk, one file each, and not more of them than fit.

    runs/<run>/down/<device>.state    rand-mcm: its ledger (``fedge.downlink.ledger``)
    runs/<run>/down/.common.state     mcm: the memory of all (``fedge.downlink.common``)

    file: a parcel (``schemas.pipe``) | u32 CRC-32 of it       the vectors of the parcel are float32, little-endian

A file is replaced as a whole, so that there is no order in which a crash could leave its parts. The least recently used
are deleted where all together would take more than the cap; those devices get the whole model next time. So do devices
whose file is missing or damaged: nothing here is needed, it only saves bytes. Methods wait for the disk.
"""

from __future__ import annotations

import logging
import zlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

import msgpack
import numpy as np

from fedge.downlink.common import Common
from fedge.downlink.ledger import Ledger
from fedge.downlink.message import State, StateId
from schemas.errors import PackingError
from schemas.ids import DeviceId
from schemas.pipe import pack_parcel, read_parcel
from server_app.blobs import write_durably

log = logging.getLogger(__name__)

SUFFIX = ".state"
COMMON = ".common"  # no device's name begins with a dot
_CRC_BYTES = 4
_STATES = {"state", "previous"}


class StateFiles:
    """The files of one run in ``folder``, of ``max_bytes`` in all as long as that is room for one."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self.evicted = 0
        self.num_bytes = 0
        """How many bytes the states take."""
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._lock = Lock()

    def open(self) -> None:
        """Make the folder, and see what is in it already."""
        self.folder.mkdir(parents=True, exist_ok=True)
        found = [(path, path.stat()) for path in self.folder.iterdir()]
        for path, facts in sorted(found, key=lambda entry: entry[1].st_mtime_ns):
            if path.suffix == SUFFIX:
                self._note(path.name.removesuffix(SUFFIX), facts.st_size)
            else:
                path.unlink(missing_ok=True)

    @property
    def count(self) -> int:
        """How many states there are."""
        return len(self._sizes)

    def ledger(self, device: DeviceId, size: int) -> Ledger:
        """Return the ledger of ``device`` over ``[size]``; a new one where there is none that can be read."""
        found = self._read(device, size)
        if found is None:
            return Ledger()
        head, states, messages = found
        return Ledger(states.get("state"), tuple(messages), int(head.get("resyncs", 0)))

    def write_ledger(self, device: DeviceId, ledger: Ledger) -> None:
        """Keep ``ledger``."""
        states = {} if ledger.state is None else {"state": ledger.state}
        self._write(device, {"resyncs": ledger.resyncs}, states, ledger.pending)

    def newest_message(self, device: DeviceId, length: int) -> BinaryIO:
        """Return the file of ``device`` at its last message, which is ``length`` bytes long and ends before the CRC.

        What was opened stays readable, whatever becomes of the file.
        """
        file = self._path(device).open("rb")
        file.seek(-length - _CRC_BYTES, 2)
        return file

    def common(self, size: int) -> Common | None:
        """Return the memory of all; None where there is none that can be read."""
        found = self._read(COMMON, size)
        if found is None or set(found[1]) != _STATES:
            return None
        return Common(found[1]["state"], found[1]["previous"], tuple(found[2]))

    def write_common(self, common: Common) -> None:
        """Keep ``common``."""
        self._write(COMMON, {}, {"state": common.state, "previous": common.previous}, common.log)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}{SUFFIX}"

    def _read(self, name: str, size: int) -> tuple[dict[str, Any], dict[str, State], list[bytes]] | None:
        try:
            data = self._path(name).read_bytes()
        except FileNotFoundError:
            return None
        body = memoryview(data)[:-_CRC_BYTES]
        try:
            if zlib.crc32(body) != int.from_bytes(data[-_CRC_BYTES:], "little"):
                raise PackingError("another checksum than its own")
            parcel = read_parcel(BytesIO(body).read)
            if parcel is None:
                raise PackingError("nothing in it")
            head, parts = parcel
            names = head["states"]
            vectors = [np.frombuffer(part, "<f4") for part in parts[: len(names)]]
            if any(vector.size != size for vector in vectors):
                raise PackingError(f"vectors that are not of {size} coordinates")
        except (PackingError, KeyError, ValueError, TypeError, msgpack.UnpackException) as error:
            log.error("download state not readable", extra={"device": name, "reason": str(error)})
            return None
        states = zip(names.items(), vectors, strict=True)
        return head, {role: State(StateId(id), vector) for (role, id), vector in states}, parts[len(names) :]

    def _write(
        self, name: str, head: Mapping[str, Any], states: Mapping[str, State], messages: Sequence[bytes]
    ) -> None:
        parts = [np.ascontiguousarray(state.vector, "<f4").data.cast("B") for state in states.values()]
        names = {role: state.id for role, state in states.items()}
        pieces = pack_parcel({**head, "states": names}, [*parts, *messages])
        checksum = 0
        for piece in pieces:
            checksum = zlib.crc32(piece, checksum)
        pieces.append(checksum.to_bytes(_CRC_BYTES, "little"))
        write_durably(self._path(name), *pieces)
        with self._lock:
            self._note(name, sum(memoryview(piece).nbytes for piece in pieces))
            while self.num_bytes > self.max_bytes and len(self._sizes) > 1:
                self._evict()

    def _note(self, name: str, size: int) -> None:
        self.num_bytes += size - self._sizes.pop(name, 0)
        self._sizes[name] = size  # the last one is the one used last

    def _evict(self) -> None:
        name, size = self._sizes.popitem(last=False)
        self._path(name).unlink(missing_ok=True)
        self.evicted, self.num_bytes = self.evicted + 1, self.num_bytes - size
