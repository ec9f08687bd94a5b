"""What is planned now and what was planned before, in either order: a transfer is one job, kept where somebody reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import pytest
from click.testing import CliRunner

from kt_study.hashing import job_digest
from kt_study.paths import StudyPaths
from kt_study.words import Settings, TransferSpec, as_spec
from orchestrator.commands.plan import command
from tests.databases import Databases, ask
from tests.planning.support import DIGITS, FOUR, write_study

TEAMS = 'teachers_per_student = 3\nteacher_order = "given"\naugment = "none"\n'


class Planner(Protocol):
    """Plans a study folder and says what came of it."""

    def __call__(self, folder: Path, modes: str, *, more: str = TEAMS) -> dict[str, Any]: ...


@pytest.fixture
def plan(databases: Databases) -> Planner:
    """`kt-study plan` for kl on all 12 pairs of four models."""

    def plan(folder: Path, modes: str, *, more: str = TEAMS) -> dict[str, Any]:
        head = f'[transfer]\npairs = 12\nobjectives = ["kl"]\nmulti_teacher = {modes}\n{more}'
        write_study(folder, DIGITS, head, *FOUR)
        databases.settle(folder)
        done = CliRunner().invoke(command, ["--json", "--study", str(folder / "study.toml")], catch_exceptions=False)
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    return plan


def test_keep_is_no_part_of_a_transfers_identity() -> None:
    spec = TransferSpec(dataset="d", student="s", teachers=("t",), objective="kl")
    digests = {
        job_digest("transfer", as_spec(TransferSpec(**{**_fields(spec), "settings": Settings(keep=keep)})))
        for keep in ("none", "best", "all")
    }
    assert digests == {job_digest("transfer", as_spec(spec))}
    other = TransferSpec(**{**_fields(spec), "settings": Settings(keep="all", epochs=1)})
    assert job_digest("transfer", as_spec(other)) not in digests


def _fields(spec: TransferSpec) -> dict[str, Any]:
    return {name: getattr(spec, name) for name in spec.__struct_fields__}


@pytest.mark.parametrize("modes", ['["soup"]', '["sequential"]'])
def test_either_order_of_planning_ends_in_the_same_jobs(modes: str, tmp_path: Path, plan: Planner) -> None:
    singles_first, singles_last = tmp_path / "first", tmp_path / "last"
    alone = plan(singles_first, "[]")
    assert alone["jobs"]["transfer"] == 12
    together = plan(singles_first, modes)
    assert together["new"] == sum(together["jobs"].values()) - sum(alone["jobs"].values())
    assert plan(singles_last, modes)["new"] == sum(together["jobs"].values())
    assert plan(singles_last, "[]")["new"] == 0

    jobs = "SELECT kind, digest, spec FROM jobs ORDER BY digest"
    assert ask(singles_first, jobs) == ask(singles_last, jobs)
    read = "SELECT DISTINCT m.digest FROM job_needs n JOIN jobs j ON j.id = n.job_id JOIN jobs m ON m.id = n.needs_id"
    parts = ask(singles_first, f"{read} WHERE m.kind = 'transfer' ORDER BY 1")
    kept = ask(singles_first, 'SELECT digest FROM jobs WHERE spec LIKE \'%"keep":"all"%\' ORDER BY 1')
    assert parts == kept != []


def test_students_that_were_not_kept_are_made_again_for_those_who_read_them(tmp_path: Path, plan: Planner) -> None:
    plan(tmp_path, "[]")
    ask(tmp_path, "UPDATE jobs SET state = 'done'")
    told = plan(tmp_path, '["soup"]')
    assert (told["jobs"]["soup"], told["jobs"]["remake"], told["new"]) == (4, 12, 16)
    waiting = "SELECT j.state, j.needs_open FROM jobs j WHERE j.kind = 'soup'"
    assert ask(tmp_path, waiting) == [("blocked", 3)] * 4
    assert ask(tmp_path, "SELECT DISTINCT state FROM jobs WHERE kind = 'remake'") == [("ready",)]
    assert plan(tmp_path, '["soup"]')["new"] == 0


def test_a_first_stage_is_made_again_before_the_passes_of_its_student(tmp_path: Path, plan: Planner) -> None:
    plan(tmp_path, "[]")
    ask(tmp_path, "UPDATE jobs SET state = 'done'")
    told = plan(tmp_path, '["sequential"]')
    assert told["jobs"]["remake"] == 4
    waits = """SELECT count(*) FROM job_needs n JOIN jobs j ON j.id = n.job_id JOIN jobs m ON m.id = n.needs_id
        WHERE m.kind = 'remake' AND j.kind = 'logits'"""
    assert ask(tmp_path, waits) == [(4,)]


def test_kept_students_are_not_made_again_unless_their_files_are_gone(tmp_path: Path, plan: Planner) -> None:
    plan(tmp_path, '["soup"]')
    ask(tmp_path, "UPDATE jobs SET state = 'done' WHERE kind <> 'soup'")
    files = [
        StudyPaths(root=tmp_path).weights(job)
        for (job,) in ask(tmp_path, "SELECT digest FROM jobs WHERE kind = 'transfer'")
    ]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert "remake" not in plan(tmp_path, '["soup"]')["jobs"]
    files[0].unlink()
    assert plan(tmp_path, '["soup"]')["jobs"]["remake"] == 1
    ask(tmp_path, "UPDATE jobs SET state = 'done' WHERE kind = 'soup'")
    assert "remake" not in plan(tmp_path, '["soup"]')["jobs"]  # who read it is done


def test_a_later_stage_is_made_again_with_the_stages_before_it(tmp_path: Path, plan: Planner) -> None:
    """Sequences of two teachers are done, and their files removed; now a third teacher is to follow."""
    pairs = TEAMS.replace("= 3", "= 2")
    plan(tmp_path, '["sequential"]', more=pairs)
    ask(tmp_path, "UPDATE jobs SET state = 'done'")
    told = plan(tmp_path, '["sequential"]')
    assert told["jobs"]["remake"] == 4 + 4  # the second stages, never kept, and the first ones, which they start from
    assert ask(tmp_path, "SELECT count(*) FROM jobs WHERE kind = 'transfer'") == [(12 + 4 + 4,)]


def test_a_running_transfer_that_keeps_nothing_is_made_again_after_it(tmp_path: Path, plan: Planner) -> None:
    plan(tmp_path, "[]")
    ask(tmp_path, "UPDATE jobs SET state = CASE WHEN kind = 'transfer' THEN 'running' ELSE 'done' END")
    assert plan(tmp_path, '["soup"]')["jobs"]["remake"] == 12
    assert ask(tmp_path, "SELECT DISTINCT state, needs_open FROM jobs WHERE kind = 'remake'") == [("blocked", 1)]


def test_keep_all_on_a_finished_study_makes_its_students_again(tmp_path: Path, plan: Planner) -> None:
    plan(tmp_path, "[]")
    ask(tmp_path, "UPDATE jobs SET state = 'done'")
    assert plan(tmp_path, "[]", more=TEAMS + 'keep = "all"\n')["jobs"]["remake"] == 12


def test_students_that_were_kept_and_removed_are_let_go(tmp_path: Path, plan: Planner) -> None:
    plan(tmp_path, "[]", more=TEAMS + 'keep = "all"\n')
    ask(tmp_path, "UPDATE jobs SET state = 'done'")
    assert "remake" not in plan(tmp_path, "[]", more=TEAMS + 'keep = "all"\n')["jobs"]


def test_single_transfers_are_kept_for_sequences_that_wait(tmp_path: Path, plan: Planner) -> None:
    """The accuracies that put teachers in order come with the first launch, and so do the single transfers."""
    ascending = TEAMS.replace("given", "ascending")
    told = plan(tmp_path, '["sequential"]', more=ascending)
    assert any("left out for now" in note for note in told["notes"])
    kept = "SELECT count(*) FROM jobs WHERE kind = 'transfer' AND spec LIKE '%\"keep\":\"all\"%'"
    assert ask(tmp_path, kept) == [(12,)]
