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
from kt_study.errors import DatabaseError, DiskError, KtStudyError, UntrustedFile
from kt_study.file_systems import NETWORK_FILE_SYSTEMS, file_system
from kt_study.files import write_private
from kt_study.pilots import LaunchFiles
from kt_study.store import open_store
from kt_study.trust import require_own
from orchestrator.cluster.doctor.findings import Finding
from orchestrator.terminal.plural import counted

if TYPE_CHECKING:
    from kt_study.store import JobStore

ROOMY_GB, NEARLY_FULL_GB = 10.0, 0.5
SLOW_MS = 50.0
LATENCY_TRIES = 7


def folder(root: Path, *, has_slurm: bool) -> Iterator[Finding]:
    """The study folder: can it be written, how much is free, would other machines see it."""
    scratch = LaunchFiles(root=root).folder / f"doctor-{socket.gethostname()}-{os.getpid()}"
    try:
        write_private(scratch, b"a word", below=root)
        scratch.unlink()
        require_own(root, root)
    except UntrustedFile as error:
        yield Finding(what="study folder", verdict="wrong", found=str(error))
        return
    except (DiskError, OSError) as error:
        yield Finding(what="study folder", verdict="wrong", found=str(error), do="work in a folder that you may write")
        return
    kind = file_system(root) or "an unknown file system"
    yield Finding(what="study folder", verdict="ok", found=f"{root} on {kind}, {sharing(kind)}")
    free = shutil.disk_usage(root).free / 1e9
    yield Finding(
        what="free space",
        verdict="ok" if free > ROOMY_GB else "note" if free > NEARLY_FULL_GB else "wrong",
        found=f"{free:,.1f} GB",
        do="" if free > ROOMY_GB else "the logits cache may need more; kt-study plan --dry-run says how much",
    )
    if has_slurm and kind not in NETWORK_FILE_SYSTEMS:
        yield Finding(
            what="shared?",
            verdict="note",
            found=f"{kind} is a disk of this machine as a rule, and the nodes must see the study folder",
            do="kt-study doctor --partition NAME asks a node",
        )


def sharing(kind: str) -> str:
    """What a file system's kind says on whether other machines see it."""
    return "a network file system" if kind in NETWORK_FILE_SYSTEMS else "a local file system"


def database(url: str, *, has_slurm: bool = False) -> Iterator[Finding]:
    """Kind, version, latency and place of the job database."""
    try:
        address = parse_url(url)
    except DatabaseError as error:
        yield Finding(what="database", verdict="wrong", found=str(error), do="correct the URL")
        return
    try:
        kind = _server(address)
    except DatabaseError as error:
        missing = address.is_sqlite and not Path(address.path).exists()
        yield Finding(what="database", verdict="note" if missing else "wrong", found=str(error))
        return
    try:
        store = open_store(url, patience_s=5.0)
        studies, latency = len(store.studies()), _latency_ms(store)
    except KtStudyError as error:
        yield Finding(what="database", verdict="note", found=f"{kind}: {error}")
        return
    yield Finding(
        what="database",
        verdict="ok" if latency < SLOW_MS else "note",
        found=f"{kind}, {store.url}, {counted(studies, 'study', 'studies')}, {latency:.1f} ms a query",
        do="" if latency < SLOW_MS else "is it far away, or busy? workers ask it a few times for each job",
    )
    if address.is_sqlite and has_slurm:
        yield Finding(
            what="nodes",
            verdict="note",
            found="SQLite is for one machine: workers on more than one node need PostgreSQL",
            do="kt-study db start --host $(hostname), and its URL in KT_STUDY_DB",
        )


def _server(address: Address) -> str:
    """The database's kind, version and place, without reading its tables. Raises DatabaseError."""
    import psycopg

    if address.is_sqlite:
        if not Path(address.path).exists():
            raise DatabaseError(f"there is no {address.path} yet; kt-study plan makes it")
        return f"SQLite {sqlite3.sqlite_version} on {file_system(address.path) or 'an unknown file system'}"
    try:
        with connect_postgresql(address) as connection:
            number = connection.info.server_version
    except psycopg.Error as error:
        raise unreachable(address, error) from None
    return f"PostgreSQL {number // 10000}.{number % 10000}"


def _latency_ms(store: JobStore) -> float:
    """The median time of a small query, the connection being open."""
    times = []
    for _ in range(LATENCY_TRIES):
        began = time.perf_counter()
        store.studies()
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)
