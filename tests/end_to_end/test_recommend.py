"""A recommendation from real rows, planned, run and recommended from again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from kt_study.paths import StudyPaths
from orchestrator.results.recommend.cached_predictions import cached_predictions
from tests.cli import refused, succeeds
from tests.databases import Databases


@pytest.fixture(scope="module")
def study(digits: Path, tmp_path_factory: pytest.TempPathFactory, databases: Databases) -> Path:
    """The finished digits study, in a folder that may be added to."""
    folder = tmp_path_factory.mktemp("recommend") / "study"
    shutil.copytree(digits, folder, ignore=shutil.ignore_patterns("kt-study.db*"))
    databases.copy(digits, folder)
    databases.settle(folder)
    return folder


def recommended(study: Path, *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(succeeds(study, "recommend", *arguments, "--json"))
    return found


def test_a_recommendation_is_planned_run_and_measured(study: Path, results: Any) -> None:
    mine = results.transfers[results.transfers["objective"] == "kl_dp"]
    student = sorted(mine["student"])[0]
    before = recommended(study, "--student", student, "--classes", "3,8", "--top", "11")
    _assert_agrees(before, results, student)
    assert before["forecast"] is None and "(8, and 12 are needed)" in before["notes"][0]

    told = succeeds(
        study, "recommend", "--student", student, "--unmeasured", "--top", "4", "--out", "recommendation.json"
    )
    assert "not enough transfers of kl_dp" in told
    asked = [line["teacher"] for line in json.loads((study / "recommendation.json").read_text())["teachers"]]
    planned = json.loads(succeeds(study, "plan", "--from-recommendation", "--json"))
    assert (planned["transfers"], planned["pairs_by_objective"]) == (4, {"kl_dp": 4})
    succeeds(study, "launch", "--workers", "2", "--wait", timeout=900)

    after = recommended(study, "--student", student, "--top", "11")
    basis = {line["teacher"]: line["basis"] for line in after["teachers"]}
    measured = {*asked, *mine[mine["student"] == student]["teacher"]}
    assert {teacher for teacher, how in basis.items() if how == "measured"} == measured
    assert after["forecast"]["transfers"] == 12
    deltas = [line["delta"] for line in after["teachers"]]
    assert deltas == sorted(deltas, reverse=True)
    assert "0 new jobs" in succeeds(study, "plan", "--from-recommendation")
    # the study's own plan knows these transfers for its own
    rest = json.loads(succeeds(study, "plan", "--pairs", "132", "--json"))
    assert rest["jobs"]["transfer"] == 3 * 132
    assert rest["linked"] == 0 and rest["existing"] >= 16 + 4


def test_cached_predictions_agree_with_the_evaluations(study: Path, results: Any) -> None:
    pair = results.complementarity.iloc[0]
    for role in ("teacher", "student"):
        predictions = cached_predictions(StudyPaths(root=study), pair["dataset_key"], pair[f"{role}_key"])
        assert predictions is not None
        assert 100 * predictions.right.mean() == pytest.approx(pair[f"acc_{role}"])
        assert len(predictions.labels) == pair["n"]


def test_a_mistyped_student_gets_the_nearest_name(study: Path, results: Any) -> None:
    name = results.models["model"].iloc[0]
    assert f"did you mean {name!r}?" in refused(study, "recommend", "--student", name.replace("digits", "digit"))


def _assert_agrees(advice: dict[str, Any], results: Any, student: str) -> None:
    """Every line against the collected rows."""
    pairs = results.complementarity.set_index(["student", "teacher"]).loc[student]
    flips = results.class_flips[results.class_flips["student"] == student]
    transfers = results.transfers[results.transfers["objective"] == "kl_dp"].set_index(["student", "teacher"])
    assert len(advice["teachers"]) == 11
    for line in advice["teachers"]:
        row = pairs.loc[line["teacher"]]
        assert [line[name] for name in ("rho_pos", "rho_neg", "delta_acc")] == pytest.approx(
            [row["rho_pos"], row["rho_neg"], row["delta_acc"]]
        )
        for asked in line["classes"]:
            here = flips[(flips["teacher"] == line["teacher"]) & (flips["class_name"] == asked["name"])]
            assert (asked["positive"], asked["negative"]) == (
                here["positive_flips"].sum(),
                here["negative_flips"].sum(),
            )
        if line["basis"] == "measured":
            measured = transfers.loc[(student, line["teacher"])]
            assert line["delta"] == pytest.approx(measured["delta_transf"])
            assert line["gpu_hours"] == pytest.approx(measured["seconds"] / 3600)
