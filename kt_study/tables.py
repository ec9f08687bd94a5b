"""The database's tables, for SQLAlchemy Core and alembic. sql/schema.md has a diagram.

Times are seconds since 1970 as double precision, always read from the database's own clock.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from kt_study.schema import RESULT_TABLES, ResultTable

metadata = sa.MetaData()

Identity = sa.BigInteger().with_variant(sa.Integer, "sqlite")

studies = sa.Table(
    "studies",
    metadata,
    sa.Column("id", Identity, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("spec", sa.Text, nullable=False),  # the study file's settings as JSON
    sa.Column("paused", sa.Boolean, nullable=False, server_default=sa.false()),
    # One that is cancelled no longer keeps shared jobs open.
    sa.Column("cancelled", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("created_at", sa.Double, nullable=False),
)

models = sa.Table(
    "models",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("record", sa.Text, nullable=False),  # ModelRecord as JSON
)

datasets = sa.Table(
    "datasets",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("record", sa.Text, nullable=False),  # DatasetRecord as JSON
)

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", Identity, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("paused", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("priority", sa.Integer, nullable=False, server_default="0"),
    sa.Column("estimate_s", sa.Double, nullable=False, server_default="60"),
    sa.Column("teacher", sa.Text),
    sa.Column("student", sa.Text),
    sa.Column("needs_open", sa.Integer, nullable=False, server_default="0"),  # needed jobs that are not done
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),  # tries that count
    sa.Column("crashes", sa.Integer, nullable=False, server_default="0"),  # attempts whose worker died
    sa.Column("fence", sa.Integer, nullable=False, server_default="0"),  # grows with every claim
    sa.Column("not_before", sa.Double, nullable=False, server_default="0"),
    sa.Column("worker", sa.Text),
    sa.Column("lease_s", sa.Double),  # length of the lease
    sa.Column("lease_until", sa.Double),  # set exactly while the job runs
    sa.Column("ticket", sa.BigInteger),  # random number of the claim call, by which a lost answer is found again
    sa.Column("started_at", sa.Double),  # of the attempt that runs, or ran last
    sa.Column("progress", sa.Text),  # of that attempt: Progress as JSON
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("changed_at", sa.Double, nullable=False),
    sa.UniqueConstraint("digest", "kind"),  # the digest first: needs are found by it
)


# Literals, not parameters: a partial index serves only statements whose text contains its condition.
READY = sa.and_(jobs.c.state == sa.literal_column("'ready'"), ~jobs.c.paused)
RUNNING = jobs.c.state == sa.literal_column("'running'")
CLAIM_ORDER = (jobs.c.priority.desc(), jobs.c.estimate_s.desc(), jobs.c.id)

# Jobs that can be claimed, in the order in which they are claimed: a claim reads as many entries as it takes jobs.
sa.Index("jobs_ready", *CLAIM_ORDER, postgresql_where=READY, sqlite_where=READY)
for _column in (jobs.c.kind, jobs.c.teacher, jobs.c.student):
    sa.Index(f"jobs_ready_{_column.name}", _column, *CLAIM_ORDER, postgresql_where=READY, sqlite_where=READY)
sa.Index("jobs_running", jobs.c.worker, postgresql_where=RUNNING, sqlite_where=RUNNING)

# One row: when a heartbeat or an expiry last checked the leases (see `kt_study.store.leases`).
lease_checks = sa.Table(
    "lease_checks",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("checked_at", sa.Double, nullable=False),
)

# Links refer to jobs without foreign keys: checking them one by one doubled the time of a large plan.
job_needs = sa.Table(
    "job_needs",
    metadata,
    sa.Column("job_id", Identity, primary_key=True, autoincrement=False),
    sa.Column("needs_id", Identity, primary_key=True, autoincrement=False, index=True),
)

study_jobs = sa.Table(
    "study_jobs",
    metadata,
    sa.Column("study_id", Identity, primary_key=True, autoincrement=False),
    sa.Column("job_id", Identity, primary_key=True, autoincrement=False, index=True),
)

# Attempts that ended without a result. The attempt that runs, or that gave the result, is in the job's row, so that
# claiming and finishing write one row each.
past_attempts = sa.Table(
    "past_attempts",
    metadata,
    sa.Column("job_id", Identity, primary_key=True, autoincrement=False),
    sa.Column("fence", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("worker", sa.Text, nullable=False),
    sa.Column("started_at", sa.Double, nullable=False),
    sa.Column("ended_at", sa.Double, nullable=False),
    # failed | retried | released | blocked | expired | undone | cancelled
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("progress", sa.Text),  # Progress as JSON
    sa.Column("error", sa.Text),
    sa.Column("message", sa.Text),
    sa.Column("traceback", sa.Text),
    sa.Column("error_group", sa.Text),
)
_grouped = sa.text("error_group IS NOT NULL")
sa.Index("attempts_error_group", past_attempts.c.error_group, postgresql_where=_grouped, sqlite_where=_grouped)

# A view over both: every attempt, with outcome `done` if it gave the result and none while it runs.
attempts = sa.Table(
    "attempts",
    sa.MetaData(),
    sa.Column("id", sa.BigInteger),  # made of the job's id and the fencing number, so it never changes
    *(sa.Column(column.name, column.type) for column in past_attempts.c),
)

workers = sa.Table(
    "workers",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),  # one name for each worker process, e.g. host-pid-token
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("slurm_job", sa.Text),  # e.g. 123_4
    sa.Column("log", sa.Text),
    sa.Column("device", sa.Text),
    sa.Column("started_at", sa.Double, nullable=False),
    sa.Column("beat_at", sa.Double, nullable=False),
    sa.Column("ended_at", sa.Double),
)

_TYPES: dict[str, type[sa.types.TypeEngine[Any]]] = {
    "int": sa.BigInteger,
    "float": sa.Double,
    "text": sa.Text,
    "bool": sa.Boolean,
}


def _result_table(table: ResultTable) -> sa.Table:
    """A job's rows: `job_id` and the columns of the schema, unique by job and key."""
    return sa.Table(
        table.name,
        metadata,
        sa.Column("id", Identity, primary_key=True),
        sa.Column("job_id", Identity, sa.ForeignKey("jobs.id"), nullable=False),
        *(sa.Column(each.name, _TYPES[each.type](), nullable=each.nullable) for each in table.columns),
        sa.UniqueConstraint("job_id", *table.key),
    )


results = {name: _result_table(table) for name, table in RESULT_TABLES.items()}
