"""The job store: one class for both databases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from kt_study import database, tables
from kt_study.errors import UsageError
from kt_study.hashing import canonical_json
from kt_study.records import DatasetRecord, ModelRecord
from kt_study.store.claims import Claims
from kt_study.store.connections import Database, reads, writes
from kt_study.store.expressions import now
from kt_study.store.leases import Leases
from kt_study.store.listings import Listings
from kt_study.store.planning import Planning
from kt_study.store.records import WorkerRecord
from kt_study.store.selections import Selections

R = TypeVar("R", ModelRecord, DatasetRecord)


class JobStore(Planning, Claims, Leases, Selections, Listings):
    """Jobs in a database. Only this class changes the state of a job; docs/job-states.md shows the states.

    Promises:

    * Each method that changes a job is one transaction: it takes effect completely or not at all, even if a process dies.
    * A job is done once, and once more each time that its artefact is needed and missing (`make_again`; planning a `remake`).
    * `claim` returns a fencing number that grows with every claim of the job; `finish`, `fail`, `release` and `heartbeat`
      take effect only with the newest one and only while the job runs. A worker that was stopped, disconnected or declared
      dead, and returns, writes nothing.
    * A job's result rows are in the database exactly when the job is done.
    * A job becomes ready when the last job that it needs is done, also if that happens while it is being planned.
    * A job is added once, even if it is planned repeatedly, in several studies or by concurrent planners.
    * A released or orphaned attempt is not a failure. Attempts that end with a transient error count against
      `max_attempts`, attempts whose worker died against `max_crashes`.
    * Times are the database's own. The clocks of the nodes do not matter.
    * A lease counts only time in which the database was seen to respond: a database that was frozen or unreachable while
      leases ran out takes no job from a live worker.
    * The effect of a method that returned is durable: it survives a crash of the machine. A method that raised DatabaseError
      may have taken effect, if the answer was lost; calling it again with the same claim has no second effect.
    * Between calls a store holds connections for two seconds at most. It may be used from several threads, and after a fork.

    Every method raises DatabaseError if the database is unreachable for longer than `patience_s`.
    """

    def __init__(self, opened: Database, *, max_attempts: int, max_crashes: int, first_backoff_s: float) -> None:
        self._database = opened
        self._max_attempts, self._max_crashes, self._first_backoff_s = max_attempts, max_crashes, first_backoff_s

    def close(self) -> None:
        """Close idle connections. The store can be used again after it."""
        self._database.close()

    def require_single_node(self, nodes: int) -> None:
        """Refuse SQLite if workers would run on more than one node. Raises DatabaseError."""
        database.require_single_node(self._database.address, nodes)

    # Studies, models, data sets

    def add_study(self, name: str, spec: Mapping[str, Any]) -> None:
        """Add a study, or replace the settings of the one with this name."""
        row = {"name": name, "spec": canonical_json(spec), "created_at": now()}
        self._put(tables.studies, "name", [row], "spec")

    def study(self, name: str) -> dict[str, Any]:
        """The settings of a study. Raises UsageError for an unknown one."""
        found = self._texts(sa.select(tables.studies.c.spec).where(tables.studies.c.name == name))
        if not found:
            raise UsageError(f"no study {name!r} in {self.url}; it has {', '.join(self.studies()) or 'none yet'}")
        spec: dict[str, Any] = msgspec.json.decode(found[0])
        return spec

    def studies(self) -> list[str]:
        """Names of the studies, oldest first."""
        return self._texts(sa.select(tables.studies.c.name).order_by(tables.studies.c.id))

    def add_models(self, records: Iterable[ModelRecord]) -> None:
        """Add models, or replace those with the same key."""
        self._add(tables.models, records)

    def add_datasets(self, records: Iterable[DatasetRecord]) -> None:
        """Add data sets, or replace those with the same key."""
        self._add(tables.datasets, records)

    def model(self, key: str) -> ModelRecord:
        """The model with this key. Raises UsageError."""
        return self._record(tables.models, ModelRecord, key)

    def dataset(self, key: str) -> DatasetRecord:
        """The data set with this key. Raises UsageError."""
        return self._record(tables.datasets, DatasetRecord, key)

    def models(self) -> list[ModelRecord]:
        """Every model, by name."""
        return self._records(tables.models, ModelRecord)

    def datasets(self) -> list[DatasetRecord]:
        """Every data set, by name."""
        return self._records(tables.datasets, DatasetRecord)

    # Workers

    def register(self, worker: WorkerRecord) -> None:
        """Register a worker process, with its first heartbeat."""
        row = msgspec.to_builtins(worker) | {"started_at": now(), "beat_at": now(), "ended_at": None}
        self._put(tables.workers, "id", [row], "beat_at", "ended_at")

    @writes
    def leave(self, connection: sa.Connection, worker_id: str) -> None:
        """Unregister a worker process. Its jobs keep their leases until it finishes or releases them."""
        connection.execute(sa.update(tables.workers).where(tables.workers.c.id == worker_id).values(ended_at=now()))

    def _add(self, table: sa.Table, records: Iterable[ModelRecord] | Iterable[DatasetRecord]) -> None:
        rows = [{"key": each.key, "name": each.name, "record": msgspec.json.encode(each).decode()} for each in records]
        self._put(table, "key", rows, "name", "record")

    @writes
    def _put(
        self, connection: sa.Connection, table: sa.Table, key: str, rows: Sequence[Mapping[str, Any]], *replaced: str
    ) -> None:
        """Add rows; of those whose key is there, replace these columns."""
        insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
        for row in rows:
            added = insert(table).values(row)
            new = {name: added.excluded[name] for name in replaced}
            connection.execute(added.on_conflict_do_update(index_elements=[key], set_=new))

    def _record(self, table: sa.Table, kind: type[R], key: str) -> R:
        found = self._records(table, kind, table.c.key == key)
        if not found:
            raise UsageError(f"no {table.name.rstrip('s')} {key!r} in {self.url}; plan the study again")
        return found[0]

    def _records(self, table: sa.Table, kind: type[R], *conditions: sa.ColumnElement[bool]) -> list[R]:
        select = sa.select(table.c.record).where(*conditions).order_by(table.c.name, table.c.key)
        return [msgspec.json.decode(text, type=kind) for text in self._texts(select)]

    @reads
    def _texts(self, connection: sa.Connection, select: sa.Select[tuple[str]]) -> list[str]:
        return list(connection.scalars(select))
