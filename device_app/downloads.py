"""The device's end of a download: what it makes of the bytes, and what of it the spool keeps.

    none, snapshot     frames     -> spool                      -> decoded when training begins
    mcm, rand-mcm      messages   -> applied to the state held  -> the state after them -> spool -> ``Held``

The state moves when the participant's own names it (``Downloaded``): until then the one before it is still there, and
the aggregator knows both. A state that the disk lost is nothing worse than a whole model to download.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from device_app.client import Client
from device_app.errors import StateLost, Unreachable
from device_app.spool import Spool
from fedge.downlink import Mode
from fedge.downlink.common import most_bytes, receive_all
from fedge.downlink.mcm import channel_of
from fedge.downlink.message import HEADER_BYTES, State, checksum, origin
from fedge.downlink.snapshot import decode_snapshot, downlink
from fedge.errors import FedgeError, FrameError
from fedge.frames import FrameReader
from fedge.layout import Layout, Vector
from fedge.protocol.participant import Held
from fedge.update import update_bytes
from schemas.messages import Assignment

log = logging.getLogger(__name__)

DOWNLOADS_PER_CHECKSUM = 50


@dataclass(frozen=True, slots=True)
class Downloads:
    """The downloads of one device."""

    client: Client
    spool: Spool

    async def fetch(self, assignment: Assignment, device: str, layout: Layout, held: Held | None) -> Held | None:
        """Download the anchor of ``assignment`` and keep it; return the state that the device has then, if any.

        Raises:
            Unreachable: it does not come, or is none.
        """
        spec, most = assignment.downlink, _most_bytes(assignment, layout)
        own, numbers = None, None
        if spec.has_memory:
            own = await asyncio.to_thread(self._own, assignment, layout, held)
            if held is not None and held.downloads % DOWNLOADS_PER_CHECKSUM == DOWNLOADS_PER_CHECKSUM - 1:
                numbers = await asyncio.to_thread(checksum, own.vector)
        data = await self.client.download(
            assignment.run, assignment.round, most, None if own is None else own.id, numbers
        )
        count = held.downloads if held is not None and held.run == assignment.run else 0
        try:
            return await asyncio.to_thread(self._keep, assignment, device, layout, own, data, count + 1)
        except FedgeError as error:
            raise Unreachable(f"a download that is none: {error}", "bad_download") from error

    async def anchor(self, assignment: Assignment, device: str, layout: Layout, held: Held | None) -> Vector:
        """Return what the device trains from, float32 ``[d]``.

        Raises:
            StateLost: it is not in the spool any more.
        """
        return await asyncio.to_thread(self._anchor, assignment, device, layout, held)

    def _own(self, assignment: Assignment, layout: Layout, held: Held | None) -> State:
        if held is None or held.run != assignment.run:
            return origin(layout)
        try:
            return self.spool.download_state(held, layout.size)
        except StateLost as error:
            log.warning("download state lost, all of the model is fetched", extra={"reason": str(error)})
            return origin(layout)

    def _keep(
        self, assignment: Assignment, device: str, layout: Layout, own: State | None, data: bytes, count: int
    ) -> Held | None:
        spec = assignment.downlink
        if own is None:
            reader = FrameReader()
            frames = list(reader.feed(data))
            stream = downlink(assignment.seed, assignment.round, device)
            if reader.pending_bytes:
                raise FrameError(f"expected whole frames, got {reader.pending_bytes} bytes of one more")
            decode_snapshot(layout, frames, stream, spec.codec_name, spec.bits)  # whether it is one
            self.spool.write_download(assignment, frames)
            return None
        channel = channel_of(layout, assignment.seed, device, Mode(spec.mode), spec.codec_name)
        delivered = receive_all(channel, own, data)
        has_anchor = delivered.anchor is not delivered.state.vector
        held = Held(run=assignment.run, state=delivered.state.id, has_anchor=has_anchor, downloads=count)
        self.spool.write_download_state(held, delivered)
        return held

    def _anchor(self, assignment: Assignment, device: str, layout: Layout, held: Held | None) -> Vector:
        spec = assignment.downlink
        if not spec.has_memory:
            frames, stream = self.spool.read_download(assignment), downlink(assignment.seed, assignment.round, device)
            return decode_snapshot(layout, frames, stream, spec.codec_name, spec.bits)
        if held is None or held.run != assignment.run:
            raise StateLost(f"expected a download state of {assignment.run}, got {held and held.run}")
        return self.spool.anchor(held, layout.size)


def _most_bytes(assignment: Assignment, layout: Layout) -> int:
    """Return the most bytes that a download of ``assignment`` has."""
    spec = assignment.downlink
    if spec.mode == "mcm":
        return most_bytes(layout)
    bits = max(spec.bits, spec.full_bits) if spec.has_memory else spec.bits
    return HEADER_BYTES + update_bytes(layout, spec.codec_name, bits)
