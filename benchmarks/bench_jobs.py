"""The job table: jobs claimed and finished a second, against a bare loop on the same database in the same run.

    python -m benchmarks.bench_jobs                    everything, on a PostgreSQL of its own and on SQLite files
    python -m benchmarks.bench_jobs --only postgresql  or sqlite, scale, plan
    python -m benchmarks.bench_jobs --seconds 3 --rounds 5

The bare loop is one UPDATE .. FOR UPDATE SKIP LOCKED .. RETURNING (on SQLite: UPDATE .. RETURNING between BEGIN IMMEDIATE
and COMMIT) and one finishing UPDATE, each with its own commit, over a table with nothing but what it needs: no attempts, no
fencing numbers, no needs, no affinity. Cases take turns, round by round. On SQLite the same bare loop also runs over a table
with indexes by kind, teacher and student and of what runs, to tell what they cost where they follow each claim (the store's
follow in sweeps, of which each round has its share); and with the store's way of waiting, since by SQLite's own one of eight
processes does next to nothing.

Parts may be run one at a time: the file of the day keeps what the other parts found, each with its own time and load.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.harness import read_result, versions, write_result
from kt_study.database import connect_postgresql, connect_sqlite, parse_url
from kt_study.hashing import job_digest
from kt_study.store import JobStore, Planned, open_store
from kt_study.store.sqlite import within
from kt_study.words import PlannedJob
from orchestrator.cluster import postgres_server

LEAST_RATIO = 0.8  # of the bare loop's jobs a second
READY_JOBS = 20_000  # more than any case uses up in its seconds
BATCH_JOBS = 150_000
MILLION = 1_000_000
FAIR = ", each waiting fairly"
FORK = multiprocessing.get_context("fork")
ROW = {"evaluations": [{"dataset": "imagenet-val", "model": "resnet50", "n": 50_000, "acc": 76.13}]}
SPEC = {"dataset": "imagenet-val", "student": "s" * 32, "teachers": ["t" * 32], "objective": "kl_dp", "seed": 1}

BARE_TABLE = "CREATE TABLE bare (id {identity} PRIMARY KEY, state text NOT NULL, priority integer NOT NULL, worker text, spec text)"
BARE_INDEX = "CREATE INDEX bare_ready ON bare (priority DESC, id) WHERE state = 'ready'"
AFFINITY_INDEXES = (
    "CREATE INDEX bare_kind ON bare (kind, priority DESC, id) WHERE state = 'ready'",
    "CREATE INDEX bare_teacher ON bare (teacher, priority DESC, id) WHERE state = 'ready'",
    "CREATE INDEX bare_student ON bare (student, priority DESC, id) WHERE state = 'ready'",
    "CREATE INDEX bare_running ON bare (worker) WHERE state = 'running'",
)
BARE_CLAIM = (
    "UPDATE bare SET state = 'running', worker = {mark} WHERE id = (SELECT id FROM bare WHERE state = 'ready' "
    "ORDER BY priority DESC, id LIMIT 1 {locking}) RETURNING id, spec"
)
BARE_FINISH = "UPDATE bare SET state = 'done' WHERE id = {mark}"

Loop = Callable[[str], Callable[[], int]]  # url -> a call that claims and finishes, and counts what it did


@dataclass(frozen=True)
class Case:
    """One way of working through jobs, with some processes."""

    name: str
    url: str
    processes: int
    loop: Loop
    fill: Callable[[str], None]
    seconds: float
    counts: list[list[int]] = field(default_factory=list)  # of each round, of each process

    def rates(self) -> list[float]:
        """Jobs a second in each round."""
        return [sum(counts) / self.seconds for counts in self.counts]


def bare_postgresql(url: str) -> Callable[[], int]:
    """The bare loop on PostgreSQL: two statements in autocommit, prepared."""
    connection = connect_postgresql(parse_url(url))
    claim = BARE_CLAIM.format(mark="%s", locking="FOR UPDATE SKIP LOCKED").encode()
    finish = BARE_FINISH.format(mark="%s").encode()

    def step() -> int:
        row = connection.execute(claim, ["worker"], prepare=True).fetchone()
        if row is None:
            return 0
        json.loads(row[1])
        connection.execute(finish, [row[0]], prepare=True)
        return 1

    return step


def bare_sqlite(url: str) -> Callable[[], int]:
    """The bare loop on SQLite: the store's pragmas, SQLite's own busy handler."""
    connection = connect_sqlite(parse_url(url).path)
    connection.execute("PRAGMA busy_timeout=60000")
    claim, finish = BARE_CLAIM.format(mark="?", locking=""), BARE_FINISH.format(mark="?")

    def step() -> int:
        connection.execute("BEGIN IMMEDIATE")
        row = connection.execute(claim, ["worker"]).fetchone()
        connection.execute("COMMIT")
        if row is None:
            return 0
        json.loads(row[1])
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(finish, [row[0]])
        connection.execute("COMMIT")
        return 1

    return step


def fair_sqlite(url: str) -> Callable[[], int]:
    """The bare loop on SQLite whose processes wait for each other as the store's do, so that none of them starves."""
    connection = connect_sqlite(parse_url(url).path)
    claim, finish = BARE_CLAIM.format(mark="?", locking=""), BARE_FINISH.format(mark="?")

    def alone(statement: str, parameter: str | int) -> list[tuple[int, str]]:
        return within(
            connection,
            "BEGIN IMMEDIATE",
            lambda one: one.execute(statement, [parameter]).fetchall(),
            time.monotonic() + 60.0,
        )

    def step() -> int:
        rows = alone(claim, "worker")
        for job, spec in rows:
            json.loads(spec)
            alone(finish, job)
        return len(rows)

    return step


