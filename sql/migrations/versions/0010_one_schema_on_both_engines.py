"""The same columns and indexes on both engines, without triggers; the length of a lease, and when leases were looked at."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

ORDER = "priority DESC, estimate_s DESC, id"
READY = "state = 'ready' AND paused = 0"  # as SQLAlchemy writes it for SQLite
NOW = {
    "sqlite": "((julianday('now') - 2440587.5) * 86400.0)",
    "postgresql": "date_part('epoch', clock_timestamp())",
}


def upgrade() -> None:
    """From 0009. PostgreSQL keeps its indexes."""
    dialect = op.get_bind().dialect.name
    if dialect == "sqlite":
        for trigger in ("kt_list_added", "kt_list_changed", "kt_free_dependents"):
            op.execute(f"DROP TRIGGER {trigger}")
        for index in ("jobs_queue", "jobs_ready_kind", "jobs_ready_teacher", "jobs_ready_student"):
            op.execute(f"DROP INDEX {index}")
        op.execute("ALTER TABLE jobs DROP COLUMN listed")
    else:
        op.execute("DROP TRIGGER kt_free_dependents ON jobs")
        op.execute("DROP FUNCTION kt_free_dependents")
    op.execute("ALTER TABLE jobs DROP COLUMN needed")
    op.add_column("jobs", sa.Column("lease_s", sa.Double))
    if dialect == "sqlite":
        op.execute(f"CREATE INDEX jobs_ready ON jobs ({ORDER}) WHERE {READY}")
        for column in ("kind", "teacher", "student"):
            op.execute(f"CREATE INDEX jobs_ready_{column} ON jobs ({column}, {ORDER}) WHERE {READY}")
        op.execute("CREATE INDEX jobs_running ON jobs (worker) WHERE state = 'running'")
    op.create_table(
        "lease_checks",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("checked_at", sa.Double, nullable=False),
    )
    op.execute(f"INSERT INTO lease_checks (id, checked_at) VALUES (1, {NOW[dialect]})")
