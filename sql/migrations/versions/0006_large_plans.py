"""Planning a million jobs, and ending one on SQLite, with fewer statements."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

Identity = sa.BigInteger().with_variant(sa.Integer, "sqlite")
LINKS = {"job_needs": ("job_id", "needs_id"), "study_jobs": ("study_id", "job_id")}

# As on PostgreSQL: a job that ends makes those ready for which it was the last, within the statement that ends it.
FREE = """
CREATE TRIGGER kt_free_dependents AFTER UPDATE OF attempts ON jobs
WHEN NEW.needed AND NEW.state = 'done' AND OLD.state <> 'done'
BEGIN
    UPDATE jobs SET needs_open = needs_open - 1, changed_at = NEW.changed_at,
        state = CASE WHEN state = 'blocked' AND needs_open = 1 THEN 'ready' ELSE state END
    WHERE id IN (SELECT job_id FROM job_needs WHERE needs_id = NEW.id);
END
"""


def upgrade() -> None:
    """From 0005.

    The links between jobs no longer refer to them by foreign key. PostgreSQL checked each of four million references of a
    large plan by itself, which took as long as all the rest; planning writes them from a join with the jobs, which are
    never deleted.
    """
    if op.get_bind().dialect.name == "postgresql":
        for table in LINKS:
            for key in sa.inspect(op.get_bind()).get_foreign_keys(table):
                op.drop_constraint(str(key["name"]), table, type_="foreignkey")
    else:
        for table, (left, right) in LINKS.items():
            _remake_without_references(table, left, right)
        op.execute(FREE)


def _remake_without_references(table: str, left: str, right: str) -> None:
    """SQLite cannot drop a constraint."""
    op.drop_index(f"ix_{table}_{right}", table)
    op.rename_table(table, f"{table}_before")
    op.create_table(
        table,
        sa.Column(left, Identity, primary_key=True, autoincrement=False),
        sa.Column(right, Identity, primary_key=True, autoincrement=False, index=True),
    )
    op.execute(f"INSERT INTO {table} SELECT {left}, {right} FROM {table}_before")
    op.drop_table(f"{table}_before")
