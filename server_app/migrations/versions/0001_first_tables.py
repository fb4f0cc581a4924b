"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "tokens",
        sa.Column("hash", sa.String(64), primary_key=True),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("note", sa.String(200), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
    )
    op.create_table(
        "devices",
        sa.Column("device", sa.String(63), primary_key=True),
        sa.Column("credential", sa.String(64), nullable=False),
        sa.Column("profile", sa.JSON, nullable=False),
        sa.Column("enrolled_at", sa.Float, nullable=False),
        sa.Column("last_seen_at", sa.Float),
        sa.Column("traffic_up", sa.BigInteger, nullable=False),
        sa.Column("traffic_down", sa.BigInteger, nullable=False),
        sa.Column("updates_applied", sa.Integer, nullable=False),
        sa.Column("rejected", sa.Integer, nullable=False),
        sa.Column("last_error", sa.String(500), nullable=False),
        sa.UniqueConstraint("credential", name="uq_devices_credential"),
    )
    op.create_table(
        "runs",
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("run", sa.String(63), nullable=False),
        sa.Column("plan", sa.JSON, nullable=False),
        sa.Column("phase", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(500), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("ended_at", sa.Float),
        sa.Column("layout", sa.JSON),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("state_round", sa.Integer, nullable=False),
        sa.Column("rounds_closed", sa.Integer, nullable=False),
        sa.Column("rounds_abandoned", sa.Integer, nullable=False),
        sa.Column("abandoned_in_row", sa.Integer, nullable=False),
        sa.Column("dual_epoch", sa.Integer, nullable=False),
        sa.Column("mean_examples", sa.Float, nullable=False),
        sa.Column("metrics", sa.JSON, nullable=False),
        sa.Column("totals", sa.JSON, nullable=False),
        sa.UniqueConstraint("run", name="uq_runs_run"),
    )
    op.create_table(
        "rounds",
        sa.Column("run", sa.String(63), primary_key=True),
        sa.Column("round", sa.Integer, primary_key=True),
        sa.Column("status", sa.JSON, nullable=False),
    )
    op.create_table(
        "members",
        sa.Column("run", sa.String(63), primary_key=True),
        sa.Column("device", sa.String(63), primary_key=True),
        sa.Column("num_examples", sa.BigInteger, nullable=False),
        sa.Column("relative_size", sa.Float, nullable=False),
        sa.Column("dual_epoch", sa.Integer, nullable=False),
        sa.Column("last_applied", sa.Integer, nullable=False),
    )
    op.create_table(
        "participations",
        sa.Column("run", sa.String(63), primary_key=True),
        sa.Column("round", sa.Integer, primary_key=True),
        sa.Column("device", sa.String(63), primary_key=True),
        sa.Column("assignment", sa.LargeBinary, nullable=False),
        sa.Column("update", sa.String(64)),
        sa.Column("outcome", sa.String(16)),
        sa.Column("applied", sa.JSON),
    )
    op.create_index("ix_participations_device", "participations", ["device", "run"])


def downgrade() -> None:
    for table in ("participations", "members", "rounds", "runs", "devices", "tokens"):
        op.drop_table(table)
