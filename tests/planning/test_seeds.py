"""Replicates: the same pairs under several seeds."""

from __future__ import annotations

from pathlib import Path

import pytest

from kt_study.errors import UsageError
from orchestrator.planning import Plan, PlanOptions
from tests.cli import refused, succeeds
from tests.planning.support import DIGITS, FOUR, assert_sound, plan_of, specs_of, write_study

TRANSFER = '[transfer]\npairs = 5\nobjectives = ["kl", "labels"]\nviews = 1\n'


def plan(folder: Path, more: str = "", **options: object) -> Plan:
    found = plan_of(folder, DIGITS, TRANSFER + more, *FOUR, options=PlanOptions(**options))  # type: ignore[arg-type]
    assert_sound(found)
    return found


def pairs_of(plan: Plan, seed: int) -> set[tuple[str, str, tuple[str, ...]]]:
    return {(spec.objective, spec.student, spec.teachers) for spec in specs_of(plan, "transfer") if spec.seed == seed}


@pytest.mark.parametrize("given", [{"more": "seeds = 3\n"}, {"seeds": 3}, {"more": "seeds = 2\n", "seeds": [3, 4, 5]}])
def test_each_pair_is_planned_under_each_seed(tmp_path: Path, given: dict[str, object]) -> None:
    once, found = plan(tmp_path / "once"), plan(tmp_path / "more", **given)  # type: ignore[arg-type]
    assert set(once.jobs) <= set(found.jobs)
    assert {spec.seed for spec in specs_of(found, "transfer")} == {3, 4, 5}
    assert pairs_of(found, 3) == pairs_of(found, 4) == pairs_of(found, 5) == pairs_of(once, 3)
    assert len({dataset.key for dataset in (*once.datasets, *found.datasets)}) == 1
    students = len({spec.student for spec in specs_of(once, "transfer")})
    assert (once.by_kind()["shared"], found.by_kind()["shared"]) == (students, 3 * students)


def test_teams_are_replicated_too(tmp_path: Path) -> None:
    found = plan(tmp_path, 'multi_teacher = ["soup"]\nteachers_per_student = 2\nseeds = [0, 9]\n')
    soups = specs_of(found, "soup")
    assert {spec.seed for spec in soups} == {0, 9}
    assert len({(spec.student, spec.teachers) for spec in soups}) * 2 * 2 == len(soups)


def test_a_seed_named_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="seeds 1, 1: a seed is named twice"):
        plan(tmp_path, "seeds = [1, 1]\n")


@pytest.mark.parametrize("seeds", ["0", "-1", "two", "1,x"])
def test_what_is_no_number_of_seeds_is_refused_and_nothing_planned(tmp_path: Path, seeds: str) -> None:
    write_study(tmp_path, DIGITS, TRANSFER, *FOUR)
    line = refused(tmp_path, "plan", f"--seeds={seeds}")
    assert line == f"kt-study: --seeds {seeds}: give a number from 1, or seeds as in 0,7,9"
    assert not (tmp_path / "kt-study.db").exists()


@pytest.mark.parametrize("seeds", ["0", "[]", "[-1]", '"two"'])
def test_a_study_file_with_impossible_seeds_is_refused(tmp_path: Path, seeds: str) -> None:
    write_study(tmp_path, DIGITS, f"{TRANSFER}seeds = {seeds}\n", *FOUR)
    assert "transfer.seeds" in refused(tmp_path, "plan").replace("[transfer] seeds", "transfer.seeds")


def test_the_dry_run_shows_the_price(tmp_path: Path) -> None:
    write_study(tmp_path, DIGITS, TRANSFER, *FOUR)
    assert "transfer: 10 runs; pairs per objective: 5 kl, 5 labels" in succeeds(tmp_path, "plan", "--dry-run")
    assert "transfer: 30 runs; pairs per objective: 5 kl, 5 labels" in succeeds(
        tmp_path, "plan", "--dry-run", "--seeds", "3"
    )
