"""Rounds of the study under drawn faults, on both backends in turn, and the table of what became of them."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from kt_study.database import parse_url
from tests.faults import disk
from tests.faults.catalogue import FAULTS, SLURM, SQLITE, Fault
from tests.faults.study import PATIENCE_S, BrokenPromise, Left, NothingToStrike, Scene, check, states
from tests.postgres import Server
from tests.slurm.dev_cluster import DevCluster, dev_cluster
from tests.slurm.study import ClusterStudy

FAULTS_A_ROUND = 4
_STUDY_MIB, _CACHE_MIB, _SERVER_MIB = 96, 48, 256
_MARK = "KT_STUDY_FAULTS"
"""A variable in the environment of every process that a round starts, by which those that are left are found."""

Say = Callable[[str], None]


def backend_of(number: int) -> str:
    """The backend of a round; they are counted from 1."""
    return SQLITE if number % 2 else SLURM


def drawn(seed: int, number: int, kinds: Sequence[str], count: int = FAULTS_A_ROUND) -> list[Fault]:
    """The faults of a round, which depend on the seed and its number alone: all kinds come before one comes again."""
    backend = backend_of(number)
    names = [name for name in kinds if backend in FAULTS[name].backends]
    if not names:
        return []
    first = (number - 1) // 2 * count
    found = []
    for place in range(first, first + count):
        deck = random.Random(f"{seed} {backend} {place // len(names)}").sample(names, len(names))
        found.append(FAULTS[deck[place % len(names)]])
    return found


@dataclass(kw_only=True)
class Tally:
    """What became of each kind."""

    tried: Counter[str] = field(default_factory=Counter)
    survived: Counter[str] = field(default_factory=Counter)
    by_hand: Counter[str] = field(default_factory=Counter)
    skipped: dict[str, str] = field(default_factory=dict)  # kind -> why

    def table(self) -> str:
        """A line for each kind."""
        width = max(map(len, FAULTS))
        lines = [f"{'fault':<{width}}  tried  survived  helped by hand"]
        for name in FAULTS:
            counts = f"{self.tried[name]:>5}  {self.survived[name]:>8}  {self.by_hand[name]:>14}"
            lines.append(f"{name:<{width}}  {self.skipped.get(name) or counts}")
        totals = [sum(counts.values()) for counts in (self.tried, self.survived, self.by_hand)]
        return "\n".join([*lines, f"{'all':<{width}}  {totals[0]:>5}  {totals[1]:>8}  {totals[2]:>14}"])


@dataclass(kw_only=True)
class Ground:
    """Where rounds take place: a folder of the run's own, and for one backend a cluster and a server."""

    root: Path
    mounts: bool
    cluster: DevCluster | None = None
    server: Server | None = None

    @contextlib.contextmanager
    def scene(self, name: str, **variables: str) -> Iterator[Scene]:
        """A fresh study folder and database. Whatever was started in it is ended; after an error its files are kept."""
        folder = self.root / name / "study"
        url = self.server.database() if self.server else f"sqlite:///{folder / 'kt-study.db'}"
        study = ClusterStudy(folder=folder, url=url, cluster=self.cluster, variables={_MARK: str(folder), **variables})
        with self.disk(folder, _STUDY_MIB), self.disk(folder / "cache", _CACHE_MIB):
            try:
                yield Scene(study=study, server=self.server)
            except BaseException:
                _end(study)
                self._keep(folder, url)
                raise
            _end(study)
        self._clear(folder, url)

    def disk(self, folder: Path, mebibytes: int) -> contextlib.AbstractContextManager[None]:
        """A small disk at `folder`, or where there can be none a plain folder."""
        if self.mounts:
            return disk.small_disk(folder, mebibytes=mebibytes)
        folder.mkdir(parents=True, exist_ok=True)
        return contextlib.nullcontext()

    def _keep(self, folder: Path, url: str) -> None:
        kept = folder.with_name("kept")
        with contextlib.suppress(Exception):
            kept.with_suffix(".jobs.txt").write_text(states(url))
        shutil.copytree(folder, kept, symlinks=True)

    def _clear(self, folder: Path, url: str) -> None:
        shutil.rmtree(folder.parent)
        if self.server:
            name = parse_url(url).conninfo["dbname"]
            with psycopg.connect(self.server.url, autocommit=True) as connection:
                connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
        if self.cluster:
            assert dev_cluster(self.cluster.root, "up").returncode == 0
            self.cluster.wait_until_idle()


