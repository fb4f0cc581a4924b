"""A plan's local settings as the torch loops take them."""

from __future__ import annotations

from fedge.algorithms.local import LocalSpec as Steps
from schemas.specs import LocalSpec


def as_steps(local: LocalSpec) -> Steps:
    """Return ``local`` as the torch loops take it: no clipping is None there and 0 in a plan."""
    return Steps(
        epochs=local.epochs,
        batch_size=local.batch_size,
        learning_rate=local.learning_rate,
        weight_decay=local.weight_decay,
        clip_norm=local.clip_norm or None,
        optimizer=local.optimizer,
    )
