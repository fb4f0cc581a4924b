"""fedge computes and decides: codecs, algorithms, aggregation, and the two state machines.

No sockets, no clocks, no disks, no event loop: those belong to ``server_app`` and ``device_app``. Start reading at
``fedge.protocol`` (who says what when), ``fedge.codecs`` (how a segment becomes bytes) and ``fedge.algorithms``
(what is added to a gradient and what the server does with the sums).
"""

__version__ = "0.1.0"
