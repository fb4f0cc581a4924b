"""The database: who is enrolled, which runs there are, and what became of every update. Vectors are files.

    tokens            what a bearer token allows, by hash
    devices           enrolled devices, by hash of their credential
    runs              one line each, with totals
    rounds            one line each: the ``RoundStatus`` as it stands
    members           a device in a run: its fixed relative size, and its last applied round in a dual epoch
    participations    a device in a round: what it was asked, and the receipt once the round is over, or a later one in
                      which its update might still have come

Every change of more than one table is one transaction (``server_app.store``). ``migrations`` holds the history.
"""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData(naming_convention={"uq": "uq_%(table_name)s_%(column_0_name)s"})

tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("hash", sa.String(64), primary_key=True),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("note", sa.String(200), nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
)

devices = sa.Table(
    "devices",
    metadata,
    sa.Column("device", sa.String(63), primary_key=True),
    sa.Column("credential", sa.String(64), nullable=False, unique=True),
    sa.Column("profile", sa.JSON, nullable=False),
    sa.Column("enrolled_at", sa.Float, nullable=False),
    sa.Column("last_seen_at", sa.Float),
    sa.Column("traffic_up", sa.BigInteger, nullable=False),
    sa.Column("traffic_down", sa.BigInteger, nullable=False),
    sa.Column("updates_applied", sa.Integer, nullable=False),
    sa.Column("rejected", sa.Integer, nullable=False),
    sa.Column("last_error", sa.String(500), nullable=False),
)

runs = sa.Table(
    "runs",
    metadata,
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("run", sa.String(63), nullable=False, unique=True),
    sa.Column("plan", sa.JSON, nullable=False),
    sa.Column("phase", sa.String(16), nullable=False),
    sa.Column("reason", sa.String(500), nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("ended_at", sa.Float),
    sa.Column("layout", sa.JSON(none_as_null=True)),
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("state_round", sa.Integer, nullable=False),
    sa.Column("rounds_closed", sa.Integer, nullable=False),
    sa.Column("rounds_abandoned", sa.Integer, nullable=False),
    sa.Column("abandoned_in_row", sa.Integer, nullable=False),
    sa.Column("dual_epoch", sa.Integer, nullable=False),
    sa.Column("mean_examples", sa.Float, nullable=False),
    sa.Column("metrics", sa.JSON, nullable=False),
    sa.Column("initial_metrics", sa.JSON(none_as_null=True)),
    sa.Column("tested_bytes_up", sa.BigInteger),
    sa.Column("totals", sa.JSON, nullable=False),
)

rounds = sa.Table(
    "rounds",
    metadata,
    sa.Column("run", sa.String(63), primary_key=True),
    sa.Column("round", sa.Integer, primary_key=True),
    sa.Column("status", sa.JSON, nullable=False),
)

members = sa.Table(
    "members",
    metadata,
    sa.Column("run", sa.String(63), primary_key=True),
    sa.Column("device", sa.String(63), primary_key=True),
    sa.Column("num_examples", sa.BigInteger, nullable=False),
    sa.Column("relative_size", sa.Float, nullable=False),
    sa.Column("dual_epoch", sa.Integer, nullable=False),
    sa.Column("last_applied", sa.Integer, nullable=False),
)

participations = sa.Table(
    "participations",
    metadata,
    sa.Column("run", sa.String(63), primary_key=True),
    sa.Column("round", sa.Integer, primary_key=True),
    sa.Column("device", sa.String(63), primary_key=True),
    sa.Column("assignment", sa.LargeBinary, nullable=False),
    sa.Column("update", sa.String(64)),
    sa.Column("outcome", sa.String(16)),
    sa.Column("applied", sa.JSON(none_as_null=True)),
    sa.Index("ix_participations_device", "device", "run"),
)
