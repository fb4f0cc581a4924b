"""``python -m device_app``: the same as ``fedge-device``."""

from device_app.cli import main

main(prog_name="fedge-device")
