"""All objectives and the three multi-teacher modes on the demo zoo, to the end, planned in two goes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import kt_study
from kt_study.objectives import OBJECTIVES
from kt_study.paths import StudyPaths
from kt_study.store import open_store
from tests.cli import succeeds
from tests.databases import Databases, ask, url_of
from worker.data.loader import evaluation_views
from worker.models.build import build_model

STUDENT, TEACHERS = "digits/mixer_b", ("digits/resmlp", "digits/vit_b")
PARTITIONED = {"kl_dp", "kl_dp_unsupervised"}

FILE = """
[study]
name = "all-modes"
[dataset]
kind = "digits"
[models]
universe = "digits-zoo"
include = {models}
[complementarity]
pairs = 0
[transfer]
pairs = 2
students = ["{student}"]
objectives = {objectives}
multi_teacher = {modes}
teachers_per_student = 2
epochs = 1
batch_size = 64
lr = 1e-3
views = 1
augment = "none"
"""


@pytest.fixture(scope="module")
def objectives(databases: Databases) -> list[str]:
    """All of them on SQLite; on PostgreSQL those that differ in the jobs that they need."""
    return list(OBJECTIVES) if databases.kind == "sqlite" else ["kl", "kl_dp", "self_distillation"]


@pytest.fixture(scope="module")
def folder(digits: Path, tmp_path_factory: pytest.TempPathFactory, databases: Databases, objectives: list[str]) -> Path:
    """A study of one student and two teachers of the trained zoo: one objective alone, then everything."""
    folder = tmp_path_factory.mktemp("modes") / "study"
    shutil.copytree(digits / "cache", folder / "cache")
    databases.copy(digits, folder)
    for chosen, modes in ((["kl_dp"], []), (objectives, ["sequential", "parallel", "soup"])):
        text = FILE.format(models=json.dumps([STUDENT, *TEACHERS]), student=STUDENT, objectives=chosen, modes=modes)
        (folder / "study.toml").write_text(text)
        databases.settle(folder)
        succeeds(folder, "plan")
        succeeds(folder, "launch", "--workers", "1", "--wait", timeout=600)
    succeeds(folder, "collect")
    return folder


@pytest.fixture(scope="module")
def transfers(folder: Path) -> pd.DataFrame:
    return kt_study.load(folder / "results").transfers.query("study == 'all-modes'")


def test_every_job_is_done_at_the_first_try(folder: Path, objectives: list[str]) -> None:
    seen = json.loads(succeeds(folder, "status", "--json"))
    singles, stages, parallel = 2 * len(objectives), len(objectives), len(PARTITIONED & set(objectives))
    assert seen["counts"]["transfer"] == {"done": singles + stages + parallel}
    assert seen["counts"]["soup"] == {"done": len(objectives)}
    assert seen["counts"]["remake"] == {"done": 2}  # kl_dp's students, which nobody wanted the first time
    assert seen["counts"]["shared"] == {
        "done": len({"self_distillation", "labels"} & set(objectives))
    }  # no teacher asked
    assert all(set(states) == {"done"} for states in seen["counts"].values())
    assert seen["failures"] == []
    assert ask(folder, "SELECT job_id FROM attempts GROUP BY job_id HAVING count(*) > 1") == []


def test_every_objective_has_a_row_of_every_mode(transfers: pd.DataFrame, objectives: list[str]) -> None:
    counts = transfers.groupby(["objective", "multi_teacher", "stage"]).size().to_dict()
    expected: dict[tuple[str, str, int], int] = {}
    for objective in objectives:
        expected |= {(objective, "single", 0): 2, (objective, "sequential", 1): 1, (objective, "soup", 0): 1}
        if objective in PARTITIONED:
            expected[objective, "parallel", 0] = 1
    assert counts == expected
    assert not transfers["diverged"].any()


def test_every_row_satisfies_the_identities(transfers: pd.DataFrame) -> None:
    rows = transfers
    rho = rows["rho_neg_after"] - rows["rho_neg_before"] - (rows["rho_pos_after"] - rows["rho_pos_before"])
    for same in (
        rows["acc_after"] - rows["acc_before"],
        rows["knowledge_gain"] - rows["knowledge_loss"],
        rho,
    ):
        np.testing.assert_allclose(same, rows["delta_transf"], rtol=0, atol=1e-9)
    against = rows["rho_pos_after"] - rows["rho_neg_after"]
    np.testing.assert_allclose(against, rows["acc_teacher"] - rows["acc_after"], rtol=0, atol=1e-9)
    assert rows["acc_before"].nunique() == 1


def test_a_sequence_goes_on_from_the_single_transfer_of_its_weakest_teacher(
    folder: Path, transfers: pd.DataFrame
) -> None:
    epochs = kt_study.load(folder / "results").transfer_epochs
    singles = transfers[transfers["multi_teacher"] == "single"].set_index(["objective", "teacher"])
    accuracy = singles.loc["kl"]["acc_teacher"]
    weaker, stronger = sorted(TEACHERS, key=lambda name: (accuracy[name], name))
    for stage in transfers[transfers["multi_teacher"] == "sequential"].itertuples():
        first = singles.loc[(stage.objective, weaker)]
        assert stage.teacher == f"{weaker}+{stronger}"
        assert stage.delta_stage == pytest.approx(stage.acc_after - first["acc_after"])
        curve = epochs[(epochs["teacher"] == stage.teacher) & (epochs["objective"] == stage.objective)]
        curve = curve[curve["job_id"] == stage.job_id].sort_values("epoch")
        assert list(zip(curve["stage"], curve["epoch"], strict=True)) == [(0, 1), (1, 2)]
        assert curve["acc"].tolist() == [first["acc_after"], stage.acc_after]


def test_a_soup_needs_the_single_transfers_and_no_other(folder: Path, objectives: list[str]) -> None:
    needs = """SELECT s.spec, t.spec FROM jobs s JOIN job_needs n ON n.job_id = s.id JOIN jobs t ON t.id = n.needs_id
        WHERE s.kind = 'soup' AND t.kind = 'transfer'"""
    found = [(json.loads(soup), json.loads(single)) for soup, single in ask(folder, needs)]
    assert len(found) == 2 * len(objectives)
    for soup, single in found:
        assert "multi_teacher" not in single["settings"]
        assert single["objective"] == soup["objective"]
        assert single["teachers"][0] in soup["teachers"]


@pytest.mark.parametrize("objective", ["kl", "kl_dp"])
def test_a_soups_predictions_are_those_of_the_mean_of_its_parts(
    objective: str, folder: Path, transfers: pd.DataFrame
) -> None:
    """Of kl_dp the parts were made again."""
    paths = StudyPaths(root=folder)
    digest = dict(ask(folder, "SELECT id, digest FROM jobs"))
    rows = transfers[transfers["objective"] == objective]
    parts = [load_file(paths.weights(digest[job])) for job in rows[rows["multi_teacher"] == "single"]["job_id"]]
    assert len(parts) == 2
    (soup,) = rows[rows["multi_teacher"] == "soup"].itertuples()
    store = open_store(url_of(folder))
    student = store.model(soup.student_key)
    model = build_model(student, paths, torch.device("cpu"))
    mean = {name: np.mean([part[name].double().numpy() for part in parts], axis=0) for name in parts[0]}
    model.load_state_dict({name: torch.from_numpy(value) for name, value in mean.items()})
    views = evaluation_views(store.dataset(soup.dataset_key), "val", student, paths, device=torch.device("cpu"))
    with torch.inference_mode():
        predicted = torch.cat([model(images).argmax(1) for images, _ in views.batches(np.arange(views.n), 64)])
    np.testing.assert_array_equal(predicted.numpy(), np.load(folder / soup.predictions))
