"""What the two databases have in common: transactions over one dialect of SQL, and the three calls that must be quick.

Statements are written once, with `:name` for parameters; the few words that differ come from the transaction.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import msgspec

from kt_study.database import Address
from kt_study.store.fenced import JobLost
from kt_study.store.records import Orders
from kt_study.store.results import Rows
from kt_study.words import Claim, Progress, Record

T = TypeVar("T")
Row = tuple[Any, ...]


class Wish(Record, frozen=True, kw_only=True):
    """What a worker asks for in one claim. Empty tuples and None mean: no matter."""

    worker: str
    kinds: tuple[str, ...] = ()
    teachers: tuple[str, ...] = ()
    students: tuple[str, ...] = ()
    time_left_s: float | None = None
    study: str | None = None
    limit: int = 1
    lease_s: float = 60.0

    @property
    def is_plain(self) -> bool:
        """Whether any job will do."""
        return self.time_left_s is None and self.study is None and not (self.kinds or self.teachers or self.students)


class Transaction(Protocol):
    """One open transaction."""

    now: str  # SQL for the database's clock, seconds since 1970
    skip_locked: str  # SQL that locks the selected rows and passes over those that others hold
    ready: str  # SQL for a job that can be claimed once it is due, in the words of the indexes that have them
    running: str  # SQL for a job that runs, in the words of the index that has them
    for_update: str  # SQL that locks the selected rows, waiting for those that others hold
    server_started: str  # SQL for the moment since which the database has been up

    def rows(self, statement: str, **parameters: Any) -> list[Row]:
        """Run a statement and fetch what it returns."""
        ...

    def change(self, statement: str, **parameters: Any) -> int:
        """Run a statement and count the rows it changed."""
        ...

    def many(self, statement: str, parameters: Sequence[Mapping[str, Any]]) -> None:
        """Run a statement once for each set of parameters."""
        ...

    def among(self, column: str, parameter: str) -> str:
        """SQL for `column` being in the list given as `parameter`."""
        ...

    def like_glob(self, column: str, parameter: str) -> str:
        """SQL for `column` fitting the shell pattern given as `parameter`; pass it through `glob`."""
        ...

    def glob(self, pattern: str) -> str:
        """A shell pattern as `like_glob` wants it."""
        ...


class Staging(Protocol):
    """A private connection with temporary tables, for planning."""

    def make(self, table: str, columns: str) -> None:
        """Create a temporary table."""
        ...

    def load(self, table: str, rows: Sequence[Row]) -> None:
        """Append rows to a temporary table."""
        ...

    def ready(self, *indexed: tuple[str, str]) -> None:
        """Index the temporary tables, by (table, column), once they are full."""
        ...

    def transact(self, work: Callable[[Transaction], T]) -> T:
        """Run `work` in a transaction that keeps every other planner out."""
        ...

    def analyse(self) -> None:
        """Let the database count its rows anew, after many were added."""
        ...


class Backend(Protocol):
    """One database."""

    address: Address

    def transact(self, work: Callable[[Transaction], T]) -> T:
        """Run `work` in one write transaction. It runs again when the database was busy, restarted or chose another.

        Raises:
            DatabaseError: the database stayed away longer than the store's patience.
        """
        ...

    def read(self, work: Callable[[Transaction], T]) -> T:
        """Run `work`, which only reads, on one consistent state of the database. Raises DatabaseError."""
        ...

    def staging(self) -> contextlib.AbstractContextManager[Staging]:
        """A private connection for planning."""
        ...

    def claim(self, wish: Wish) -> list[Claim]:
        """See JobStore.claim."""
        ...

    def beat(self, worker: str, held: Sequence[tuple[Claim, Progress | None]], lease_s: float) -> Orders:
        """See JobStore.beat."""
        ...

    def finish(self, finished: Sequence[tuple[Claim, Rows]]) -> list[JobLost]:
        """See JobStore.finish_many: those that are no longer this worker's, as errors."""
        ...

    def revision(self, wait_s: float) -> str | None:
        """The migration at which the database stands, None without our tables; waits for a server that is away.

        Raises:
            DatabaseError: it stayed away.
        """
        ...

    def close(self) -> None:
        """Close idle connections."""
        ...


def as_claim(row: Row) -> Claim:
    """A claim from its job's (id, fence, kind, digest, spec, attempts)."""
    job_id, fence, kind, digest, spec, attempts = row
    return Claim(
        job_id=job_id, attempt_id=fence, fence=fence, kind=kind, digest=digest, spec=msgspec.json.decode(spec),
        attempt=attempts + 1,
    )  # fmt: skip


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of up to `size` items, in order."""
    chunk: list[T] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
