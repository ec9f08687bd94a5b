"""The study of the fault run: planned and launched once, struck by faults, and then compared with one that was left alone."""

from __future__ import annotations

import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from kt_study.records import JobState
from kt_study.schema import RESULT_TABLES, Column
from tests.databases import ask_at
from tests.postgres import Server
from tests.slurm.dev_cluster import DevCluster, eventually
from tests.slurm.study import ClusterStudy, zoo_study

NAME = "faults"
LEASE_S = 6
PAUSE_S = 0.12
"""In every training step of a round, so that faults find something under way; not while the reference is made."""
STUDY = zoo_study(NAME, epochs=3, pause_s=PAUSE_S, zoo=("digits/mixer_a",), objectives=("kl", "xe_kl", "kl_dp"))

PATIENCE_S = 120.0
"""For a target, such as a worker at work; there is none while workers are replaced."""
END_S = 900.0
"""For the end of a round after its last fault: backoffs and Slurm's own waits, on a busy machine."""

UNITS_OF_MEASUREMENTS = ("seconds", "1/s", "bytes")
"""Units of the result columns that differ from one unbroken run to the next."""

Found = TypeVar("Found")


class NothingToStrike(Exception):
    """The study ended, or had no target, before a fault could strike."""


class BrokenPromise(Exception):
    """What must hold after any fault does not: the lines say what."""


@dataclass(kw_only=True)
class Scene:
    """One round: a study under way, and what faults can be done to."""

    study: ClusterStudy
    server: Server | None = None  # of PostgreSQL; None on SQLite
    partition: str = "gpu"
    launch: subprocess.Popen[str] | None = None

    @property
    def folder(self) -> Path:
        """The study folder, a small disk of its own."""
        return self.study.folder

    @property
    def cache(self) -> Path:
        """Another small disk."""
        return self.study.folder / "cache"

    @property
    def cluster(self) -> DevCluster:
        """The development cluster."""
        assert self.study.cluster is not None
        return self.study.cluster

    def begin(self, *options: str) -> None:
        """Plan, and launch in the background; once each, whatever happens."""
        self.study.write(STUDY)
        self.study.succeeds("plan")
        self.start_launch(*options)

    def wait_for_workers(self) -> None:
        """Until a worker has registered: a launch that cannot reach its database at all ends, as a slip in the URL would."""
        self.find(lambda: self.ask("SELECT id FROM workers"), "worker")

    def start_launch(self, *options: str) -> None:
        """Launch in the background, and wait there until the study is complete."""
        where = ("--partition", self.partition, "--cpus-per-task", "3") if self.study.cluster else ()
        self.launch = self.study.start(
            "launch", "--workers", "2", "--device", "cpu", "--threads", "1", "--lease", str(LEASE_S), "--wait",
            *where, *options,
        )  # fmt: skip

    def ask(self, sql: str) -> list[Any]:
        """Rows of the study's database."""
        return ask_at(self.study.url, sql)

    def is_over(self) -> bool:
        """Whether the launch has ended."""
        return self.launch is None or self.launch.poll() is not None

    def _is_over_with_every_node(self) -> bool:
        """is_over(); nodes that Slurm drained are resumed meanwhile: that is the site's task, and no help for the study."""
        if self.study.cluster:
            self.study.cluster.resume_nodes()
        return self.is_over()

    def find(self, look: Callable[[], Found | None], what: str) -> Found:
        """What `look` finds, as soon as it does. Raises NothingToStrike."""
        limit = time.monotonic() + PATIENCE_S
        while time.monotonic() < limit and not self.is_over():
            if found := look():
                return found
            time.sleep(0.3)
        raise NothingToStrike(f"no {what}")

    def hold(self, draw: random.Random) -> float:
        """Let a fault last for longer than a lease. Returns the seconds."""
        seconds = LEASE_S + draw.uniform(1.0, 5.0)
        time.sleep(seconds)
        return seconds

    def worker_at_work(self, draw: random.Random) -> dict[str, Any]:
        """Id, host, pid and slurm_job of a worker that holds a job."""
        rows = self.find(
            lambda: self.ask(
                "SELECT w.id, w.host, w.pid, w.slurm_job FROM workers w JOIN jobs j ON j.worker = w.id "
                "WHERE j.state = 'running' AND w.ended_at IS NULL ORDER BY w.started_at",
            ),
            "worker at work",
        )
        return dict(zip(("id", "host", "pid", "slurm_job"), draw.choice(rows), strict=True))

    def finish(self) -> Left:
        """Wait for the launch's end, collect, and read what is there. Raises BrokenPromise."""
        assert self.launch is not None
        if not eventually(self._is_over_with_every_node, END_S, every_s=1.0):
            raise BrokenPromise(f"launch --wait has not ended after {END_S:.0f} s\n{states(self.study.url)}")
        if code := self.launch.returncode:
            failures = [line for line in states(self.study.url).splitlines() if "  failed  " in line]
            raise BrokenPromise("\n".join([f"launch --wait ended with {code}", *failures]))
        collected = self.study.run("collect")
        if collected.returncode:
            raise BrokenPromise(f"collect ended with {collected.returncode}: {collected.stderr.strip()}")
        return read(self.folder, self.study.url)


