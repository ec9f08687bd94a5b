"""Planning a study that was planned before: what is new, what is done, and what the study file does not name any more."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from kt_study.store import JobStore, Selection, open_store
from orchestrator.cli.commands import cancel as cancel_command
from orchestrator.cli.commands import plan as plan_command
from tests.databases import Databases
from tests.planning.support import DIGITS, FOUR, write_study
from tests.store.making import lasting

PAIRS = '[complementarity]\npairs = "all"\n[transfer]\npairs = 2\nobjectives = ["kl"]\naugment = "none"\n'


class Study:
    """A study folder of random models and its database."""

    def __init__(self, folder: Path, databases: Databases) -> None:
        self.folder, self._databases = folder, databases

    def write(self, *models: str) -> None:
        write_study(self.folder, DIGITS, PAIRS, *models)
        self._databases.settle(self.folder)

    def plan(self, *arguments: str) -> str:
        return self._run(plan_command.command, *arguments)

    def counts(self, *arguments: str) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.plan("--json", *arguments))
        return told

    def cancel(self, *arguments: str) -> str:
        return self._run(cancel_command.command, *arguments)

    def _run(self, command: Any, *arguments: str) -> str:
        asked = ["--study", str(self.folder / "study.toml"), *arguments]
        return CliRunner().invoke(command, asked, catch_exceptions=False).stdout

    @property
    def store(self) -> JobStore:
        return open_store(self._databases.url(self.folder))

    def states(self) -> Counter[str]:
        return Counter(str(job.state) for job in self.store.jobs())


@pytest.fixture
def study(tmp_path: Path, databases: Databases) -> Study:
    """Four models: 4 + 2 passes at most, a job for all pairs, two transfers."""
    made = Study(tmp_path, databases)
    made.write(*FOUR)
    return made


def finish(store: JobStore, limit: int = 100) -> int:
    claims = store.claim("worker", limit=limit)
    return len(claims) - len(store.finish_many([(claim, {}) for claim in claims]))


def test_a_dry_run_tells_the_new_from_those_that_are_there_and_done(study: Study) -> None:
    n = sum(study.counts("--dry-run")["jobs"].values())
    assert not (study.folder / "kt-study.db").exists()
    first = study.counts()
    assert (first["new"], first["existing"], first["done"]) == (n, 0, 0)
    assert finish(study.store, limit=2) == 2
    again = study.counts("--dry-run")
    assert (again["new"], again["existing"], again["done"]) == (0, n, 2)
    assert 0 < again["forwards"] < first["forwards"]
    said = study.plan("--dry-run").splitlines()
    assert said[-1] == f"0 new jobs, {n} planned before, 2 of them done; dry run: nothing written"
    assert any(f"cost of the jobs that are not done: {again['forwards']:,} images" in line for line in said)
    wider = study.counts("--dry-run", "--pairs", "3")
    assert wider["new"] > 0 and wider["existing"] == n
    assert sum(study.states().values()) == n


def test_another_studys_jobs_are_told_apart(study: Study) -> None:
    n = study.counts()["new"]
    path = study.folder / "study.toml"
    path.write_text(path.read_text().replace('name = "small"', 'name = "other"'))
    for arguments in (["--dry-run"], []):
        told = study.counts(*arguments)
        assert (told["new"], told["linked"], told["existing"]) == (0, n, 0)
    assert study.counts("--dry-run")["existing"] == n


def test_the_next_step_fits_what_is_left_to_do(study: Study) -> None:
    assert study.plan().splitlines()[-1].endswith("planned before; next: kt-study launch")
    store = study.store
    for claim in store.claim("worker", kinds=["logits"], limit=100):
        store.fail(claim, lasting())
    assert study.plan().splitlines()[-1].endswith("planned before, 5 failed; next: kt-study status"), (
        "the rest is blocked"
    )
    store.retry(Selection())
    while finish(store):
        assert "of them done; next: kt-study launch" in study.plan() or not store.workload().ready_now
    said = study.plan()
    assert said.splitlines()[-1].endswith("planned before, all done; next: kt-study collect")
    assert "GPU-hours" not in said


def test_what_the_study_file_does_not_name_any_more_is_said_and_dropped(study: Study) -> None:
    n = study.counts()["new"]
    store = study.store
    (failed,) = store.claim("worker")
    store.fail(failed, lasting())
    finish(store, limit=1)
    study.write(*FOUR[:2])
    told = study.counts("--dry-run")
    kept = sum(told["jobs"].values()) - told["new"]
    unfinished = [job_id for job_id, _ in store.unfinished("small")]
    said = study.plan()
    dropped = study.counts()["unplanned"]
    assert f"are not in this plan any more: {dropped}; `kt-study cancel --unplanned` cancels them" in said
    assert 0 < dropped == told["unplanned"] <= n - kept
    assert "unplanned" not in study.counts("--pairs", "2"), "a plan of other sizes says nothing about the rest"

    assert study.cancel("--unplanned", "--job", str(unfinished[-1])) in ("0 jobs cancelled\n", "1 job cancelled\n")
    study.cancel("--unplanned")
    left = {digest for _, digest in store.unfinished("small")}
    assert left and left <= store.states(left, "small").keys()
    assert study.counts()["unplanned"] == 0
    assert study.states()["cancelled"] == dropped
    study.write(*FOUR)
    assert study.counts()["new"] == 0
    assert study.states()["cancelled"] == 0, "planning opens cancelled jobs again"
