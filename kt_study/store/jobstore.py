"""The job store: one class for both databases."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from kt_study import database, tables
from kt_study.errors import UsageError
from kt_study.hashing import canonical_json
from kt_study.records import Claim, DatasetRecord, Failure, JobState, ModelRecord, PlannedJob, Progress
from kt_study.store import claims, leases, planning
from kt_study.store.connections import Database
from kt_study.store.expressions import now
from kt_study.store.listings import Listings
from kt_study.store.records import (
    ClaimRequest,
    HeartbeatReply,
    Planned,
    WorkerRecord,
)
from kt_study.store.results import Rows, plain_rows
from kt_study.store.selections import Selections


class JobStore(Listings, Selections):
    """Jobs in a database. Only this class changes the state of a job; docs/job-states.md shows the states.

    Promises:

    * Each method that changes a job is one transaction: it takes effect completely or not at all, whatever process dies.
    * A job is done once, and once more each time that its artefact is needed and missing (`make_again`; planning a `remake`).
    * `claim` returns a fencing number that grows with every claim of the job; `finish`, `fail`, `release` and `heartbeat`
      take effect only with the newest one and only while the job runs. A worker that was stopped, disconnected or declared
      dead, and comes back, writes nothing.
    * A job's result rows are in the database exactly when the job is done.
    * A job becomes ready when the last job that it needs is done, also if that happens while it is being planned.
    * A job is added once, even if it is planned repeatedly, in several studies or by concurrent planners.
    * A released or orphaned attempt is not a failure. Attempts that end with a transient error count against
      `max_attempts`, attempts whose worker died against `max_crashes`.
    * Times are the database's own. The clocks of the workers' nodes do not matter.
    * A lease counts only time in which the database was seen to respond: a database that was frozen or unreachable while
      leases ran out takes no job from a live worker.
    * The effect of a method that returned is durable: it survives a crash of the machine. A method that raised DatabaseError
      may have taken effect, if the answer was lost; calling it again with the same claim has no second effect.
    * Between calls a store holds connections for two seconds at most. It may be used from several threads, and after a fork.

    Every method raises DatabaseError if the database is unreachable for longer than `patience_s`.
    """

    def __init__(self, opened: Database, *, max_attempts: int, max_crashes: int, first_backoff_s: float) -> None:
        self._database = opened
        self._max_attempts = max_attempts
        self._max_crashes = max_crashes
        self._first_backoff_s = first_backoff_s

    def close(self) -> None:
        """Close idle connections. The store can be used again after it."""
        self._database.close()

    def require_single_node(self, nodes: int) -> None:
        """Refuse SQLite if workers would run on more than one node. Raises DatabaseError."""
        database.require_single_node(self._database.address, nodes)

    # What a study consists of

    def add_study(self, name: str, spec: Mapping[str, Any]) -> None:
        """Add a study, or replace the settings of the one with this name."""
        row = {"name": name, "spec": canonical_json(spec), "created_at": now()}
        self._put(tables.studies, "name", [row], "spec")

    def study(self, name: str) -> dict[str, Any]:
        """The settings of a study. Raises UsageError for an unknown one."""
        found = self._one(sa.select(tables.studies.c.spec).where(tables.studies.c.name == name))
        if found is None:
            raise UsageError(f"no study {name!r} in {self.url}; it has {', '.join(self.studies()) or 'none yet'}")
        spec: dict[str, Any] = msgspec.json.decode(found)
        return spec

    def studies(self) -> list[str]:
        """Names of the studies, oldest first."""
        return self._all(sa.select(tables.studies.c.name).order_by(tables.studies.c.id))

    def add_models(self, records: Iterable[ModelRecord]) -> None:
        """Add models, or replace those with the same key."""
        self._add(tables.models, records)

    def add_datasets(self, records: Iterable[DatasetRecord]) -> None:
        """Add data sets, or replace those with the same key."""
        self._add(tables.datasets, records)

    def model(self, key: str) -> ModelRecord:
        """The model with this key. Raises UsageError."""
        return msgspec.json.decode(self._record(tables.models, key), type=ModelRecord)

    def dataset(self, key: str) -> DatasetRecord:
        """The data set with this key. Raises UsageError."""
        return msgspec.json.decode(self._record(tables.datasets, key), type=DatasetRecord)

    def models(self) -> list[ModelRecord]:
        """Every model, by name."""
        return [msgspec.json.decode(record, type=ModelRecord) for record in self._records(tables.models)]

    def datasets(self) -> list[DatasetRecord]:
        """Every data set, by name."""
        return [msgspec.json.decode(record, type=DatasetRecord) for record in self._records(tables.datasets)]

    def plan(self, study: str, jobs: Iterable[PlannedJob]) -> Planned:
        """Add jobs to a study: new ones as rows, known ones as shared; cancelled ones and done remakes are reopened.

        A need may be planned in the same call, before or after the job that needs it, or be in the database already; one
        that is done blocks nothing. The jobs may come from a generator: a million of them take a few hundred MB here.

        Raises:
            UsageError: an unknown study, or a need that does not exist. Nothing is added then.
        """
        return planning.plan(self._database, study, jobs)

    # What a worker does

    def register(self, worker: WorkerRecord) -> None:
        """Register a worker process, with its first heartbeat."""
        row = msgspec.to_builtins(worker) | {"started_at": now(), "beat_at": now(), "ended_at": None}
        self._put(tables.workers, "id", [row], "beat_at", "ended_at")

    def leave(self, worker_id: str) -> None:
        """Unregister a worker process. Its jobs keep their leases until it finishes or releases them."""
        left = sa.update(tables.workers).where(tables.workers.c.id == worker_id).values(ended_at=now())
        self._database.write(lambda connection: connection.execute(left))

    def claim(
        self,
        worker_id: str,
        *,
        kinds: Iterable[str] | None = None,
        teachers: Iterable[str] = (),
        students: Iterable[str] = (),
        time_left_s: float | None = None,
        study: str | None = None,
        limit: int = 1,
        lease_s: float = 60.0,
    ) -> list[Claim]:
        """Take up to `limit` ready jobs: first those whose teacher or student is given, then by priority, then longest first.

        Args:
            worker_id: who takes them.
            kinds: only jobs of these kinds; None for any.
            teachers, students: affinity keys of models that this worker has loaded.
            time_left_s: only jobs whose estimate fits; None for no limit.
            study: only jobs of this study. The time of a claim then grows with the ready jobs of other studies.
            limit: how many; more than one for jobs that are shorter than a claim.
            lease_s: seconds for which they are this worker's, from now and from every heartbeat.

        Returns:
            Possibly fewer than are ready: jobs that another worker is claiming at the moment are skipped.
        """
        request = ClaimRequest(
            worker=worker_id,
            kinds=() if kinds is None else tuple(kinds),
            teachers=tuple(teachers),
            students=tuple(students),
            time_left_s=time_left_s,
            study=study,
            limit=limit,
            lease_s=lease_s,
        )
        ticket, tries = random.getrandbits(62), itertools.count()

        def claim(connection: sa.Connection) -> list[Claim]:
            before = claims.claimed_before(connection, request, ticket) if next(tries) else []
            return before or claims.claim(connection, request, ticket)

        return self._database.write(claim)

    def heartbeat(
        self,
        worker_id: str,
        held: Mapping[Claim, Progress | None] | Iterable[tuple[Claim, Progress | None]],
        lease_s: float = 60.0,
    ) -> HeartbeatReply:
        """One heartbeat: renew the leases of the claims, store their progress, and learn which are lost or paused."""
        pairs = held.items() if isinstance(held, Mapping) else held
        given = list(pairs)
        return self._database.write(lambda connection: leases.heartbeat(connection, worker_id, given, lease_s))

    def finish(self, claim: Claim, rows: Rows) -> None:
        """Store the result rows and mark the job done; jobs for which it was the last need become ready.

        Args:
            claim: the job.
            rows: rows by table name, each a mapping of the columns of `kt_study.schema`. NaN is stored as missing.

        Raises:
            LeaseLost: the job is no longer this worker's; nothing was written.
            UsageError: a table or column that the schema does not have; nothing was written.
        """
        for error in self._finish([(claim, rows)]):
            raise error

    def finish_many(self, finished: Sequence[tuple[Claim, Rows]]) -> frozenset[int]:
        """Finish several jobs in one transaction. Returns the ids of those whose lease was lost; they are not changed."""
        if not finished:
            return frozenset()
        return frozenset(error.job_id for error in self._finish(finished))

    def _finish(self, finished: Sequence[tuple[Claim, Rows]]) -> list[leases.JobLost]:
        plain = [(claim, plain_rows(rows)) for claim, rows in finished]
        return self._database.write(lambda connection: leases.finish(connection, plain))

    def release(self, claim: Claim, *, reason: str) -> None:
        """Put a job back to ready without using up an attempt: on preemption, time limit or pause. Raises LeaseLost."""
        self._database.write(lambda connection: leases.release(connection, claim, reason))

    def make_again(self, claim: Claim, makers: Iterable[str], *, reason: str) -> None:
        """Release a job whose input is missing or damaged, and reopen the jobs that make the input: the job waits for them.

        Args:
            claim: the job that found it; the attempt does not count.
            makers: digests of the jobs that left the files; those that are done are opened again, without their result
                rows, which come again. A transfer's student is made by its `remake` where there is one.
            reason: one line.

        Raises:
            LeaseLost: the job is no longer this worker's; nothing was changed.
            DataError: no such maker, or the job has waited for files ten times; nothing was changed.
        """
        wanted = list(makers)
        self._database.write(lambda connection: leases.make_again(connection, claim, wanted, reason))

    def fail(self, claim: Claim, failure: Failure) -> JobState:
        """End an attempt with an error.

        Returns:
            READY if the failure is transient and attempts are left: the job is retried after a backoff that doubles with
            each attempt. FAILED otherwise.

        Raises:
            LeaseLost: the job is no longer this worker's.
        """
        return self._database.write(
            lambda connection: leases.fail(connection, claim, failure, self._max_attempts, self._backoff_s)
        )

    def _backoff_s(self, attempts: int) -> float:
        longest = min(self._first_backoff_s * 2.0 ** (attempts - 1), leases.LONGEST_BACKOFF_S)
        return longest * random.uniform(0.75, 1.25)  # so that jobs that failed together do not come back together

    # What anyone does for the workers that cannot

    def expire(self, *, grace_s: float = 30.0) -> int:
        """End every lease that is over by the database's clock: back to ready, or failed after too many crashes.

        Args:
            grace_s: seconds after a start of the database server in which no lease ends, since no worker could renew it.

        Returns:
            The number of leases ended.
        """
        return self._database.write(lambda connection: leases.expire(connection, self._max_crashes, grace_s))

    def end_leases(self, worker_ids: Iterable[str], reason: str) -> int:
        """End the leases of workers that are known to be dead, without waiting for the leases. Returns how many."""
        workers = list(worker_ids)
        return self._database.write(
            lambda connection: leases.end_leases_of(connection, workers, self._max_crashes, reason)
        )

    def _add(self, table: sa.Table, records: Iterable[ModelRecord] | Iterable[DatasetRecord]) -> None:
        rows = [{"key": each.key, "name": each.name, "record": msgspec.json.encode(each).decode()} for each in records]
        self._put(table, "key", rows, "name", "record")

    def _put(self, table: sa.Table, key: str, rows: Sequence[Mapping[str, Any]], *replaced: str) -> None:
        """Add rows; of those whose key is there, replace these columns."""

        def put(connection: sa.Connection) -> None:
            insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
            for row in rows:
                added = insert(table).values(row)
                new = {name: added.excluded[name] for name in replaced}
                connection.execute(added.on_conflict_do_update(index_elements=[key], set_=new))

        self._database.write(put)

    def _record(self, table: sa.Table, key: str) -> str:
        found = self._one(sa.select(table.c.record).where(table.c.key == key))
        if found is None:
            raise UsageError(f"no {table.name.rstrip('s')} {key!r} in {self.url}; plan the study again")
        record: str = found
        return record

    def _records(self, table: sa.Table) -> list[str]:
        return self._all(sa.select(table.c.record).order_by(table.c.name, table.c.key))

    def _one(self, select: sa.Select[Any]) -> Any:
        return self._database.read(lambda connection: connection.scalar(select))

    def _all(self, select: sa.Select[Any]) -> list[Any]:
        return self._database.read(lambda connection: list(connection.scalars(select)))
