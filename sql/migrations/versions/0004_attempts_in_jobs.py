"""An attempt that runs, or that brought the result, is its job's row: claiming and finishing write one row each."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

Identity = sa.BigInteger().with_variant(sa.Integer, "sqlite")
TOLD = "worker, started_at, ended_at, outcome, progress, error, message, traceback, error_group"
GROUPED = sa.text("error_group IS NOT NULL")

# The job's row must say what the row of its last attempt said, to the tick of the clock.
TAKE_OVER = """
UPDATE jobs SET worker = a.worker, started_at = a.started_at, changed_at = a.ended_at, progress = a.progress
FROM attempts a WHERE a.job_id = jobs.id AND a.fence = jobs.fence AND a.outcome = 'done' AND jobs.state = 'done'
"""
KEEP = f"""
INSERT INTO past_attempts (job_id, fence, {TOLD}) SELECT job_id, fence, {TOLD} FROM attempts a
WHERE NOT EXISTS (SELECT 1 FROM jobs j WHERE j.id = a.job_id AND j.fence = a.fence AND j.state = 'done')
"""
# 1048576 = 2 ** 20: more claims than any job sees, so that a number never moves from one attempt to another.
VIEW = f"""
CREATE VIEW attempts AS
SELECT job_id * 1048576 + fence AS id, job_id, fence, {TOLD} FROM past_attempts
UNION ALL
SELECT id * 1048576 + fence, id, fence, worker, started_at, CASE WHEN state = 'done' THEN changed_at END,
    CASE WHEN state = 'done' THEN 'done' END, progress, NULL, NULL, NULL, NULL
FROM jobs WHERE state IN ('running', 'done')
"""
# "OF attempts": finishing counts the attempt; claiming does not, and so does not ask for the trigger. What WHEN says is
# parsed anew by each statement that asks, so it is short, and the function looks at the states.
FREE = """
CREATE OR REPLACE FUNCTION kt_free_dependents() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.state <> 'done' OR OLD.state = 'done' THEN
        RETURN NULL;
    END IF;
    PERFORM 1 FROM jobs WHERE id IN (SELECT job_id FROM job_needs WHERE needs_id = NEW.id) ORDER BY id FOR NO KEY UPDATE;
    UPDATE jobs SET needs_open = needs_open - 1, changed_at = NEW.changed_at,
        state = CASE WHEN state = 'blocked' AND needs_open = 1 THEN 'ready' ELSE state END
    WHERE id IN (SELECT job_id FROM job_needs WHERE needs_id = NEW.id);
    RETURN NULL;
END
$$
"""
FREE_WHEN_DONE = """
CREATE TRIGGER kt_free_dependents AFTER UPDATE OF attempts ON jobs FOR EACH ROW
WHEN (NEW.needed) EXECUTE FUNCTION kt_free_dependents()
"""


def upgrade() -> None:
    """From 0003."""
    _create_past_attempts()
    op.execute(TAKE_OVER)
    op.execute(KEEP)
    op.drop_table("attempts")
    op.create_index(
        "attempts_error_group", "past_attempts", ["error_group"], sqlite_where=GROUPED, postgresql_where=GROUPED
    )
    op.execute(VIEW)
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP TRIGGER kt_free_dependents ON jobs")
        op.execute(FREE)
        op.execute(FREE_WHEN_DONE)


def _create_past_attempts() -> None:
    op.create_table(
        "past_attempts",
        sa.Column("job_id", Identity, primary_key=True, autoincrement=False),
        sa.Column("fence", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("worker", sa.Text, nullable=False),
        sa.Column("started_at", sa.Double, nullable=False),
        sa.Column("ended_at", sa.Double, nullable=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("progress", sa.Text),
        sa.Column("error", sa.Text),
        sa.Column("message", sa.Text),
        sa.Column("traceback", sa.Text),
        sa.Column("error_group", sa.Text),
    )
