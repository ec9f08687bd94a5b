"""The main job, end to end: what the commands promise, and every row against an independent computation."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kt_study import load
from kt_study.cache import forwards
from kt_study.datasets import open_split
from kt_study.paths import StudyPaths
from kt_study.store import open_store
from tests.cli import kt_study, succeeds
from tests.databases import ask, url_of
from tests.end_to_end.agreement import assert_pairs_agree
from worker.models.build import build_model

OBJECTIVES = ("labels", "kl", "kl_dp")


def test_planning_again_adds_nothing(digits: Path) -> None:
    assert "0 new jobs" in succeeds(digits, "plan", "--pairs", "8")


def test_launching_again_says_that_there_is_nothing_to_do(digits: Path) -> None:
    assert succeeds(digits, "launch", "--workers", "2", "--wait").startswith("nothing to do")


def test_status_counts_every_job_as_done(digits: Path) -> None:
    seen = json.loads(succeeds(digits, "status", "--json"))
    assert all(set(states) == {"done"} for states in seen["counts"].values())
    assert {"train", "logits", "complementarity", "transfer"} <= set(seen["counts"])
    assert seen["counts"]["complementarity"]["done"] == 132
    assert seen["counts"]["transfer"]["done"] == 24
    assert seen["failures"] == []


def test_there_is_one_row_for_each_job(results: Any) -> None:
    assert len(results.complementarity) == 132
    assert len(results.transfers) == 24
    assert len(results.transfer_epochs) == 24 * 10
    assert set(results.transfers["objective"]) == set(OBJECTIVES)


def test_every_row_satisfies_the_identities(results: Any) -> None:
    pairs, transfers = results.complementarity, results.transfers
    _same(pairs["rho_pos"] - pairs["rho_neg"], pairs["delta_acc"])
    _same(pairs["acc_teacher"] - pairs["acc_student"], pairs["delta_acc"])
    _same(transfers["acc_after"] - transfers["acc_before"], transfers["delta_transf"])
    _same(transfers["knowledge_gain"] - transfers["knowledge_loss"], transfers["delta_transf"])
    change_neg = transfers["rho_neg_after"] - transfers["rho_neg_before"]
    change_pos = transfers["rho_pos_after"] - transfers["rho_pos_before"]
    _same(change_neg - change_pos, transfers["delta_transf"])


def test_class_flips_add_up_to_the_pair(results: Any) -> None:
    flips = results.class_flips.groupby(["teacher", "student"])[["positive_flips", "negative_flips"]].sum()
    for pair in results.complementarity.itertuples():
        key = (pair.teacher, pair.student)
        positive, negative = flips.loc[key] if key in flips.index else (0, 0)
        assert (positive, negative) == (pair.n_positive_flips, pair.n_negative_flips)
        assert math.isclose(pair.rho_pos, 100 * positive / pair.n)


def test_rows_equal_a_plain_loop_over_models_and_scans(digits: Path, results: Any) -> None:
    """scikit-learn's own scans, PIL, torch: nothing of the data path, the cache or the measures."""
    predictions, labels = _plain_predictions(digits)
    for pair in results.complementarity.itertuples():
        teacher, student = predictions[pair.teacher] == labels, predictions[pair.student] == labels
        assert pair.n == len(labels)
        assert math.isclose(pair.acc_teacher, 100 * teacher.mean())
        assert math.isclose(pair.rho_pos, 100 * (teacher & ~student).mean(), abs_tol=1e-9)
        assert math.isclose(pair.rho_neg, 100 * (~teacher & student).mean(), abs_tol=1e-9)
    for row in results.transfers.itertuples():
        before = predictions[row.student] == labels
        after = np.load(digits / row.predictions) == labels
        assert math.isclose(row.acc_before, 100 * before.mean())
        assert math.isclose(row.acc_after, 100 * after.mean())
        assert math.isclose(row.knowledge_gain, 100 * (after & ~before).mean(), abs_tol=1e-9)


def test_each_model_was_forwarded_once_for_each_split_and_view(digits: Path) -> None:
    passes = [(one["model"], one["split"], one.get("view", -1)) for one in forwards(StudyPaths(root=digits))]
    assert len(passes) == len(set(passes))
    assert sum(split == "val" for _, split, _ in passes) == 12


def test_every_attempt_is_the_only_one_of_its_job(digits: Path) -> None:
    assert ask(digits, "SELECT job_id, count(*) FROM attempts GROUP BY job_id HAVING count(*) > 1") == []
    assert ask(digits, "SELECT DISTINCT state FROM jobs") == [("done",)]


def test_the_data_partition_does_better_than_plain_kl(results: Any) -> None:
    """The paper's finding, on the demo zoo."""
    mean = results.transfers.groupby("objective")["delta_transf"].mean()
    assert mean["kl_dp"] > mean["kl"]


def test_all_pairs_at_once_agree_with_the_pair_jobs(digits: Path) -> None:
    succeeds(digits, "plan", "--complementarity-pairs", "all", "--pairs", "8")
    succeeds(digits, "launch", "--workers", "1", "--wait", timeout=300)
    succeeds(digits, "collect")
    assert_pairs_agree(load(digits / "results"))


@pytest.mark.parametrize("query", ["success-rate", "complementarity", "SELECT count(*) AS n FROM transfers"])
def test_queries_answer(digits: Path, query: str) -> None:
    assert json.loads(succeeds(digits, "query", query, "--format", "json"))


def test_the_report_is_written(digits: Path) -> None:
    page = Path(succeeds(digits, "report", timeout=300).strip().splitlines()[-1])
    assert page.is_file()
    assert page.parent == digits / "report"


def test_the_log_of_a_job_is_one_step_away(digits: Path) -> None:
    ((job,),) = ask(digits, "SELECT id FROM jobs WHERE kind = 'transfer' LIMIT 1")
    assert f"job {job} (transfer)" in succeeds(digits, "status", "--job", str(job), "--log")


def test_a_planned_pair_more_than_there_are_is_refused(digits: Path) -> None:
    done = kt_study(digits, "plan", "--pairs", "133")
    assert done.returncode == 2
    assert "132" in done.stderr


def _same(left: Any, right: Any) -> None:
    np.testing.assert_allclose(left.to_numpy(float), right.to_numpy(float), rtol=0, atol=1e-9)


def _plain_predictions(folder: Path) -> tuple[dict[str, Any], Any]:
    """Classes predicted by each trained model for the validation scans, and their labels; scikit-learn's arrays."""
    from PIL import Image
    from sklearn.datasets import load_digits

    paths = StudyPaths(root=folder)
    store = open_store(url_of(folder))
    (dataset,) = store.datasets()
    models = [model for model in store.models() if model.weights.startswith("train:")]
    scans = load_digits()
    split = open_split(dataset, "val", paths)
    chosen = [int(name.removeprefix("digit-")) for name in split.listing.names]
    greys = (scans.images[chosen] * 255 // 16).astype(np.uint8)
    images = np.stack([np.asarray(Image.fromarray(grey).resize((32, 32), Image.Resampling.BICUBIC)) for grey in greys])
    pixels = torch.from_numpy(images).float().div(255).sub(0.5).div(0.5)[:, None].repeat(1, 3, 1, 1)
    with torch.inference_mode():
        predictions = {
            model.name: build_model(model, paths, torch.device("cpu"))(pixels).argmax(1).numpy() for model in models
        }
    return predictions, scans.target[chosen]
