"""What runs on a device: agent, trainer process, spool, transport, command line."""
