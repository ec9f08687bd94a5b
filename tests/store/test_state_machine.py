"""Hypothesis drives the store and a simple model side by side, on both databases, and compares them after every step."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from kt_study.database import parse_url
from kt_study.errors import LeaseLost
from kt_study.records import Claim, PlannedJob
from kt_study.store import JobStore, Selection, WorkerRecord, open_store
from tests.postgres import Server
from tests.store.making import job as make_job
from tests.store.making import lasting, passing, result_rows, row
from tests.store.model import MAX_ATTEMPTS, MAX_CRASHES, Job, Model

WORKERS = ("w1", "w2")
STUDIES = ("one", "two")
KINDS = ("logits", "transfer")
numbers = st.integers(0, 11)


def job_of(number: int) -> tuple[PlannedJob, Job]:
    """The job with this number: even ones are logits, odd ones transfers that need some of the logits."""
    kind, priority = KINDS[number % 2], number % 3
    needs = frozenset({number - 1, (number * 5 + 1) // 2 * 2 % 12}) if number % 2 else frozenset[int]()
    planned = make_job(number, kind, needs=[job_of(need)[0] for need in sorted(needs)], priority=priority)
    return planned, Job(number=number, kind=kind, priority=priority, needs=needs)


class StoreMachine(RuleBasedStateMachine):
    """Every public change of the store, in any order, also by workers whose claims are stale."""

    store: JobStore

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.claims: list[Claim] = []
        self.ids: dict[int, int] = {}
        for worker in WORKERS:
            self.store.register(WorkerRecord(id=worker, host="node", pid=1))

    def _selection(self, study: str | None, kind: str | None, by_id: set[int] | None) -> tuple[Selection, set[int]]:
        held = set(self.model.jobs) if study is None else set(getattr(self.model.studies.get(study), "jobs", ()))
        chosen = {n for n in held if kind is None or self.model.jobs[n].kind == kind}
        ids = None
        if by_id is not None:
            chosen &= by_id
            ids = tuple(self.ids[n] for n in sorted(by_id & self.ids.keys()))
        return Selection(study=study, kind=kind, job_ids=ids), chosen

    @rule(study=st.sampled_from(STUDIES), chosen=st.lists(numbers, min_size=1, max_size=5))
    def plan(self, study: str, chosen: list[int]) -> None:
        wanted: list[int] = []
        for number in chosen:
            wanted += [number, *job_of(number)[1].needs]
        jobs = [job_of(number) for number in wanted]
        self.store.add_study(study, {})
        planned = self.store.plan(study, (planned for planned, _ in jobs))
        distinct = [job_of(number)[1] for number in dict.fromkeys(wanted)]
        assert (planned.new, planned.linked, planned.existing) == self.model.plan(study, distinct)
        self.ids = {found.spec["number"]: found.id for found in self.store.jobs()}

    @rule(
        worker=st.sampled_from(WORKERS),
        kinds=st.sampled_from([None, ["logits"], ["transfer", "logits"]]),
        limit=st.integers(1, 3),
        lease_s=st.sampled_from([3600.0, 3600.0, -1.0]),
    )
    def claim(self, worker: str, kinds: list[str] | None, limit: int, lease_s: float) -> None:
        claims = self.store.claim(worker, kinds=kinds, limit=limit, lease_s=lease_s)
        expected = self.model.claim(worker, kinds, limit, lease_s=lease_s)
        assert {claim.spec["number"] for claim in claims} == set(expected)
        self.claims += claims

    def _pick(self, at: int) -> Claim:
        return self.claims[at % len(self.claims)]

    def _if_held(self, claim: Claim, outcome: str, act: Any) -> bool:
        """Run `act`; it must raise LeaseLost unless the claim is held, or says again what was said before."""
        if self.model.holds(claim):
            act()
            return True
        job = self.model.of(claim)
        said_before = len(job.outcomes) >= claim.fence and job.outcomes[claim.fence - 1] == outcome
        if said_before and (outcome != "done" or job.state == "done"):
            act()
            return False
        with pytest.raises(LeaseLost):
            act()
        return False

    @precondition(lambda self: self.claims)
    @rule(at=st.integers(0, 99))
    def finish(self, at: int) -> None:
        claim = self._pick(at)
        if self._if_held(claim, "done", lambda: self.store.finish(claim, row(float(claim.fence)))):
            self.model.finish(self.model.of(claim))

    @precondition(lambda self: self.claims)
    @rule(at=st.lists(st.integers(0, 99), min_size=1, max_size=3, unique=True))
    def finish_many(self, at: list[int]) -> None:
        claims = list({self._pick(one).job_id: self._pick(one) for one in at}.values())
        lost = self.store.finish_many([(claim, row(float(claim.fence))) for claim in claims])
        for claim in claims:
            job = self.model.of(claim)
            done_before = job.state == "done" and job.fence == claim.fence
            assert (claim.job_id in lost) == (not self.model.holds(claim) and not done_before)
            if self.model.holds(claim):
                self.model.finish(job)

    @precondition(lambda self: self.claims)
    @rule(at=st.integers(0, 99))
    def release(self, at: int) -> None:
        claim = self._pick(at)
        if self._if_held(claim, "released", lambda: self.store.release(claim, reason="preempted")):
            self.model.release(self.model.of(claim))

    @precondition(lambda self: self.claims)
    @rule(at=st.integers(0, 99), transient=st.booleans())
    def fail(self, at: int, transient: bool) -> None:
        claim = self._pick(at)
        said = []
        act = lambda: said.append(self.store.fail(claim, passing() if transient else lasting()))  # noqa: E731
        job = self.model.of(claim)
        before = job.outcomes[claim.fence - 1] if len(job.outcomes) >= claim.fence else ""
        if self._if_held(claim, before if before in ("failed", "retried") else "failed", act):
            assert said == [self.model.fail(job, transient)]

    @precondition(lambda self: self.claims)
    @rule(at=st.lists(st.integers(0, 99), max_size=4), worker=st.sampled_from(WORKERS))
    def heartbeat(self, at: list[int], worker: str) -> None:
        self.model.look()
        newest = {claim.job_id: claim for claim in sorted((self._pick(one) for one in at), key=lambda c: c.fence)}
        reply = self.store.heartbeat(worker, dict.fromkeys(newest.values()), lease_s=3600.0)
        held = {claim.job_id: self.model.of(claim) for claim in newest.values() if self.model.holds(claim)}
        assert reply.lost == newest.keys() - held.keys()
        assert reply.paused == {job_id for job_id, job in held.items() if job.paused}
        assert reply.cancelled == {
            claim.job_id
            for claim in newest.values()
            if self.model.of(claim).state == "cancelled" and self.model.of(claim).fence == claim.fence
        }
        for job in held.values():
            self.model.renew(job, 3600.0)

    @rule()
    def expire(self) -> None:
        self.model.look()
        assert self.store.expire(grace_s=0.0) == self.model.expire()

    @rule()
    def time_passes(self) -> None:
        """More than any lease, while other workers send heartbeats."""
        self.store.heartbeat("another", {})
        self.model.look()
        self._shift("UPDATE jobs SET lease_until = lease_until - 7200")
        self.model.time_passes(7200.0)

    @rule()
    def everything_stands_still(self) -> None:
        """The database is frozen or away, or every process is."""
        self._shift("UPDATE jobs SET lease_until = lease_until - 7200")
        self._shift("UPDATE lease_checks SET checked_at = checked_at - 7200")
        self.model.stand_still()

    def _shift(self, statement: str) -> None:
        """What the clock does, done to the times it is compared with."""
        self.store._database.write(lambda connection: connection.exec_driver_sql(statement))

    @rule(worker=st.sampled_from(WORKERS))
    def end_leases(self, worker: str) -> None:
        assert self.store.end_leases([worker], "node down") == self.model.expire({worker})

    @rule(
        act=st.sampled_from(["cancel", "pause", "resume", "retry"]),
        study=st.sampled_from([None, *STUDIES]),
        kind=st.sampled_from([None, None, *KINDS]),
        by_id=st.one_of(st.none(), st.none(), st.sets(numbers, max_size=4)),
    )
    def select(self, act: str, study: str | None, kind: str | None, by_id: set[int] | None) -> None:
        selection, chosen = self._selection(study, kind, by_id)
        whole = self.model.studies.get(study or "") if kind is None and by_id is None else None
        if whole and act in ("cancel", "pause", "resume"):
            whole.cancelled = whole.cancelled or act == "cancel"
            whole.paused = {"pause": True, "resume": False}.get(act, whole.paused)
        count = getattr(self.store, act)(selection)
        expected = {
            "cancel": lambda: self.model.cancel(chosen, study),
            "pause": lambda: self.model.pause(chosen, study),
            "resume": lambda: self.model.resume(chosen),
            "retry": lambda: self.model.retry(chosen, by_id=by_id is not None),
        }[act]()
        assert count == expected

    @invariant()
    def the_two_agree(self) -> None:
        found = {each.spec["number"]: each for each in self.store.jobs()}
        assert found.keys() == self.model.jobs.keys()
        for number, each in found.items():
            job = self.model.jobs[number]
            assert (number, str(each.state), each.paused) == (number, job.state, job.paused)
            assert (number, each.attempts_used, each.crashes) == (number, job.attempts, job.crashes)
            assert (number, each.fence, each.needs_open) == (number, job.fence, self.model.open_needs(job))

    def teardown(self) -> None:
        """What takes longer is compared once, at the end."""
        written = [found["job_id"] for found in {found["id"]: found for found in result_rows(self.store)}.values()]
        for number, job in self.model.jobs.items():
            detail = self.store.job(self.ids[number])
            outcomes = [str(attempt.outcome) for attempt in detail.attempts if attempt.outcome]
            assert (number, outcomes) == (number, job.outcomes)
            assert written.count(detail.id) == job.rows == (job.state == "done")
        for study in self.model.studies:
            unfinished = {job_id for job_id, _ in self.store.unfinished(study)}
            assert unfinished == {self.ids[number] for number in self.model.unfinished(study)}
        self.store.close()


def _options(examples: int) -> settings:
    return settings(
        max_examples=examples, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck),
        derandomize=False,
    )  # fmt: skip


def _open(url: str) -> JobStore:
    return open_store(url, first_backoff_s=0.0, max_attempts=MAX_ATTEMPTS, max_crashes=MAX_CRASHES)


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder in memory where there is one: these databases live for a second."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


def test_on_sqlite(scratch: Path) -> None:
    template = scratch / "template.db"
    open_store(f"sqlite:///{template}", create=True).close()

    class OnSqlite(StoreMachine):
        def __init__(self) -> None:
            for leftover in scratch.glob("kt-study.db*"):
                leftover.unlink()
            shutil.copy(template, scratch / "kt-study.db")
            self.store = _open(f"sqlite:///{scratch / 'kt-study.db'}")
            self.file = sqlite3.connect(scratch / "kt-study.db")
            super().__init__()

        def teardown(self) -> None:
            assert self.file.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            self.file.close()
            super().teardown()

    run_state_machine_as_test(OnSqlite, settings=_options(150))


def test_on_postgresql(postgres_server: Server) -> None:
    url = postgres_server.database()

    class OnPostgresql(StoreMachine):
        def __init__(self) -> None:
            with psycopg.connect(**parse_url(url).conninfo, autocommit=True) as connection:
                connection.execute(
                    "TRUNCATE studies, jobs, job_needs, study_jobs, past_attempts, workers RESTART IDENTITY CASCADE"
                )
            self.store = _open(url)
            super().__init__()

    run_state_machine_as_test(OnPostgresql, settings=_options(30))