@contextlib.contextmanager
def on_a_cluster_of_its_own(root: Path, *, mounts: bool) -> Iterator[Ground]:
    """The ground of rounds on Slurm, with all that it needs. Raises OSError where this machine cannot have it."""
    with contextlib.ExitStack() as stack:
        stack.callback(dev_cluster, root / "cluster", "down")
        done = dev_cluster(root / "cluster", "up")
        if done.returncode:
            raise OSError(done.stderr.strip())
        cluster = DevCluster(root=root / "cluster", greeting=done.stdout)
        yield stack.enter_context(on_cluster(root, cluster, mounts=mounts))


@contextlib.contextmanager
def on_cluster(root: Path, cluster: DevCluster, *, mounts: bool) -> Iterator[Ground]:
    """The ground of rounds on Slurm, with a PostgreSQL of its own that has few connections and a small disk."""
    ground, folder = Ground(root=root, mounts=mounts, cluster=cluster), root / "postgresql"
    with ground.disk(folder, _SERVER_MIB):
        server = ground.server = Server(folder, max_connections="60", max_wal_size="64MB", min_wal_size="32MB")
        try:
            server.make_template()
            yield ground
        finally:
            server.end()


def unbroken(ground: Ground, name: str) -> Left:
    """What the study comes to where nothing is done to it."""
    with ground.scene(f"reference-{name}", PAUSE_S="0") as scene:
        scene.begin()
        left = scene.finish()
        check(left, left)
        return left


def play(
    ground: Ground, number: int, faults: Sequence[Fault], reference: Left, *, seed: int, tally: Tally, say: Say
) -> None:
    """One round. Raises BrokenPromise after the first promise that is not kept; its folder is kept then."""
    draw = random.Random(f"{seed} {number}")
    began = time.monotonic()
    struck: list[str] = []
    with ground.scene(f"round-{number}") as scene:
        scene.partition = draw.choice(("gpu", "low"))
        scene.begin(*dict.fromkeys(itertools.chain.from_iterable(fault.launch for fault in faults)))
        with contextlib.suppress(NothingToStrike):
            scene.wait_for_workers()
        for place, fault in enumerate(faults):
            _wait(scene, draw.uniform(0.0, 15.0) if place == 0 else draw.uniform(0.0, 4.0))
            try:
                what = fault.strike(scene, random.Random(f"{seed} {number} {place}"))
            except NothingToStrike as reason:
                say(f"  {fault.name}: not tried, {reason}")
                continue
            except AssertionError as refused:  # a command of the fault itself, such as plan, did not do its work
                tally.tried[fault.name] += 1
                raise BrokenPromise(f"{fault.name}: {refused}") from refused
            say(f"  {time.monotonic() - began:5.1f} s  {fault.name}: {what}")
            struck.append(fault.name)
            tally.tried[fault.name] += 1
        try:
            check(scene.finish(), reference)
        except BrokenPromise as broken:
            tally.by_hand.update(struck if _helps(scene, reference) else [])
            raise broken
    tally.survived.update(struck)
    say(f"  complete after {time.monotonic() - began:.0f} s")


def _wait(scene: Scene, seconds: float) -> None:
    limit = time.monotonic() + seconds
    while time.monotonic() < limit and not scene.is_over():
        time.sleep(0.1)


def _helps(scene: Scene, reference: Left) -> bool:
    """Whether a hand makes it whole: a resume, a retry and a second launch."""
    scene.study.run("resume")
    scene.study.run("retry")
    try:
        scene.start_launch()
        check(scene.finish(), reference)
    except BrokenPromise:
        return False
    return True


def _end(study: ClusterStudy) -> None:
    """End whatever the study started."""
    study.end()
    limit = time.monotonic() + PATIENCE_S
    while (left := _marked(str(study.folder))) and time.monotonic() < limit:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def _marked(value: str) -> list[int]:
    """Processes with the mark of a study folder in their environment."""
    mark = f"{_MARK}={value}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found