def store_loop(batch: int, rows: dict[str, list[dict[str, Any]]] | None = None) -> Loop:
    """Claim and finish through the job store, `batch` jobs at a time, each with these result rows."""
    result = rows or {}

    def start(url: str) -> Callable[[], int]:
        store = open_store(url)
        worker = f"worker-{os.getpid()}"

        def step() -> int:
            claims = store.claim(worker, limit=batch)
            if batch == 1 and claims:
                store.finish(claims[0], result)
            elif claims:
                store.finish_many([(claim, result) for claim in claims])
            return len(claims)

        return step

    return start


def fill_bare(jobs: int, *, indexed: bool = False) -> Callable[[str], None]:
    """Empty the bare table and put ready rows into it; `indexed` with indexes by which the store's claims look."""

    def fill(url: str) -> None:
        spec = json.dumps(SPEC)
        series = f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {jobs}) SELECT i FROM n"
        with _connection(url) as connection:
            identity = "integer" if url.startswith("sqlite") else "bigserial"
            connection.execute("DROP TABLE IF EXISTS bare")
            connection.execute(BARE_TABLE.format(identity=identity))
            connection.execute(BARE_INDEX)
            connection.execute(
                f"INSERT INTO bare (state, priority, spec) SELECT 'ready', 0, '{spec}' FROM ({series}) x"
            )
            if indexed:
                _index_for_affinity(connection)
        _settle(url, "bare")

    return fill


def _index_for_affinity(connection: Any) -> None:
    for column in ("kind", "teacher", "student"):
        connection.execute(f"ALTER TABLE bare ADD COLUMN {column} text")
    connection.execute(
        "UPDATE bare SET kind = 'transfer', teacher = 'teacher-' || (id % 300), student = 'student-' || (id % 299)"
    )
    for index in AFFINITY_INDEXES:
        connection.execute(index)


def fill_store(jobs: int) -> Callable[[str], None]:
    """Empty the job table and plan ready jobs."""

    def fill(url: str) -> None:
        store = open_store(url, create=True)
        with _connection(url) as connection:
            for table in ("study_jobs", "job_needs", "past_attempts", "jobs"):
                connection.execute(f"DELETE FROM {table}" if url.startswith("sqlite") else f"TRUNCATE {table} CASCADE")
        plan_jobs(store, jobs)
        store.close()
        _settle(url, "jobs")

    return fill


def plan_jobs(store: JobStore, number: int, needs_every: int = 0) -> Planned:
    """Plan `number` jobs; with `needs_every` k, each block of k jobs needs the first of its block."""
    store.add_study("bench", {})
    return store.plan("bench", _jobs(number, needs_every))


def _jobs(number: int, needs_every: int) -> Iterator[PlannedJob]:
    first = ""
    for at in range(number):
        spec = SPEC | {"number": at}
        digest = job_digest("transfer", spec)
        leads = bool(needs_every) and at % needs_every == 0
        first = digest if leads else first
        needs = (first,) if needs_every and not leads else ()
        teacher, student = f"teacher-{at % 300}", f"student-{at % 299}"
        yield PlannedJob(kind="transfer", spec=spec, digest=digest, needs=needs, teacher=teacher, student=student)


