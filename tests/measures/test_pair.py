"""One ordered pair against plain loops, scikit-learn and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from sklearn.metrics import accuracy_score, cohen_kappa_score, jaccard_score

from kt_study.errors import DataError
from kt_study.schema import COMPLEMENTARITY
from tests.measures.draws import draw_models, labelled_predictions
from worker.measures.arrays import Ints
from worker.measures.pair import measure_pair


def flips_by_loop(labels: Ints, teacher: Ints, student: Ints, n_classes: int) -> tuple[list[int], list[int]]:
    positive, negative = [0] * n_classes, [0] * n_classes
    for y, t, s in zip(labels.tolist(), teacher.tolist(), student.tolist(), strict=True):
        positive[y] += t == y and s != y
        negative[y] += t != y and s == y
    return positive, negative


@given(labelled_predictions(2))
@settings(max_examples=150, deadline=None)
def test_flips_are_those_of_a_loop(drawn: tuple[Ints, Ints, int]) -> None:
    labels, (teacher, student), n_classes = drawn
    measures = measure_pair(labels, teacher, student, n_classes)
    positive, negative = flips_by_loop(labels, teacher, student, n_classes)
    assert measures.positive_flips.tolist() == positive
    assert measures.negative_flips.tolist() == negative
    assert (measures.n_positive_flips, measures.n_negative_flips) == (sum(positive), sum(negative))
    right = [int((row == labels).sum()) for row in (teacher, student)]
    assert measures.n_positive_flips - measures.n_negative_flips == right[0] - right[1]
    assert measures.rho_pos - measures.rho_neg == pytest.approx(measures.delta_acc, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_rates_are_those_of_scikit_learn_and_scipy(seed: int) -> None:
    labels, (teacher, student) = draw_models(2, 2000, 30, seed)
    measures = measure_pair(labels, teacher, student, 30)
    right = teacher == labels, student == labels
    assert measures.acc_teacher == pytest.approx(100 * accuracy_score(labels, teacher))
    assert measures.acc_student == pytest.approx(100 * accuracy_score(labels, student))
    assert measures.agreement == pytest.approx(100 * accuracy_score(teacher, student))
    assert measures.kappa == pytest.approx(cohen_kappa_score(*right))
    assert measures.error_overlap == pytest.approx(100 * jaccard_score(~right[0], ~right[1]))
    assert measures.entropy == pytest.approx(scipy.stats.entropy(measures.positive_flips))


def test_a_pair_counted_by_hand() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2])
    teacher = np.array([0, 0, 1, 1, 1, 2, 0, 1])
    student = np.array([0, 1, 1, 2, 1, 0, 2, 0])
    row = measure_pair(labels, teacher, student, 4).row()
    assert (row["n"], row["n_classes"]) == (8, 4)  # no sample is of class 3
    assert row["acc_teacher"] == 62.5
    assert row["acc_student"] == 37.5
    assert row["delta_acc"] == 25.0
    assert row["rho_pos"] == 37.5  # samples 1, 3 and 5
    assert row["rho_neg"] == 12.5  # sample 6
    assert row["agreement"] == 37.5  # samples 0, 2 and 4
    assert row["error_overlap"] == pytest.approx(100 * 2 / 6)  # both wrong 2 and 7; either 1, 2, 3, 5, 6, 7
    assert row["kappa"] == pytest.approx((4 / 8 - 30 / 64) / (1 - 30 / 64))
    assert row["entropy"] == pytest.approx(math.log(3))  # one flip in each of three classes
    assert row["top2_classes"] == 25.0  # one of four classes
    assert row["top50_classes"] == 50.0  # two of them, to hold at least 1.5 flips
    # the student errs on 1, 2 | 3 | 5, 7: subsets of 3 of 5; in 4 of the 10 the classes differ, else they are 2 and 1
    two_and_one = math.log(3) - 2 / 3 * math.log(2)
    assert row["entropy_null"] == pytest.approx((4 * math.log(3) + 6 * two_and_one) / 10)


def test_a_model_paired_with_itself_has_no_flips() -> None:
    labels, (model,) = draw_models(1, 500, 10, 0)
    row = measure_pair(labels, model, model, 10).row()
    assert row["rho_pos"] == row["rho_neg"] == row["delta_acc"] == 0.0
    assert row["kappa"] == 1.0
    assert row["agreement"] == row["error_overlap"] == 100.0
    assert math.isnan(row["entropy"])
    assert math.isnan(row["entropy_null"])
    assert row["top2_classes"] == row["top50_classes"] == 0.0


@pytest.mark.parametrize("always", [0, 1])
def test_kappa_is_undefined_for_two_models_that_are_always_right_or_wrong(always: int) -> None:
    labels = np.zeros(20, dtype=np.int64)
    predictions = np.full(20, 1 - always)
    measures = measure_pair(labels, predictions, predictions, 2)
    assert math.isnan(measures.kappa)
    assert math.isnan(measures.error_overlap) == bool(always)


def test_a_teacher_who_knows_everything_leaves_nothing_to_chance() -> None:
    labels, (student,) = draw_models(1, 800, 12, 3)
    measures = measure_pair(labels, labels, student, 12)
    assert measures.entropy_null == pytest.approx(measures.entropy, abs=1e-12)  # the only subset is all errors


def test_the_row_has_columns_of_the_schema() -> None:
    labels, (teacher, student) = draw_models(2, 100, 5, 1)
    row = measure_pair(labels, teacher, student, 5).row()
    assert row.keys() <= {column.name for column in COMPLEMENTARITY.columns}


@pytest.mark.parametrize(
    ("labels", "teacher", "says"),
    [
        (np.array([0, 1, 3]), np.array([0, 1, 1]), "0 to 3, expected 0 to 2"),
        (np.array([0, 1]), np.array([0, 1, 1]), "for 2 labels"),
        (np.array([0, 1, 2]), np.array([1, 2, 3]), "teacher has classes 1 to 3"),
        (np.array([0, 1, 2]), np.array([0, -1, 1]), "teacher has classes -1 to 1"),
        (np.array([0, 1, 2]), np.array([0.0, 1.0, 1.0]), "float64"),
        (np.array([], dtype=int), np.array([], dtype=int), "one label per sample"),
    ],
)
def test_input_that_does_not_fit_is_refused(labels: Ints, teacher: Ints, says: str) -> None:
    with pytest.raises(DataError, match=says):
        measure_pair(labels, teacher, teacher, 3)
