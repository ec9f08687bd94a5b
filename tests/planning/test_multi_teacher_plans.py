"""Several teachers planned from a study file: what is shared, what comes first, what is left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from kt_study.multi_teacher import TRANSFERRED, transfer_digest
from kt_study.objectives import OBJECTIVES
from orchestrator.planning import Plan
from tests.cli import succeeds
from tests.databases import Databases, ask
from tests.planning.support import DIGITS, FOUR, assert_sound, plan_of, specs_of, write_study

TEAMS = 'teachers_per_student = 3\nteacher_order = "given"\naugment = "none"\n'


def plan(folder: Path, modes: str, *, objectives: str = '["kl_dp"]', pairs: int = 12, more: str = TEAMS) -> Plan:
    transfer = f"[transfer]\npairs = {pairs}\nobjectives = {objectives}\nmulti_teacher = {modes}\n"
    found = plan_of(folder, DIGITS, transfer + more, *FOUR)
    assert_sound(found)
    return found


def test_soups_add_no_transfer_where_all_single_ones_are_planned(tmp_path: Path) -> None:
    """Four models: 12 ordered pairs, and each student's team is the other three."""
    found = plan(tmp_path, '["soup"]')
    assert (found.by_kind()["transfer"], found.by_kind()["soup"]) == (12, 4)
    singles = {transfer_digest(spec): spec for spec in specs_of(found, "transfer")}
    for job in found.jobs.values():
        if job.kind == "soup":
            parts = [need for need in job.needs if need in singles]
            assert {singles[part].teachers[0] for part in parts} == set(job.spec["teachers"])
            assert {singles[part].student for part in parts} == {job.spec["student"]}
    assert {spec.settings.keep for spec in singles.values()} == {"all"}


def test_only_what_a_soup_reads_is_kept(tmp_path: Path) -> None:
    found = plan(tmp_path, '["soup"]', pairs=5, more=TEAMS.replace("= 3", "= 2"))
    read = {need for job in found.jobs.values() if job.kind == "soup" for need in job.needs}
    for spec in specs_of(found, "transfer"):
        assert (spec.settings.keep == "all") == (transfer_digest(spec) in read)


def test_a_sequence_begins_with_a_single_transfer(tmp_path: Path) -> None:
    """12 single ones, of which 4 are first stages; each of the 4 sequences adds two stages."""
    found = plan(tmp_path, '["sequential"]')
    assert found.by_kind()["transfer"] == 12 + 4 * 2
    specs = {transfer_digest(spec): spec for spec in specs_of(found, "transfer")}
    stages = [spec for spec in specs.values() if spec.settings.multi_teacher == "sequential"]
    assert sorted(len(spec.teachers) for spec in stages) == [2] * 4 + [3] * 4
    for spec in stages:
        needs = [specs[need] for need in found.jobs[transfer_digest(spec)].needs if need in specs]
        assert [before.teachers for before in needs] == [spec.teachers[:-1]]
        assert needs[0].settings.keep == "all"
    between = [model for model in found.others if model.weights.startswith(TRANSFERRED)]
    assert {model.weights.removeprefix(TRANSFERRED) for model in between} <= set(specs)
    assert len(between) == 4 * 2


def test_a_study_without_several_teachers_keeps_nothing(tmp_path: Path) -> None:
    assert {spec.settings.keep for spec in specs_of(plan(tmp_path, "[]"), "transfer")} == {"none"}


def test_the_order_of_teachers_is_no_setting_of_single_transfers(tmp_path: Path) -> None:
    ascending = plan(tmp_path / "a", "[]", more='teacher_order = "ascending"\n')
    descending = plan(tmp_path / "b", "[]", more='teacher_order = "descending"\n')
    assert list(ascending.jobs) == list(descending.jobs)


def test_all_objectives_and_three_modes(tmp_path: Path) -> None:
    """Parallel teachers need a data partition that can choose among several, which two have; of the others it is said."""
    n = len(OBJECTIVES)
    objectives = "[" + ", ".join(f'"{name}"' for name in OBJECTIVES) + "]"
    found = plan(tmp_path, '["sequential", "parallel", "soup"]', objectives=objectives)
    parallel = [spec for spec in specs_of(found, "transfer") if spec.settings.multi_teacher == "parallel"]
    assert {spec.objective for spec in parallel} == {"kl_dp", "kl_dp_unsupervised"}
    assert len(parallel) == 2 * 4
    assert found.by_kind()["soup"] == n * 4
    assert found.by_kind()["transfer"] == n * (12 + 8) + 8
    assert any(note.startswith("parallel teachers are left out for kl, ") for note in found.notes)
    assert set(found.pairs_by_objective().values()) == {12 + 4}


def test_no_pairs_no_teams(tmp_path: Path) -> None:
    assert set(plan(tmp_path, '["soup"]', pairs=0).by_kind()) == {"logits", "complementarity"}


def test_sequences_wait_until_accuracies_are_known(tmp_path: Path) -> None:
    more = TEAMS.replace("given", "descending")
    waiting = plan(tmp_path / "a", '["sequential"]', more=more)
    assert waiting.by_kind()["transfer"] == 12
    assert any("left out for now" in note and "plan again" in note for note in waiting.notes)
    accuracy = {model.key: 10.0 * number for number, model in enumerate(waiting.models)}
    transfer = f'[transfer]\nobjectives = ["kl_dp"]\nmulti_teacher = ["sequential"]\n{more}'
    found = plan_of(tmp_path / "b", DIGITS, transfer, *FOUR, accuracies=lambda _: accuracy)
    assert found.by_kind()["transfer"] == 12 + 4 * 2
    for spec in specs_of(found, "transfer"):
        assert list(spec.teachers) == sorted(spec.teachers, key=lambda key: -accuracy[key])


def test_accuracies_come_from_the_database(tmp_path: Path, databases: Databases) -> None:
    transfer = f'[transfer]\nobjectives = ["kl"]\nmulti_teacher = ["sequential"]\n{TEAMS.replace("given", "ascending")}'
    write_study(tmp_path, DIGITS, transfer, *FOUR)
    databases.settle(tmp_path)
    assert "left out for now" in succeeds(tmp_path, "plan")
    keys = ask(tmp_path, "SELECT id, student FROM jobs WHERE kind = 'logits' AND spec LIKE '%\"val\"%'")
    ((dataset,),) = ask(tmp_path, "SELECT key FROM datasets")
    for number, (job, model) in enumerate(keys):
        row = f"({job}, '{dataset}', '{model}', 'val', {number}.0)"
        ask(tmp_path, f"INSERT INTO evaluations (job_id, dataset_key, model_key, split, acc) VALUES {row}")
    assert len(keys) == 4
    told = succeeds(tmp_path, "plan")
    assert "left out for now" not in told
    # Two later stages for each student, and their starts' predictions; the first stages were planned, and kept, before.
    assert f"{4 * 2 + 4 * 2} new jobs" in told


@pytest.mark.parametrize("mode", ["sequential", "parallel", "soup"])
def test_each_mode_alone_has_one_run_a_student(mode: str, tmp_path: Path) -> None:
    found = plan(tmp_path, f'["{mode}"]', pairs=1)
    assert len(found.runs) == 1 + 4
