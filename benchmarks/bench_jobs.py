"""The job table: jobs claimed and finished a second, beside a bare loop and other packages' queues in the same run.

    python -m benchmarks.bench_jobs                    everything, on a PostgreSQL of its own and on SQLite files
    python -m benchmarks.bench_jobs --only postgresql  or sqlite, scale, plan
    python -m benchmarks.bench_jobs --seconds 3 --rounds 5

Each case is eight processes that claim a job and finish it, over and over. The bare loop is one claiming UPDATE and one
finishing UPDATE over a table with nothing but what they need. Optuna's RDB storage asks for a trial and tells its value,
with a sampler that draws at random; procrastinate fetches a job and finishes it, through its job manager, in one asyncio
loop per process. Cases take turns, round by round.

Parts may be run one at a time: the file of the day keeps what the other parts found, each with its own time and load.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import logging
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
from kt_study.pilots import LaunchFiles
from kt_study.records import PlannedJob
from kt_study.store import JobStore, Planned, open_store
from orchestrator.cli.status import summary
from orchestrator.cluster import postgres_server

BOUNDS = {
    "postgresql": {"store": 700, "store, batches of 16": 5_000},
    "sqlite": {"store": 400},
}  # jobs per second
PROCESSES = 8
READY_JOBS = 20_000  # more than any case uses up in its seconds
BATCH_JOBS = 150_000
MILLION = 1_000_000
FORK = multiprocessing.get_context("fork")
SPEC = {"dataset": "imagenet-val", "student": "s" * 32, "teachers": ["t" * 32], "objective": "kl_dp", "seed": 1}

BARE_TABLE = (
    "CREATE TABLE bare (id {identity} PRIMARY KEY, state text NOT NULL, priority integer NOT NULL, worker text)"
)
BARE_INDEX = "CREATE INDEX bare_ready ON bare (priority DESC, id) WHERE state = 'ready'"
BARE_CLAIM = (
    "UPDATE bare SET state = 'running', worker = 'worker' WHERE id = (SELECT id FROM bare WHERE state = 'ready' "
    "ORDER BY priority DESC, id LIMIT 1 {locking}) RETURNING id"
)

Step = Callable[[], int]  # claims and finishes, and counts what it did


@dataclass(frozen=True)
class Case:
    """One way of working through jobs: `fill` makes the jobs, `start` makes a process's step."""

    name: str
    url: str
    start: Callable[[str], Step]
    fill: Callable[[str], None]
    counts: list[list[int]] = field(default_factory=list)  # of each round, of each process


def start_bare(url: str) -> Step:
    """Two statements, each with its own commit; on SQLite with its own busy handler, which starves some processes."""
    address = parse_url(url)
    connection: Any = connect_sqlite(address.path) if address.is_sqlite else connect_postgresql(address)
    if address.is_sqlite:
        connection.execute("PRAGMA busy_timeout=60000")
    claim = BARE_CLAIM.format(locking="" if address.is_sqlite else "FOR UPDATE SKIP LOCKED")

    def step() -> int:
        rows = connection.execute(claim).fetchall()
        for (job_id,) in rows:
            connection.execute(f"UPDATE bare SET state = 'done' WHERE id = {job_id}")
        return len(rows)

    return step


def start_store(batch: int) -> Callable[[str], Step]:
    """Claim and finish through the job store, `batch` jobs at a time."""

    def start(url: str) -> Step:
        store = open_store(url)
        worker = f"worker-{os.getpid()}"

        def step() -> int:
            claims = store.claim(worker, limit=batch)
            store.finish_many([(claim, {}) for claim in claims])
            return len(claims)

        return step

    return start


def start_optuna(url: str) -> Step:
    """Ask for a trial and tell its value."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = optuna.storages.RDBStorage(_for_sqlalchemy(url), engine_kwargs={"connect_args": _patience(url)})
    study = optuna.load_study(study_name="bench", storage=storage, sampler=optuna.samplers.RandomSampler())

    def step() -> int:
        study.tell(study.ask(), 0.0)
        return 1

    return step


def fill_optuna(url: str) -> None:
    """An empty study: a trial is made when it is asked for."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    optuna.create_study(study_name="bench", storage=_for_sqlalchemy(url), load_if_exists=True)


def _for_sqlalchemy(url: str) -> str:
    return parse_url(url).url.replace("postgresql://", "postgresql+psycopg://")


def _patience(url: str) -> dict[str, Any]:
    return {"timeout": 60.0} if url.startswith("sqlite") else {}


