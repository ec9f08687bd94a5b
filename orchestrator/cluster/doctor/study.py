"""Checks of the study folder and the job database from this machine."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from kt_study.database import Address, connect_postgresql, parse_url, unreachable
from kt_study.errors import DatabaseError, DiskError, KtStudyError, NothingPlanned, UntrustedFile
from kt_study.file_systems import NETWORK_FILE_SYSTEMS, file_system
from kt_study.files import write_private
from kt_study.pilots import LaunchFiles
from kt_study.store import open_store
from kt_study.trust import require_own
from orchestrator.cluster.doctor.findings import Finding, note, ok, wrong
from orchestrator.terminal.plural import counted

if TYPE_CHECKING:
    from kt_study.store import JobStore

ROOMY_GB, NEARLY_FULL_GB = 10.0, 0.5
SLOW_MS = 50.0
LATENCY_TRIES = 7


def folder(root: Path, *, has_slurm: bool) -> Iterator[Finding]:
    """The study folder: whether it can be written, its free space, and whether other machines see it."""
    scratch = LaunchFiles(root=root).folder / f"doctor-{socket.gethostname()}-{os.getpid()}"
    try:
        write_private(scratch, b"test", below=root)
        scratch.unlink()
        require_own(root, root)
    except UntrustedFile as error:
        yield wrong("study folder", str(error))
        return
    except (DiskError, OSError) as error:
        yield wrong("study folder", str(error), "work in a folder that you may write")
        return
    kind = file_system(root) or "an unknown file system"
    yield ok(
        "study folder", f"{root} on {kind}, a {'network' if kind in NETWORK_FILE_SYSTEMS else 'local'} file system"
    )
    free = shutil.disk_usage(root).free / 1e9
    if free > ROOMY_GB:
        yield ok("free space", f"{free:,.1f} GB")
    else:
        warn = note if free > NEARLY_FULL_GB else wrong
        do = "the logits cache may need more; kt-study plan --dry-run says how much"
        yield warn("free space", f"{free:,.1f} GB", do)
    if has_slurm and kind not in NETWORK_FILE_SYSTEMS:
        found = f"{kind} is usually a disk of this machine, and the nodes must see the study folder"
        yield note("shared?", found, "kt-study doctor --partition NAME checks it on a node")


def database(url: str, *, has_slurm: bool = False) -> Iterator[Finding]:
    """Kind, version, latency and location of the job database."""
    try:
        address = parse_url(url)
    except DatabaseError as error:
        yield wrong("database", str(error), "correct the URL")
        return
    try:
        kind = _server(address)
    except NothingPlanned as error:
        yield note("database", str(error))
        return
    except DatabaseError as error:
        yield wrong("database", str(error))
        return
    try:
        store = open_store(url, patience_s=5.0)
        studies, latency = len(store.studies()), _latency_ms(store)
    except KtStudyError as error:
        yield note("database", f"{kind}: {error}")
        return
    found = f"{kind}, {store.url}, {counted(studies, 'study', 'studies')}, {latency:.1f} ms per query"
    if latency < SLOW_MS:
        yield ok("database", found)
    else:
        yield note("database", found, "it is far away or busy; workers query it a few times per job")
    if address.is_sqlite and has_slurm:
        found = "SQLite works on one machine only: workers on more than one node need PostgreSQL"
        yield note("nodes", found, "kt-study db start --host $(hostname), and its URL in KT_STUDY_DB")


def _server(address: Address) -> str:
    """The database's kind, version and location, without reading its tables. Raises DatabaseError."""
    import psycopg

    if address.is_sqlite:
        if not Path(address.path).exists():
            raise NothingPlanned(f"there is no {address.path} yet; kt-study plan creates it")
        return f"SQLite {sqlite3.sqlite_version} on {file_system(address.path) or 'an unknown file system'}"
    try:
        with connect_postgresql(address) as connection:
            number = connection.info.server_version
    except psycopg.Error as error:
        raise unreachable(address, error) from None
    return f"PostgreSQL {number // 10000}.{number % 10000}"


def _latency_ms(store: JobStore) -> float:
    """The median time of a small query on an open connection."""
    times = []
    for _ in range(LATENCY_TRIES):
        began = time.perf_counter()
        store.studies()
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)
