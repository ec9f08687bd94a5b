"""The job table: `open_store(url)` returns a `JobStore` on SQLite or PostgreSQL with the same guarantees.

store = open_store("sqlite:///kt-study.db", create=True)
store.add_study("paper", {})
store.plan("paper", jobs)
for claim in store.claim("worker-1"):
    store.finish(claim, {"complementarity": [row]})
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kt_study import database
from kt_study.store.records import (
    AttemptRow,
    FailureGroup,
    HeartbeatReply,
    JobRow,
    NeedRow,
    Planned,
    Selection,
    Summary,
    WorkerRecord,
    WorkerRow,
    Workload,
)

if TYPE_CHECKING:
    from kt_study.store.jobstore import JobStore

FIRST_BACKOFF_S = 15.0  # before the second try; doubles with every further one

__all__ = [
    "AttemptRow", "FailureGroup", "HeartbeatReply", "JobRow", "JobStore", "NeedRow", "Planned", "Selection", "Summary",
    "WorkerRecord", "WorkerRow", "Workload", "open_store",
]  # fmt: skip


def open_store(
    url: str,
    *,
    create: bool = False,
    max_attempts: int = 3,
    max_crashes: int = 5,
    first_backoff_s: float = FIRST_BACKOFF_S,
    patience_s: float = 60.0,
    idle_s: float = 2.0,
    wait_s: float = 0.0,
) -> JobStore:
    """Open the job table at a database URL.

    Args:
        url: `sqlite:///FILE` or `postgresql://USER@HOST:PORT/NAME?passfile=FILE`.
        create: make the tables, or bring older ones up to date.
        max_attempts: tries after which a transient error is final.
        max_crashes: workers that may die while they run a job, before it fails.
        first_backoff_s: pause before the second try; it doubles with each further one.
        patience_s: how long a call keeps retrying while the database is away or busy.
        idle_s: how long an unused connection stays open.
        wait_s: how long to wait for a server that does not answer: no time for a user at a terminal, some for a pilot on a
            node, which should survive a restart of the server.

    Raises:
        DatabaseError: unreachable, absent (without `create`), newer than this program, older than it (without
            `create`), or a SQLite file on a network file system.
    """
    from kt_study.store.connections import Database
    from kt_study.store.jobstore import JobStore

    address = database.parse_url(url)
    if create:
        database.create_if_needed(address)
    opened = Database(address, patience_s=patience_s, idle_s=idle_s)
    revision = opened.revision(wait_s)
    if create and (revision is None or revision < database.newest_revision()):
        database.migrate(address)
        revision = opened.revision(wait_s)
    database.check_revision(address, revision)
    return JobStore(opened, max_attempts=max_attempts, max_crashes=max_crashes, first_backoff_s=first_backoff_s)


def __getattr__(name: str) -> Any:
    """`JobStore`, and with it SQLAlchemy, is imported only when a database is opened, not for help and completion."""
    if name == "JobStore":
        from kt_study.store.jobstore import JobStore

        return JobStore
    raise AttributeError(name)
