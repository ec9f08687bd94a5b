"""What is planned now and what was planned before, in either order: a transfer is one job, kept if another job reads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pytest
from click.testing import CliRunner

from kt_study.hashing import job_digest
from kt_study.paths import StudyPaths
from kt_study.records import TransferSpec, as_spec
from kt_study.settings import Settings
from orchestrator.cli.commands.plan import command
from tests.databases import Databases, ask
from tests.planning.support import DIGITS, FOUR, write_study

TEAMS = 'teachers_per_student = 3\nteacher_order = "given"\naugment = "none"\n'


class Planner(Protocol):
    """Plans a study folder and returns the counts."""

    def __call__(self, folder: Path, modes: str, *, more: str = TEAMS, objective: str = "kl") -> dict[str, Any]: ...


@pytest.fixture
def plan(databases: Databases) -> Planner:
    """`kt-study plan` for one objective on all 12 pairs of four models."""

    def plan(folder: Path, modes: str, *, more: str = TEAMS, objective: str = "kl") -> dict[str, Any]:
        head = f'[transfer]\npairs = 12\nobjectives = ["{objective}"]\nmulti_teacher = {modes}\n{more}'
        write_study(folder, DIGITS, head, *FOUR)
        databases.settle(folder)
        done = CliRunner().invoke(command, ["--json", "--study", str(folder / "study.toml")], catch_exceptions=False)
        planned: dict[str, Any] = json.loads(done.stdout)
        return planned

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
    planned = plan(tmp_path, '["soup"]')
    assert (planned["jobs"]["soup"], planned["jobs"]["remake"], planned["new"]) == (4, 12, 16)
    waiting = "SELECT j.state, j.needs_open FROM jobs j WHERE j.kind = 'soup'"
    assert ask(tmp_path, waiting) == [("blocked", 3)] * 4
    assert ask(tmp_path, "SELECT DISTINCT state FROM jobs WHERE kind = 'remake'") == [("ready",)]
    assert plan(tmp_path, '["soup"]')["new"] == 0


def test_a_first_stage_is_made_again_before_the_passes_of_its_student(tmp_path: Path, plan: Planner) -> None:
    plan(tmp_path, "[]")
    ask(tmp_path, "UPDATE jobs SET state = 'done'")
    planned = plan(tmp_path, '["sequential"]')
    assert planned["jobs"]["remake"] == 4
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


def test_a_student_that_was_made_again_and_removed_is_made_once_more_for_who_reads_it(
    tmp_path: Path, plan: Planner
) -> None:
    plan(tmp_path, "[]")
    ask(tmp_path, "UPDATE jobs SET state = 'done'")
    files = [
        StudyPaths(root=tmp_path).weights(job)
        for (job,) in ask(tmp_path, "SELECT digest FROM jobs WHERE kind = 'transfer'")
    ]
    assert plan(tmp_path, '["soup"]', more=TEAMS.replace("= 3", "= 2"))["jobs"]["remake"] == 8
    ask(tmp_path, "UPDATE jobs SET state = 'done', needs_open = 0, worker = 'w', started_at = 0")
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    planned = plan(tmp_path, '["soup"]')
    assert (planned["jobs"]["soup"], planned["jobs"]["remake"]) == (4, 4), (
        "the third students, never kept; the others are there"
    )
    for file in files:
        file.unlink()
    planned = plan(tmp_path, '["soup"]')
    assert (planned["jobs"]["remake"], planned["new"]) == (12, 0)
    assert ask(tmp_path, "SELECT state, count(*) FROM jobs WHERE kind = 'remake' GROUP BY 1") == [("ready", 12)]
    waiting = "SELECT state, needs_open, count(*) FROM jobs WHERE kind = 'soup' AND state <> 'done' GROUP BY 1, 2"
    assert ask(tmp_path, waiting) == [("blocked", 3, 4)]


def test_a_later_stage_is_made_again_with_the_stages_before_it(tmp_path: Path, plan: Planner) -> None:
    """Sequences of two teachers are done, and their files removed; now a third teacher is to follow."""
    pairs = TEAMS.replace("= 3", "= 2")
    plan(tmp_path, '["sequential"]', more=pairs)
    ask(tmp_path, "UPDATE jobs SET state = 'done'")
    planned = plan(tmp_path, '["sequential"]')
    assert (
        planned["jobs"]["remake"] == 4 + 4
    )  # the second stages, never kept, and the first ones, which they start from
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


def _give_accuracies(folder: Path, accuracy: Callable[[int], float]) -> None:
    """Let every transfer be done, the one with the n-th smallest digest with that accuracy."""
    ask(folder, "UPDATE jobs SET state = 'done'")
    for number, (job,) in enumerate(ask(folder, "SELECT id FROM jobs WHERE kind = 'transfer' ORDER BY digest")):
        ask(folder, f"INSERT INTO transfers (job_id, acc_after) VALUES ({job}, {accuracy(number)})")


@pytest.mark.parametrize("tied", [False, True])
def test_keep_best_on_a_finished_study_makes_each_students_best_again(
    tmp_path: Path, plan: Planner, tied: bool
) -> None:
    best = TEAMS + 'keep = "best"\n'
    plan(tmp_path, "[]")
    _give_accuracies(tmp_path, lambda n: 50.0 if tied else 50.0 + 7 * n % 12)
    planned = plan(tmp_path, "[]", more=best)
    assert (planned["jobs"]["remake"], planned["new"]) == (4, 4)
    digests = ask(tmp_path, "SELECT student, digest FROM jobs WHERE kind = 'transfer' ORDER BY digest")
    expected = {}
    for number, (student, digest) in enumerate(digests):
        rank = (-50.0 if tied else -(50.0 + 7 * number % 12), digest)
        expected[student] = min(expected.get(student, (0.0, "")), rank)
    made = """SELECT t.student, t.digest FROM job_needs n JOIN jobs r ON r.id = n.job_id JOIN jobs t ON t.id = n.needs_id
        WHERE r.kind = 'remake' AND t.kind = 'transfer' AND r.spec LIKE '%"keep":"best"%'"""
    assert dict(ask(tmp_path, made)) == {student: digest for student, (_, digest) in expected.items()}
    assert plan(tmp_path, "[]", more=best)["new"] == 0
    ask(tmp_path, "UPDATE jobs SET state = 'done', worker = 'w', started_at = 0 WHERE kind = 'remake'")
    assert "remake" not in plan(tmp_path, "[]", more=best)["jobs"]
    planned = plan(tmp_path, "[]", more=TEAMS + 'keep = "all"\n')
    assert (planned["jobs"]["remake"], planned["new"]) == (12, 8), "kept as the best is not kept for good"
    kept = "SELECT count(*) FROM jobs WHERE kind = 'remake' AND state = 'ready' AND spec LIKE '%\"keep\":\"all\"%'"
    assert ask(tmp_path, kept) == [(12,)]


def test_the_best_that_was_kept_is_not_made_again(tmp_path: Path, plan: Planner) -> None:
    best = TEAMS + 'keep = "best"\n'
    plan(tmp_path, "[]", more=best)
    _give_accuracies(tmp_path, float)
    assert "remake" not in plan(tmp_path, "[]", more=best)["jobs"]


def test_students_that_were_kept_and_removed_are_let_go(tmp_path: Path, plan: Planner) -> None:
    plan(tmp_path, "[]", more=TEAMS + 'keep = "all"\n')
    ask(tmp_path, "UPDATE jobs SET state = 'done'")
    assert "remake" not in plan(tmp_path, "[]", more=TEAMS + 'keep = "all"\n')["jobs"]


_SHARED_NEEDS = """SELECT count(*) FROM job_needs n JOIN jobs j ON j.id = n.job_id JOIN jobs m ON m.id = n.needs_id
    WHERE m.kind = 'shared' AND j.kind = 'transfer'"""


def test_self_distillation_is_trained_once_a_student(tmp_path: Path, plan: Planner) -> None:
    """Four students, three teachers each: 12 rows of 4 trainings, without a teacher's pass over the training set."""
    planned = plan(tmp_path, "[]", objective="self_distillation")
    assert (planned["jobs"]["transfer"], planned["jobs"]["shared"]) == (12, 4)
    assert planned["pairs_by_objective"] == {"self_distillation": 12}
    assert ask(tmp_path, _SHARED_NEEDS) == [(12,)]
    assert ask(tmp_path, "SELECT DISTINCT teacher FROM jobs WHERE kind = 'shared'") == [(None,)]
    passes = "SELECT count(*) FROM jobs WHERE kind = 'logits' AND spec LIKE '%\"train\"%'"
    assert ask(tmp_path, passes) == [(4,)]
    assert plan(tmp_path, "[]", objective="self_distillation")["new"] == 0
    ask(tmp_path, "UPDATE jobs SET state = 'done'")
    planned = plan(tmp_path, "[]", objective="self_distillation")
    assert "shared" not in planned["jobs"]
    assert planned["new"] == 0