@contextmanager
def _connection(url: str) -> Iterator[Any]:
    address = parse_url(url)
    connection = connect_sqlite(address.path) if address.is_sqlite else connect_postgresql(address)
    try:
        yield connection
    finally:
        connection.close()


def _settle(url: str, table: str) -> None:
    """Let the database tidy up before the clock starts, not while it runs."""
    with _connection(url) as connection:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        else:
            connection.execute(f"VACUUM ANALYZE {table}")


def run_case(case: Case) -> None:
    """One round: fresh jobs, all processes from one gate, counts of what each did in the given seconds."""
    case.fill(case.url)
    gate = FORK.Barrier(case.processes)
    answers = FORK.SimpleQueue()
    workers = [FORK.Process(target=_work, args=(case, gate, answers)) for _ in range(case.processes)]
    for worker in workers:
        worker.start()
    counts = [answers.get() for _ in workers]
    for worker in workers:
        worker.join()
    case.counts.append(counts)


def _work(case: Case, gate: Any, answers: Any) -> None:
    step = case.loop(case.url)
    for _ in range(3):
        step()
    gate.wait()
    end = time.perf_counter() + case.seconds
    count = 0
    while time.perf_counter() < end:
        count += step()
    answers.put(count)


def throughput(cases: list[Case], rounds: int) -> dict[str, dict[str, float]]:
    """Jobs a second of each case (median over rounds), and the smallest share of its fair part that a process got."""
    for at in range(rounds):
        for case in cases if at % 2 else reversed(cases):
            run_case(case)
    return {
        case.name: {
            "jobs_per_s": statistics.median(case.rates()),
            "least_of_fair_share": min(min(counts) * len(counts) / max(1, sum(counts)) for counts in case.counts),
        }
        for case in cases
    }


def postgresql_cases(url: str, seconds: float) -> list[Case]:
    """Bare and store at 1, 8 and 32 processes, and batches of 16 at 8."""
    cases = []
    for processes in (1, 8, 32):
        cases.append(Case(f"bare x{processes}", url, processes, bare_postgresql, fill_bare(READY_JOBS), seconds))
        cases.append(Case(f"store x{processes}", url, processes, store_loop(1), fill_store(READY_JOBS), seconds))
    cases.append(Case("store x8, a result row each", url, 8, store_loop(1, ROW), fill_store(READY_JOBS), seconds))
    cases.append(Case("store x8, batches of 16", url, 8, store_loop(16), fill_store(BATCH_JOBS), seconds))
    return cases


def sqlite_cases(folder: Path, seconds: float) -> list[Case]:
    """Bare and store at 1 and 8 processes, bare at 8 that waits fairly, with indexes for affinity, batches of 16; one file."""
    url = f"sqlite:///{folder / 'bench.db'}"
    open_store(url, create=True).close()
    cases = []
    for processes in (1, 8):
        cases.append(Case(f"bare x{processes}", url, processes, bare_sqlite, fill_bare(READY_JOBS), seconds))
        cases.append(Case(f"store x{processes}", url, processes, store_loop(1), fill_store(READY_JOBS), seconds))
    cases.append(Case(f"bare x8{FAIR}", url, 8, fair_sqlite, fill_bare(READY_JOBS), seconds))
    indexed = fill_bare(READY_JOBS, indexed=True)
    cases.append(Case("bare x1, indexes for affinity", url, 1, bare_sqlite, indexed, seconds))
    cases.append(Case("store x1, batches of 16", url, 1, store_loop(16), fill_store(BATCH_JOBS), seconds))
    return cases


def claim_scale(url: str, claims: int = 200) -> dict[str, float]:
    """Median milliseconds of one claim by each kind of wish, at 1,000 and at 1,000,000 jobs, and their ratio."""
    wishes: dict[str, dict[str, Any]] = {
        "any": {},
        "affinity": {"teachers": ["teacher-7"], "students": ["student-9"]},
        "kinds and time left": {"kinds": ["transfer", "logits"], "time_left_s": 3600.0},
    }
    found: dict[str, float] = {}
    for number in (1_000, MILLION):
        fill_store(number)(url)
        store = open_store(url)
        seconds: dict[str, list[float]] = {name: [] for name in wishes}
        for _ in range(claims):
            for name, wish in wishes.items():
                start = time.perf_counter()
                store.claim("worker", **wish)
                seconds[name].append(time.perf_counter() - start)
        found |= {f"{name}, {number:,} jobs, ms": 1000 * statistics.median(values) for name, values in seconds.items()}
        store.close()
    for name in wishes:
        found[f"{name}, ratio"] = found[f"{name}, {MILLION:,} jobs, ms"] / found[f"{name}, 1,000 jobs, ms"]
    return found


