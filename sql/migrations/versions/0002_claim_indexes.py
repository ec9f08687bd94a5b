"""What claiming and finishing need at a million jobs: partial indexes, the attempt in its job's row, a trigger."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

READY = sa.text("state = 'ready' AND NOT paused")
RUNNING = sa.text("state = 'running'")
GROUPED = sa.text("error_group IS NOT NULL")
ORDER = (sa.text("priority DESC"), sa.text("estimate_s DESC"), "id")

# Ending a job that others need makes them ready. A trigger, because each of its statements sees what was committed until
# then: also the needs of a plan that held this job's row while the job was being ended.
FREE = """
CREATE FUNCTION kt_free_dependents() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM jobs WHERE id IN (SELECT job_id FROM job_needs WHERE needs_id = NEW.id) ORDER BY id FOR NO KEY UPDATE;
    UPDATE jobs SET needs_open = needs_open - 1, changed_at = NEW.changed_at,
        state = CASE WHEN state = 'blocked' AND needs_open = 1 THEN 'ready' ELSE state END
    WHERE id IN (SELECT job_id FROM job_needs WHERE needs_id = NEW.id);
    RETURN NULL;
END
$$
"""
FREE_WHEN_DONE = """
CREATE TRIGGER kt_free_dependents AFTER UPDATE OF state ON jobs FOR EACH ROW
WHEN (NEW.needed AND NEW.state = 'done' AND OLD.state <> 'done') EXECUTE FUNCTION kt_free_dependents()
"""


def upgrade() -> None:
    """From 0001."""
    op.add_column("studies", sa.Column("cancelled", sa.Boolean, nullable=False, server_default=sa.false()))
    for column in (
        sa.Column("ticket", sa.BigInteger),
        sa.Column("started_at", sa.Double),
        sa.Column("progress", sa.Text),
        sa.Column("needed", sa.Boolean, nullable=False, server_default=sa.false()),
    ):
        op.add_column("jobs", column)
    op.execute("UPDATE jobs SET needed = true WHERE id IN (SELECT needs_id FROM job_needs)")
    op.execute("UPDATE jobs SET started_at = changed_at WHERE state = 'running'")
    for leading in ("", "kind", "teacher", "student"):
        name = f"jobs_ready_{leading}".rstrip("_")
        op.create_index(name, "jobs", [*leading.split(), *ORDER], sqlite_where=READY, postgresql_where=READY)
    op.create_index("jobs_running", "jobs", ["worker"], sqlite_where=RUNNING, postgresql_where=RUNNING)
    op.drop_index("ix_attempts_error_group", "attempts")
    op.create_index("attempts_error_group", "attempts", ["error_group"], sqlite_where=GROUPED, postgresql_where=GROUPED)
    if op.get_bind().dialect.name == "postgresql":
        op.execute(FREE)
        op.execute(FREE_WHEN_DONE)