def test_a_study_that_was_begun_before_trainings_were_shared_goes_on(tmp_path: Path, plan: Planner) -> None:
    """Its transfers that are done stay so; those that are not are measured of what the shared training leaves."""
    plan(tmp_path, "[]", objective="self_distillation")
    ask(tmp_path, "DELETE FROM job_needs WHERE needs_id IN (SELECT id FROM jobs WHERE kind = 'shared')")
    ask(tmp_path, "DELETE FROM study_jobs WHERE job_id IN (SELECT id FROM jobs WHERE kind = 'shared')")
    ask(tmp_path, "DELETE FROM jobs WHERE kind = 'shared'")
    ask(tmp_path, "UPDATE jobs SET state = 'done' WHERE kind <> 'transfer'")
    student = ask(tmp_path, "SELECT min(student) FROM jobs WHERE kind = 'transfer'")[0][0]
    ask(tmp_path, f"UPDATE jobs SET state = 'done' WHERE student = '{student}'")
    assert plan(tmp_path, "[]", objective="self_distillation")["new"] == 3
    assert ask(tmp_path, f"SELECT count(*) FROM jobs WHERE kind = 'shared' AND student <> '{student}'") == [(3,)]
    assert ask(tmp_path, _SHARED_NEEDS) == [(9,)]
    assert ask(tmp_path, "SELECT state, count(*) FROM jobs WHERE kind = 'transfer' GROUP BY 1 ORDER BY 1") == [
        ("blocked", 9),
        ("done", 3),
    ]