def planning(url: str, number: int = MILLION) -> dict[str, float]:
    """Seconds and peak memory of a process that plans `number` jobs, 99 of 100 of which need another."""
    answers = FORK.SimpleQueue()
    process = FORK.Process(target=_plan, args=(url, number, answers))
    process.start()
    seconds, peak, new = answers.get()
    process.join()
    return {"jobs": new, "seconds": seconds, "peak_memory_gb": peak}


def _plan(url: str, number: int, answers: Any) -> None:
    store = open_store(url, create=True)
    start = time.perf_counter()
    planned = plan_jobs(store, number, needs_every=100)
    seconds = time.perf_counter() - start
    answers.put((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, planned.new))


@contextmanager
def own_postgresql(place: str | None) -> Iterator[Callable[[], str]]:
    """A server in a scratch folder; each call makes a fresh database and gives its URL."""
    folder = Path(tempfile.mkdtemp(prefix="kt-bench-", dir=place))
    base = postgres_server.start(folder)
    made: list[str] = []

    def fresh() -> str:
        made.append(f"bench_{len(made)}")
        with psycopg.connect(base, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {made[-1]}".encode())
        return base.replace(f"/{postgres_server.DATABASE}?", f"/{made[-1]}?")

    try:
        yield fresh
    finally:
        postgres_server.stop(folder)
        shutil.rmtree(folder)


def ratios(cases: list[Case]) -> dict[str, float]:
    """Store over bare for each number of processes: the median over rounds of the ratio within a round."""
    by_name = {case.name: case for case in cases}
    found = {}
    for name, case in by_name.items():
        for suffix in ("", FAIR):
            bare = by_name.get(name.replace("store", "bare") + suffix)
            if name.startswith("store") and bare:
                each_round = [ours / theirs for ours, theirs in zip(case.rates(), bare.rates(), strict=True)]
                found[name.removeprefix("store ") + suffix] = statistics.median(each_round)
    return found


def main() -> None:
    """Run the parts, print what they found, and keep it under benchmarks/results/."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("postgresql", "sqlite", "scale", "plan"), action="append")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", action=argparse.BooleanOptionalAction, default=True, help="write the JSON file")
    parser.add_argument("--folder", help="where the scratch databases go; the system's temporary folder by default")
    options = parser.parse_args()
    parts = options.only or ["postgresql", "sqlite", "scale", "plan"]
    found: dict[str, Any] = {}
    with own_postgresql(options.folder) as fresh, tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        if "postgresql" in parts:
            found["postgresql"] = _report("PostgreSQL", postgresql_cases(fresh(), options.seconds), options.rounds)
        if "sqlite" in parts:
            found["sqlite"] = _report("SQLite", sqlite_cases(Path(scratch), options.seconds), options.rounds)
        for name, url in (("postgresql", fresh()), ("sqlite", f"sqlite:///{scratch}/scale.db")):
            if "plan" in parts:
                found[f"plan, {name}"] = _print(f"planning, {name}", planning(url))
            if "scale" in parts:
                found[f"claim, {name}"] = _print(f"one claim, {name}", claim_scale(url))
    if options.keep:
        conditions = {"when": datetime.now(UTC).isoformat(timespec="seconds"), "load_1min": os.getloadavg()[0]}
        conditions |= {"seconds": options.seconds, "rounds": options.rounds, "versions": versions("psycopg")}
        earlier = {
            name: part for name, part in read_result("jobs").items() if isinstance(part, dict) and "when" in part
        }
        new = {name: conditions | part for name, part in found.items()}
        print(f"kept in {write_result('jobs', earlier | new)}")


def _report(title: str, cases: list[Case], rounds: int) -> dict[str, Any]:
    figures = throughput(cases, rounds)
    for name, values in figures.items():
        print(f"{title}: {name}: {values['jobs_per_s']:,.0f} jobs/s, least share {values['least_of_fair_share']:.2f}")
    for name, ratio in ratios(cases).items():
        print(f"{title}: store / bare {name}: {ratio:.2f} (wanted: at least {LEAST_RATIO})")
    return {"figures": figures, "store_over_bare": ratios(cases)}


def _print(title: str, figures: dict[str, float]) -> dict[str, float]:
    for name, value in figures.items():
        print(f"{title}: {name}: {value:,.3f}")
    return figures


if __name__ == "__main__":
    main()
