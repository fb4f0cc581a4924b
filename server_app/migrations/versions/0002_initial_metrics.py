"""What the initial model was worth, and the bytes up when the run's metrics were taken; null in runs of before."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("runs", sa.Column("initial_metrics", sa.JSON))
    op.add_column("runs", sa.Column("tested_bytes_up", sa.BigInteger))


def downgrade() -> None:
    with op.batch_alter_table("runs") as runs:
        runs.drop_column("tested_bytes_up")
        runs.drop_column("initial_metrics")
