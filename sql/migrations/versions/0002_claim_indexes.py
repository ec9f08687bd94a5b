"""What claiming and finishing need at a million jobs: partial indexes, the claim's ticket, and a function that finishes."""

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

# One call, so that finishing is one round trip; several statements, so that the second sees the needs of a plan that
# committed while the first waited for the job's row.
FINISH = """
CREATE FUNCTION kt_finish(job_ids bigint[], fences integer[]) RETURNS SETOF bigint LANGUAGE plpgsql AS $$
DECLARE
    moment constant double precision := extract(epoch FROM clock_timestamp());
    ended bigint[];
    dependents bigint[];
BEGIN
    WITH given AS (SELECT * FROM unnest(job_ids, fences) AS g(id, fence)),
    held AS MATERIALIZED (
        SELECT j.id FROM jobs j JOIN given g ON g.id = j.id
        WHERE j.fence = g.fence AND j.state = 'running' ORDER BY j.id FOR NO KEY UPDATE OF j
    ),
    done AS (
        UPDATE jobs j SET state = 'done', attempts = j.attempts + 1, lease_until = NULL, changed_at = moment
        FROM held WHERE j.id = held.id RETURNING j.id, j.attempt_id
    ),
    closed AS (
        UPDATE attempts a SET outcome = 'done', ended_at = moment FROM done WHERE a.id = done.attempt_id
    )
    SELECT array_agg(id) INTO ended FROM done;
    SELECT array_agg(DISTINCT job_id) INTO dependents FROM job_needs WHERE needs_id = ANY(ended);
    IF dependents IS NOT NULL THEN
        PERFORM 1 FROM jobs WHERE id = ANY(dependents) ORDER BY id FOR NO KEY UPDATE;
        UPDATE jobs j SET needs_open = j.needs_open - n.count, changed_at = moment,
            state = CASE WHEN j.state = 'blocked' AND j.needs_open = n.count THEN 'ready' ELSE j.state END
        FROM (SELECT job_id, count(*) FROM job_needs WHERE needs_id = ANY(ended) GROUP BY job_id) n
        WHERE j.id = n.job_id;
    END IF;
    RETURN QUERY SELECT unnest(ended);
END
$$
"""


def upgrade() -> None:
    """From 0001."""
    op.add_column("studies", sa.Column("cancelled", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("jobs", sa.Column("ticket", sa.BigInteger))
    for leading in ("", "kind", "teacher", "student"):
        name = f"jobs_ready_{leading}".rstrip("_")
        op.create_index(name, "jobs", [*leading.split(), *ORDER], sqlite_where=READY, postgresql_where=READY)
    op.create_index("jobs_running", "jobs", ["worker"], sqlite_where=RUNNING, postgresql_where=RUNNING)
    op.drop_index("ix_attempts_error_group", "attempts")
    op.create_index("attempts_error_group", "attempts", ["error_group"], sqlite_where=GROUPED, postgresql_where=GROUPED)
    if op.get_bind().dialect.name == "postgresql":
        op.execute(FINISH)
