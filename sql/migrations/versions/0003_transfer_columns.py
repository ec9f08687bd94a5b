"""What a row of `transfers` says beyond the first tables: the rest of its settings, and its stage."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

COLUMNS = {
    "lr_effective": sa.Double,
    "crop_pct": sa.Double,
    "eval_every": sa.BigInteger,
    "keep": sa.Text,
    "stage": sa.BigInteger,
    "delta_stage": sa.Double,
    "micro_batch_used": sa.BigInteger,
    "diverged_batch": sa.BigInteger,
    "threads": sa.BigInteger,
}


def upgrade() -> None:
    for name, kind in COLUMNS.items():
        op.add_column("transfers", sa.Column(name, kind()))


def downgrade() -> None:
    for name in reversed(COLUMNS):
        op.drop_column("transfers", name)
