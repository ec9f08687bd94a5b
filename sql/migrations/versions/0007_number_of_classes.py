"""Rows about pairs say how many classes their data set has, and an evaluation how many parameters its model has."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

COLUMNS = (
    ("complementarity", "n_classes", sa.BigInteger),
    ("all_pairs", "n_classes", sa.BigInteger),
    ("evaluations", "params", sa.Double),
)


def upgrade() -> None:
    for table, name, kind in COLUMNS:
        op.add_column(table, sa.Column(name, kind()))
    datasets = sa.table("datasets", sa.column("key"), sa.column("record"))
    pairs = sa.table("complementarity", sa.column("dataset_key"), sa.column("n_classes"))
    for key, record in op.get_bind().execute(sa.select(datasets.c.key, datasets.c.record)).all():
        op.execute(sa.update(pairs).where(pairs.c.dataset_key == key).values(n_classes=json.loads(record)["n_classes"]))


def downgrade() -> None:
    for table, name, _ in reversed(COLUMNS):
        op.drop_column(table, name)
