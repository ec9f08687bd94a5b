"""Every kind of fault, one function each, in one table: FAULTS.

A function strikes once and puts back what it took: a server that it killed runs again when it returns. It returns what it
struck, in a few words, or raises NothingToStrike. What is left to chance is taken from `draw`.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from kt_study.database import connect_postgresql, parse_url
from tests.faults import disk
from tests.faults.study import NothingToStrike, Scene
from tests.postgres import Server
from tests.slurm.dev_cluster import dev_cluster, eventually

SQLITE, SLURM = "sqlite", "slurm"
Strike = Callable[[Scene, random.Random], str]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One kind of fault, where it can happen, and what a launch has to ask for so that it does."""

    name: str
    strike: Strike
    backends: tuple[str, ...]
    launch: tuple[str, ...] = ()
    mounts: bool = False  # whether it needs the small disks, which only root can have


FAULTS: dict[str, Fault] = {}
"""By name, in the order of this file."""


def fault(*backends: str, launch: tuple[str, ...] = (), mounts: bool = False) -> Callable[[Strike], Strike]:
    """Enter a function into the table, under its name with spaces."""

    def enter(strike: Strike) -> Strike:
        name = strike.__name__.replace("_", " ")
        where = backends or (SQLITE, SLURM)
        FAULTS[name] = Fault(name=name, strike=strike, backends=where, launch=launch, mounts=mounts)
        return strike

    return enter


# Workers


@fault()
def worker_killed(scene: Scene, draw: random.Random) -> str:
    """SIGKILL: its job is found by its lease, its process or Slurm."""
    worker = scene.worker_at_work(draw)
    os.kill(worker["pid"], signal.SIGKILL)
    return str(worker["id"])


@fault()
def worker_stopped_past_its_lease(scene: Scene, draw: random.Random) -> str:
    """SIGSTOP and CONT: it comes back to a job that may be another's."""
    worker = scene.worker_at_work(draw)
    os.kill(worker["pid"], signal.SIGSTOP)
    try:
        seconds = scene.hold(draw)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker["pid"], signal.SIGCONT)
    return f"{worker['id']} for {seconds:.0f} s"


# PostgreSQL


@fault(SLURM)
def postgresql_killed(scene: Scene, draw: random.Random) -> str:
    """kill -9 of every process of the server, and a start some seconds later."""
    server = _server(scene)
    server.kill()
    time.sleep(seconds := draw.uniform(0.5, 12.0))
    server.restart()
    return f"away for {seconds:.0f} s"


@fault(SLURM)
def postgresql_frozen(scene: Scene, draw: random.Random) -> str:
    """SIGSTOP of every process of the server for longer than a lease: it neither answers nor refuses."""
    server = _server(scene)
    server.signal(signal.SIGSTOP)
    try:
        seconds = scene.hold(draw)
    finally:
        server.signal(signal.SIGCONT)
    return f"for {seconds:.0f} s"


@fault(SLURM)
def connections_terminated(scene: Scene, draw: random.Random) -> str:
    """pg_terminate_backend on every connection, a few times."""
    ended = 0
    with _connected(scene) as connection:
        for _ in range(draw.randint(3, 12)):
            found = connection.execute(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            ).fetchone()
            ended += found[0]
            time.sleep(draw.uniform(0.05, 1.0))
    return f"{ended} connections"


@fault(SLURM)
def connections_used_up(scene: Scene, draw: random.Random) -> str:
    """No connection is left for anybody, for longer than a lease."""
    with contextlib.ExitStack() as held:
        taken = 0
        with contextlib.suppress(psycopg.OperationalError):
            while True:
                held.enter_context(contextlib.closing(psycopg.connect(scene.study.url)))
                taken += 1
        seconds = scene.hold(draw)
    return f"{taken} taken for {seconds:.0f} s"


# The database, whichever it is


@fault()
def session_idle_in_a_transaction(scene: Scene, draw: random.Random) -> str:
    """Somebody's forgotten transaction, with locks on jobs, for longer than a lease."""
    locks = ["BEGIN IMMEDIATE"]
    if scene.server:
        locks = ["BEGIN", draw.choice(("LOCK TABLE jobs IN EXCLUSIVE MODE", "SELECT id FROM jobs FOR UPDATE"))]
    with _connected(scene) as connection:
        for statement in locks:
            connection.execute(statement)
        seconds = scene.hold(draw)
        connection.execute("ROLLBACK")
    return f"{locks[-1]} for {seconds:.0f} s"