def test_a_shared_training_keeps_its_student_where_a_transfer_does(tmp_path: Path, plan: Planner) -> None:
    kept = "SELECT spec LIKE '%\"keep\":\"all\"%', count(*) FROM jobs WHERE kind = 'shared' GROUP BY 1"
    plan(tmp_path / "none", "[]", objective="self_distillation")
    plan(tmp_path / "best", "[]", more=TEAMS + 'keep = "best"\n', objective="self_distillation")
    plan(tmp_path / "soup", '["soup"]', objective="self_distillation")
    assert [[(bool(all_), n) for all_, n in ask(tmp_path / name, kept)] for name in ("none", "best", "soup")] == [
        [(False, 4)],
        [(True, 4)],
        [(True, 4)],
    ]


def test_single_transfers_are_kept_for_sequences_that_wait(tmp_path: Path, plan: Planner) -> None:
    """The accuracies that put teachers in order come with the first launch, and so do the single transfers."""
    ascending = TEAMS.replace("given", "ascending")
    planned = plan(tmp_path, '["sequential"]', more=ascending)
    assert any("left out for now" in note for note in planned["notes"])
    kept = "SELECT count(*) FROM jobs WHERE kind = 'transfer' AND spec LIKE '%\"keep\":\"all\"%'"
    assert ask(tmp_path, kept) == [(12,)]
