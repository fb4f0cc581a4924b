"""The two state machines, sans-IO: ``coordinator`` and ``participant``, and what passes between them."""