@fault()
def long_reader(scene: Scene, draw: random.Random) -> str:
    """A transaction that has read everything and stays open."""
    with _connected(scene) as connection:
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ" if scene.server else "BEGIN")
        for table in ("jobs", "past_attempts", "workers", "transfers"):
            connection.execute(f"SELECT * FROM {table}").fetchall()
        seconds = scene.hold(draw)
        connection.execute("ROLLBACK")
    return f"for {seconds:.0f} s"


@fault(mounts=True)
def disk_full_under_the_database(scene: Scene, draw: random.Random) -> str:
    """Where SQLite's file is lie logs, checkpoints and the spool too."""
    with disk.full(scene.server.folder if scene.server else scene.folder):
        seconds = scene.hold(draw)
    if scene.server:
        scene.server.restart()  # it stops where its log cannot be written; its owner starts it when there is room
    return f"for {seconds:.0f} s"


# Slurm


@fault(SLURM)
def slurm_job_cancelled(scene: Scene, draw: random.Random) -> str:
    """scancel of one worker's job."""
    job = scene.worker_at_work(draw)["slurm_job"]
    scene.cluster.try_run("scancel", job)
    return str(job)


@fault(SLURM)
def preemption(scene: Scene, draw: random.Random) -> str:
    """A job of a partition that may take a worker's node."""
    worker = scene.worker_at_work(draw)
    scene.cluster.sbatch("sleep 3", "--partition=high", "--exclusive", f"--nodelist={worker['host']}")
    return f"{worker['slurm_job']} on {worker['host']}, partition {scene.partition}"


@fault(SLURM)
def slurmctld_down(scene: Scene, draw: random.Random) -> str:
    """No squeue, no sbatch, no requeue for a while."""
    os.kill(scene.cluster.status()["daemons"]["slurmctld"], signal.SIGKILL)
    time.sleep(seconds := draw.uniform(2.0, 12.0))
    assert dev_cluster(scene.cluster.root, "up").returncode == 0
    return f"for {seconds:.0f} s"


@fault(SLURM)
def node_down(scene: Scene, draw: random.Random) -> str:
    """An administrator sets a worker's node down, and up again."""
    node = scene.worker_at_work(draw)["host"]
    scene.cluster.run("scontrol", "update", f"nodename={node}", "state=down", "reason=faults")
    time.sleep(draw.uniform(2.0, 8.0))
    scene.cluster.try_run("scontrol", "update", f"nodename={node}", "state=resume")  # it may be back by itself
    return str(node)


@fault(SLURM, launch=("--time", "1"))
def time_limit(scene: Scene, draw: random.Random) -> str:
    """The launch asked for one minute: a worker comes to its end. Slurm looks every 30 s."""
    assert draw

    def stopped() -> list[Any]:
        return scene.ask(
            "SELECT DISTINCT message FROM past_attempts WHERE outcome = 'released' AND "
            "(message LIKE '%USR2%' OR message LIKE '%end of%')",
        )

    if not eventually(lambda: scene.is_over() or bool(stopped()), 100) or not stopped():
        raise NothingToStrike("no worker came to its time limit")
    return ", ".join(message for (message,) in stopped())


# Files


@fault()
def cache_files_deleted(scene: Scene, draw: random.Random) -> str:
    """A whole entry, or one file of it."""
    entry = draw.choice(scene.find(lambda: _entries(scene), "entry in the cache"))
    victim = draw.choice([entry, *sorted(entry.iterdir())]) if entry.is_dir() else entry
    if victim.is_dir():
        shutil.rmtree(victim)
    else:
        victim.unlink()
    return str(victim.relative_to(scene.cache))


@fault()
def cache_file_truncated(scene: Scene, draw: random.Random) -> str:
    """In place, as a file system does that lost the end of a file."""
    file = _cached_file(scene, draw)
    size = file.stat().st_size
    os.truncate(file, left := draw.randrange(size))
    return f"{file.relative_to(scene.cache)} at {left} of {size} bytes"


