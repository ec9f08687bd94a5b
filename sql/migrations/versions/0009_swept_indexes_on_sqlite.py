"""On SQLite a claim leaves the indexes by kind, teacher and student alone, and finishing every index; sweeps follow."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

ORDER = "priority DESC, estimate_s DESC, id"
AFFINITY = ("kind", "teacher", "student")

# What `listed` has to be (`kt_study.store.sqlite` says why), in terms of a row's other columns. Claiming and finishing leave
# it as it is; these triggers correct it after whatever else makes a job ready, or keeps it from being claimed.
LISTED = """
CASE NEW.state WHEN 'ready' THEN CASE WHEN NOT NEW.paused THEN NEW.fence END
    WHEN 'running' THEN coalesce(NEW.listed, -1) WHEN 'done' THEN NEW.listed END
"""
CORRECT = f"WHEN NEW.listed IS NOT ({LISTED}) BEGIN UPDATE jobs SET listed = {LISTED} WHERE id = NEW.id; END"


def upgrade() -> None:
    """From 0008. PostgreSQL keeps its indexes, which cost a claim next to nothing."""
    if op.get_bind().dialect.name == "sqlite":
        for column in AFFINITY:
            op.execute(f"DROP INDEX jobs_ready_{column}")
        op.execute("DROP INDEX jobs_queue")
        op.add_column("jobs", sa.Column("listed", sa.Integer))
        op.execute("UPDATE jobs SET listed = fence WHERE state = 'ready' AND NOT paused")
        op.execute("UPDATE jobs SET listed = -1 WHERE state = 'running'")
        for column in AFFINITY:
            op.execute(f"CREATE INDEX jobs_ready_{column} ON jobs ({column}, {ORDER}) WHERE listed >= 0")
        op.execute(
            f"CREATE INDEX jobs_queue ON jobs (((listed = fence) + (listed >= 0)), {ORDER}) WHERE listed IS NOT NULL"
        )
        op.execute(f"CREATE TRIGGER kt_list_added AFTER INSERT ON jobs {CORRECT}")
        op.execute(f"CREATE TRIGGER kt_list_changed AFTER UPDATE OF state, paused, fence, listed ON jobs {CORRECT}")


def downgrade() -> None:
    """To 0008."""
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP TRIGGER kt_list_added")
        op.execute("DROP TRIGGER kt_list_changed")
        for column in AFFINITY:
            op.execute(f"DROP INDEX jobs_ready_{column}")
        op.execute("DROP INDEX jobs_queue")
        op.execute("ALTER TABLE jobs DROP COLUMN listed")
        for column in AFFINITY:
            op.execute(
                f"CREATE INDEX jobs_ready_{column} ON jobs ({column}, {ORDER}) WHERE state = 'ready' AND NOT paused"
            )
        op.execute(
            f"CREATE INDEX jobs_queue ON jobs ((state = 'ready'), {ORDER}) "
            "WHERE (state = 'running' OR state = 'ready' AND NOT paused)"
        )
