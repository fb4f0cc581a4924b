"""``python -m server_app``: the same as ``fedge-server``."""

from server_app.cli import server

server(prog_name="fedge-server")