@dataclass(kw_only=True)
class Left:
    """What a round has left: jobs and rows by natural key, in the database and in parquet."""

    jobs: list[tuple[str, str, str, int]]  # kind, digest, state, `done` attempts
    rows: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]]  # by table: key and values, in the order of keys
    parquet: dict[str, list[str]] = field(default_factory=dict)  # by table: values as text, sorted


def read(folder: Path, url: str) -> Left:
    """What lies in the study's database and its results folder."""
    jobs = ask_at(
        url,
        "SELECT j.kind, j.digest, j.state, (SELECT count(*) FROM attempts a WHERE a.job_id = j.id AND a.outcome = 'done') "
        "FROM jobs j ORDER BY j.kind, j.digest",
    )
    return Left(
        jobs=[tuple(job) for job in jobs],
        rows={name: _rows(url, name) for name in RESULT_TABLES},
        parquet={name: _parquet(folder / "results" / name, name) for name in RESULT_TABLES},
    )


def is_measurement(column: Column) -> bool:
    """Whether a column's values are another run's own: times, throughput, memory, and where it was."""
    return column.unit in UNITS_OF_MEASUREMENTS or column.name == "host"


def _compared(table: str) -> list[str]:
    return [column.name for column in RESULT_TABLES[table].columns if not is_measurement(column)]


def _rows(url: str, table: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    columns, key = _compared(table), RESULT_TABLES[table].key
    chosen = ", ".join(["j.kind", "j.digest", *(f"t.{name}" for name in (*key, *columns))])
    found = ask_at(url, f"SELECT {chosen} FROM {table} t LEFT JOIN jobs j ON j.id = t.job_id")
    parts = [(tuple(row[: 2 + len(key)]), dict(zip(columns, row[2 + len(key) :], strict=True))) for row in found]
    return sorted(parts, key=lambda part: repr(part[0]))


def _parquet(folder: Path, table: str) -> list[str]:
    import pyarrow.parquet as pq

    compared = _compared(table)
    rows = [row for path in sorted(folder.rglob("part-*.parquet")) for row in pq.read_table(path).to_pylist()]
    return sorted(repr([row[name] for name in compared]) for row in rows)


def check(left: Left, reference: Left) -> None:
    """Each job done once, no row doubled, none missing, every value as without faults. Raises BrokenPromise."""
    broken = [
        f"{kind} {digest}: {state}, with {done} attempts that are done"
        for kind, digest, state, done in left.jobs
        if (state, done) != (JobState.DONE, 1)
    ]
    planned = {job[:2] for job in reference.jobs}
    broken += [f"{kind} {digest}: never planned before" for kind, digest in {job[:2] for job in left.jobs} ^ planned]
    for table, wanted in reference.rows.items():
        broken += [f"{table}: {line}" for line in _differences(left.rows[table], wanted)]
        if left.parquet[table] != reference.parquet[table]:
            broken.append(f"{table}: parquet has other rows than after the unbroken run")
    if broken:
        raise BrokenPromise("\n".join(broken))


def _differences(found: list[tuple[Any, dict[str, Any]]], wanted: list[tuple[Any, dict[str, Any]]]) -> list[str]:
    doubled = [key for key, count in Counter(key for key, _ in found).items() if count > 1]
    lines = [f"{key} is doubled" for key in doubled]
    there, expected = dict(found), dict(wanted)
    lines += [f"{key} is missing" for key in expected if key not in there]
    lines += [f"{key} is not of the unbroken run" for key in there if key not in expected]
    for key in there.keys() & expected.keys():
        for name, value in expected[key].items():
            if there[key][name] != value:
                lines.append(f"{key}: {name} is {there[key][name]!r} and not {value!r}")
    return lines


def states(url: str) -> str:
    """Jobs and their attempts, a line each, for whoever looks for the reason."""
    rows = ask_at(
        url,
        "SELECT j.id, j.kind, j.state, j.attempts, j.crashes, a.fence, a.worker, a.outcome, a.error, a.message "
        "FROM jobs j LEFT JOIN attempts a ON a.job_id = j.id ORDER BY j.id, a.fence",
    )
    return "\n".join("  ".join("-" if value is None else str(value) for value in row) for row in rows)
