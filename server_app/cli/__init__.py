"""The two programs of the aggregator's side: ``fedge`` for people, ``fedge-server`` for the daemon.

Commands parse and print; what they print is decided in ``server_app.client``, ``server_app.demo``,
``server_app.report`` and ``server_app.run_report``. Exit codes are in ``exits``, and documented in
``docs/exit-codes.md``.
"""

from server_app.cli.aggregator import server
from server_app.cli.federation import main

__all__ = ["main", "server"]