@fault()
def cache_file_flipped(scene: Scene, draw: random.Random) -> str:
    """One byte, in place."""
    file = _cached_file(scene, draw)
    place = draw.randrange(file.stat().st_size)
    with file.open("r+b") as stream:
        stream.seek(place)
        before = stream.read(1)[0]
        stream.seek(place)
        stream.write(bytes([before ^ (1 << draw.randrange(8))]))
    return f"{file.relative_to(scene.cache)} at byte {place}"


@fault()
def weights_deleted(scene: Scene, draw: random.Random) -> str:
    """Of a model that the study trained."""
    files = scene.find(lambda: sorted((scene.cache / "weights").glob("*.safetensors")), "weights")
    victim = draw.choice(files)
    victim.unlink()
    return str(victim.relative_to(scene.cache))


@fault(mounts=True)
def disk_full_under_the_cache(scene: Scene, draw: random.Random) -> str:
    """For longer than a lease."""
    with disk.full(scene.cache):
        seconds = scene.hold(draw)
    return f"for {seconds:.0f} s"


@fault(mounts=True)
def cache_not_writable(scene: Scene, draw: random.Random) -> str:
    """For longer than a lease."""
    with disk.read_only(scene.cache):
        seconds = scene.hold(draw)
    return f"for {seconds:.0f} s"


@fault(mounts=True)
def study_folder_not_writable(scene: Scene, draw: random.Random) -> str:
    """With SQLite's file in it, but for the cache; for longer than a lease."""
    with disk.read_only(scene.folder):
        seconds = scene.hold(draw)
    return f"for {seconds:.0f} s"


# Commands


@fault()
def pause_and_resume(scene: Scene, draw: random.Random) -> str:
    """Long enough for workers to stop."""
    scene.study.succeeds("pause")
    seconds = scene.hold(draw)
    scene.study.succeeds("resume")
    return f"for {seconds:.0f} s"


@fault()
def plan_during_the_run(scene: Scene, draw: random.Random) -> str:
    """The same study once more."""
    assert draw
    said = scene.study.succeeds("plan")
    assert "0 new jobs" in said, said
    return "0 new jobs"


@fault()
def collect_during_the_run(scene: Scene, draw: random.Random) -> str:
    """What there is so far."""
    assert draw
    return scene.study.succeeds("collect").strip().splitlines()[-1]


@fault()
def collect_killed(scene: Scene, draw: random.Random) -> str:
    """SIGKILL while it reads or writes."""
    process = subprocess.Popen(
        [sys.executable, "-m", "kt_study", "collect"],
        cwd=scene.folder,
        env=scene.study.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    time.sleep(seconds := draw.uniform(0.3, 4.0))
    process.kill()
    process.wait()
    return f"after {seconds:.1f} s"


def _server(scene: Scene) -> Server:
    assert scene.server is not None
    return scene.server


@contextlib.contextmanager
def _connected(scene: Scene) -> Iterator[Any]:
    """A connection to the study's database without kt-study in between, each statement its own transaction."""
    address = parse_url(scene.study.url)
    if address.is_sqlite:
        with contextlib.closing(sqlite3.connect(address.path, timeout=30.0, isolation_level=None)) as connection:
            yield connection
    else:
        with connect_postgresql(address) as connection:
            yield connection


def _entries(scene: Scene) -> list[Path]:
    """Entries of the logits cache, and the indices of data sets."""
    found = [path for path in (scene.cache / "logits").glob("??/*") if path.is_dir() and path.name[0] != "."]
    return sorted([*found, *(scene.cache / "datasets").glob("*.npz")]) if found else []


def _cached_file(scene: Scene, draw: random.Random) -> Path:
    """A file of the cache with something in it: logits, an index, or weights."""
    files = scene.find(
        lambda: [
            file
            for entry in [*_entries(scene), *(scene.cache / "weights").glob("*.safetensors")]
            for file in (sorted(entry.iterdir()) if entry.is_dir() else [entry])
            if file.stat().st_size
        ],
        "file in the cache",
    )
    return draw.choice(files)
