"""On SQLite the jobs that run and those that can be claimed lie in one index: a claim writes a page less."""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

ORDER = "priority DESC, estimate_s DESC, id"


def upgrade() -> None:
    """From 0007. PostgreSQL keeps its two indexes."""
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP INDEX jobs_ready")
        op.execute("DROP INDEX jobs_running")
        op.execute(
            f"CREATE INDEX jobs_queue ON jobs ((state = 'ready'), {ORDER}) "
            "WHERE (state = 'running' OR state = 'ready' AND NOT paused)"
        )


def downgrade() -> None:
    """To 0007."""
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP INDEX jobs_queue")
        op.execute(f"CREATE INDEX jobs_ready ON jobs ({ORDER}) WHERE state = 'ready' AND NOT paused")
        op.execute("CREATE INDEX jobs_running ON jobs (worker) WHERE state = 'running'")
