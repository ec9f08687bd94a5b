"""The all-pairs engine against the pair jobs, row for row."""

from __future__ import annotations

from typing import Any

import numpy as np

EXACT = ("n", "n_classes", "n_positive_flips", "n_negative_flips")
MEASURED = (
    "acc_teacher", "acc_student", "delta_acc", "rho_pos", "rho_neg", "agreement", "error_overlap", "kappa", "entropy",
    "entropy_null", "top2_classes", "top5_classes", "top20_classes", "top50_classes", "top2_similarity", "top5_similarity",
    "top20_similarity", "top50_similarity",
)  # fmt: skip


def assert_pairs_agree(results: Any) -> None:
    """Every pair job's row stands in the all-pairs file, counts and measures equal to the bit."""
    by_jobs = results.complementarity.set_index(["teacher", "student"]).sort_index()
    at_once = results.all_pairs.set_index(["teacher", "student"]).sort_index()
    assert len(by_jobs) > 0
    at_once = at_once.loc[by_jobs.index]
    for column in EXACT:
        assert (by_jobs[column] == at_once[column]).all(), column
    for column in MEASURED:
        np.testing.assert_array_equal(_floats(by_jobs, column), _floats(at_once, column), err_msg=column)


def _floats(frame: Any, column: str) -> Any:
    return frame[column].to_numpy(dtype=float, na_value=np.nan)