def start_procrastinate(url: str) -> Step:
    """Fetch a job and finish it."""
    from procrastinate import App, PsycopgConnector
    from procrastinate.jobs import Status

    logging.getLogger("procrastinate").setLevel(logging.ERROR)
    loop = asyncio.new_event_loop()
    app = App(connector=PsycopgConnector(conninfo=_libpq(url), min_size=1, max_size=1))
    loop.run_until_complete(app.open_async())
    worker = loop.run_until_complete(app.job_manager.register_worker())

    async def once() -> int:
        job = await app.job_manager.fetch_job(queues=None, worker_id=worker)
        if job is None:
            return 0
        await app.job_manager.finish_job(job, Status.SUCCEEDED, delete_job=False)
        return 1

    return lambda: loop.run_until_complete(once())


def fill_procrastinate(url: str) -> None:
    """Make its tables, and ready jobs."""
    from procrastinate.schema import SchemaManager

    with psycopg.connect(_libpq(url), autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
        connection.execute(SchemaManager.get_schema())
        connection.execute(
            "INSERT INTO procrastinate_jobs (queue_name, task_name, args) "
            f"SELECT 'default', 'task', '{{}}' FROM generate_series(1, {READY_JOBS})"
        )
    _settle(url)


def _libpq(url: str) -> str:
    return psycopg.conninfo.make_conninfo(**parse_url(url).conninfo)


def fill_bare(url: str) -> None:
    """Empty the bare table and put ready rows into it."""
    identity = "integer" if url.startswith("sqlite") else "bigserial"
    series = f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {READY_JOBS}) SELECT i FROM n"
    with _connection(url) as connection:
        connection.execute("DROP TABLE IF EXISTS bare")
        connection.execute(BARE_TABLE.format(identity=identity))
        connection.execute(BARE_INDEX)
        connection.execute(f"INSERT INTO bare (state, priority) SELECT 'ready', 0 FROM ({series}) x")
    _settle(url)


def fill_store(jobs: int) -> Callable[[str], None]:
    """Empty the job table and plan ready jobs."""

    def fill(url: str) -> None:
        store = open_store(url, create=True)
        with _connection(url) as connection:
            for table in ("study_jobs", "job_needs", "past_attempts", "jobs"):
                connection.execute(f"DELETE FROM {table}" if url.startswith("sqlite") else f"TRUNCATE {table} CASCADE")
        plan_jobs(store, jobs)
        store.close()
        _settle(url)

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


def _settle(url: str) -> None:
    """Let the database tidy up before the clock starts, not while it runs."""
    with _connection(url) as connection:
        settle = "PRAGMA wal_checkpoint(TRUNCATE)" if isinstance(connection, sqlite3.Connection) else "VACUUM ANALYZE"
        connection.execute(settle)


def run_case(case: Case, seconds: float) -> None:
    """One round: fresh jobs, all processes from one gate, counts of what each did in the given seconds."""
    case.fill(case.url)
    gate = FORK.Barrier(PROCESSES)
    answers = FORK.SimpleQueue()
    workers = [FORK.Process(target=_work, args=(case, seconds, gate, answers)) for _ in range(PROCESSES)]
    for worker in workers:
        worker.start()
    case.counts.append([answers.get() for _ in workers])
    for worker in workers:
        worker.join()


def _work(case: Case, seconds: float, gate: Any, answers: Any) -> None:
    step = case.start(case.url)
    for _ in range(3):
        step()
    gate.wait()
    end = time.perf_counter() + seconds
    count = 0
    while time.perf_counter() < end:
        count += step()
    answers.put(count)


def throughput(engine: str, cases: list[Case], rounds: int, seconds: float) -> dict[str, Any]:
    """Jobs per second of each case, the smallest share of its fair part that a process got, the store over each other."""
    for at in range(rounds):
        for case in cases if at % 2 else reversed(cases):
            run_case(case, seconds)
    rates = {case.name: [sum(counts) / seconds for counts in case.counts] for case in cases}
    figures = {
        case.name: {
            "jobs_per_s": statistics.median(rates[case.name]),
            "least_of_fair_share": min(min(counts) * len(counts) / max(1, sum(counts)) for counts in case.counts),
        }
        for case in cases
    }
    over = {
        name: statistics.median(ours / max(theirs, 1e-9) for ours, theirs in zip(rates["store"], others, strict=True))
        for name, others in rates.items()
        if not name.startswith("store")
    }
    for name, values in figures.items():
        bound = f" (at least {BOUNDS[engine][name]:,})" if name in BOUNDS[engine] else ""
        share = values["least_of_fair_share"]
        print(f"{engine}: {name}: {values['jobs_per_s']:,.0f} jobs/s{bound}, least share {share:.2f}")
    for name, ratio in over.items():
        print(f"{engine}: store over {name}: {ratio:.2f}")
    return {"figures": figures, "store_over_others": over}


