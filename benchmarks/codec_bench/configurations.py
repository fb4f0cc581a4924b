"""Which codecs ``fedge bench codecs`` measures. A line in :data:`CONFIGURATIONS` brings another into every table and
plot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from fedge import update
from fedge.codecs import Codec, Eden
from fedge.layout import Layout, Vector
from fedge.update import Stream


@dataclass(frozen=True)
class Configuration:
    """One codec with all its settings but the rate.

    ``codec`` makes the codec of one vector at a rate, which is what is timed; ``options`` are what ``encode_update``
    takes besides name and rate for the same coding, so that whatever segments share with one another counts.
    """

    label: str
    codec: Callable[[float], Codec]
    name: str = "eden"
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def frames(self, layout: Layout, delta: Vector, stream: Stream, bits: float) -> list[bytes]:
        """Encode a whole update, float32 ``[d]``; one frame for each segment."""
        return update.encode_update(layout, delta, stream, self.name, bits, **self.options)


CONFIGURATIONS: tuple[Configuration, ...] = (
    Configuration("eden", Eden),
    Configuration("eden, entropy", Eden.entropy_coded, name="eden-entropy"),
)