def postgresql_cases(fresh: Callable[[], str]) -> list[Case]:
    """Bare loop, store, store in batches, Optuna, procrastinate, each with a database of its own."""
    return [
        Case("bare loop", fresh(), start_bare, fill_bare),
        Case("store", fresh(), start_store(1), fill_store(READY_JOBS)),
        Case("store, batches of 16", fresh(), start_store(16), fill_store(BATCH_JOBS)),
        Case("optuna", fresh(), start_optuna, fill_optuna),
        Case("procrastinate", fresh(), start_procrastinate, fill_procrastinate),
    ]


def sqlite_cases(folder: Path) -> list[Case]:
    """Bare loop, store, Optuna, each on a file of its own."""
    return [
        Case("bare loop", f"sqlite:///{folder}/bare.db", start_bare, fill_bare_file),
        Case("store", f"sqlite:///{folder}/store.db", start_store(1), fill_store(READY_JOBS)),
        Case("optuna", f"sqlite:///{folder}/optuna.db", start_optuna, fill_optuna),
    ]


def fill_bare_file(url: str) -> None:
    """`fill_bare` in a file with the store's settings."""
    open_store(url, create=True).close()
    fill_bare(url)


def claim_scale(url: str, claims: int = 200) -> dict[str, float]:
    """Median milliseconds of one claim of each sort, at 1,000 and at 1,000,000 jobs, and their ratio."""
    requests: dict[str, dict[str, Any]] = {
        "any": {},
        "affinity": {"teachers": ["teacher-7"], "students": ["student-9"]},
        "kinds and time left": {"kinds": ["transfer", "logits"], "time_left_s": 3600.0},
        "time left": {"time_left_s": 3600.0},
    }
    found: dict[str, float] = {}
    for number in (1_000, MILLION):
        fill_store(number)(url)
        store = open_store(url)
        seconds: dict[str, list[float]] = {name: [] for name in requests}
        for _ in range(claims):
            for name, request in requests.items():
                start = time.perf_counter()
                store.claim("worker", **request)
                seconds[name].append(time.perf_counter() - start)
        found |= {f"{name}, {number:,} jobs, ms": 1000 * statistics.median(values) for name, values in seconds.items()}
        store.close()
    for name in requests:
        found[f"{name}, ratio"] = found[f"{name}, {MILLION:,} jobs, ms"] / found[f"{name}, 1,000 jobs, ms"]
    return found


def planning(url: str, number: int = MILLION) -> dict[str, float]:
    """Planning `number` jobs, 99 of 100 of which need another, in a process of its own; again; and their status."""
    answers = FORK.SimpleQueue()
    process = FORK.Process(target=_plan, args=(url, number, answers))
    process.start()
    found: dict[str, float] = answers.get()
    process.join()
    return found


def _plan(url: str, number: int, answers: Any) -> None:
    store = open_store(url, create=True)
    marks = [time.perf_counter()]
    new = plan_jobs(store, number, needs_every=100).new
    marks.append(time.perf_counter())
    plan_jobs(store, number, needs_every=100)
    marks.append(time.perf_counter())
    with tempfile.TemporaryDirectory() as folder:
        summary(store, "bench", LaunchFiles(root=Path(folder)))
    marks.append(time.perf_counter())
    seconds, again_s, status_s = (later - earlier for earlier, later in itertools.pairwise(marks))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    answers.put(
        {"jobs": new, "seconds": seconds, "again_seconds": again_s, "status_seconds": status_s, "peak_memory_gb": peak}
    )


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
            found["postgresql"] = throughput("postgresql", postgresql_cases(fresh), options.rounds, options.seconds)
        if "sqlite" in parts:
            found["sqlite"] = throughput("sqlite", sqlite_cases(Path(scratch)), options.rounds, options.seconds)
        for name, url in (("postgresql", fresh()), ("sqlite", f"sqlite:///{scratch}/scale.db")):
            if "plan" in parts:
                found[f"plan, {name}"] = _print(f"planning, {name}", planning(url))
            if "scale" in parts:
                found[f"claim, {name}"] = _print(f"one claim, {name}", claim_scale(url))
    if options.keep:
        packages = versions("psycopg", "sqlalchemy", "optuna", "procrastinate")
        conditions = {"when": datetime.now(UTC).isoformat(timespec="seconds"), "load_1min": os.getloadavg()[0]}
        conditions |= {"seconds": options.seconds, "rounds": options.rounds, "versions": packages}
        earlier = {
            name: part for name, part in read_result("jobs").items() if isinstance(part, dict) and "when" in part
        }
        new = {name: conditions | part for name, part in found.items()}
        print(f"kept in {write_result('jobs', earlier | new)}")


def _print(title: str, figures: dict[str, float]) -> dict[str, float]:
    for name, value in figures.items():
        print(f"{title}: {name}: {value:,.3f}")
    return figures


if __name__ == "__main__":
    main()
