"""A transfer's measures against scipy, drawn bootstraps and plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from kt_study.errors import DataError
from kt_study.schema import TRANSFERS
from tests.measures.draws import draw_models, labelled_predictions
from worker.measures.arrays import Ints
from worker.measures.transfer import bootstrap_interval, flips_given_to_teacher, mcnemar_p, measure_transfer


@given(labelled_predictions(4))
@settings(max_examples=100, deadline=None)
def test_the_identities_hold_in_every_row(drawn: tuple[Ints, Ints, int]) -> None:
    labels, (before, after, *teachers), n_classes = drawn
    measures = measure_transfer(labels, before, after, teachers, n_classes)
    assert measures.n_gained - measures.n_lost == int((after == labels).sum()) - int((before == labels).sum())
    assert measures.knowledge_gain - measures.knowledge_loss == pytest.approx(measures.delta_transf, abs=1e-12)
    assert measures.acc_after - measures.acc_before == pytest.approx(measures.delta_transf, abs=1e-12)
    assert measures.delta_transf_low <= measures.delta_transf <= measures.delta_transf_high
    for against in measures.teachers:
        fewer = (against.rho_neg_after - against.rho_neg_before) - (against.rho_pos_after - against.rho_pos_before)
        assert fewer == pytest.approx(measures.delta_transf, abs=1e-12)
        assert against.rho_pos_before - against.rho_neg_before == pytest.approx(
            against.acc_teacher - measures.acc_before, abs=1e-12
        )


def test_a_transfer_counted_by_hand() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
    teacher = np.array([0, 0, 0, 1, 1, 1, 0, 0, 0, 2])
    before = np.array([1, 1, 1, 1, 0, 1, 1, 0, 2, 2])
    after = np.array([0, 0, 1, 0, 0, 1, 0, 2, 2, 2])
    row = measure_transfer(labels, before, after, [teacher], 3).row()
    assert (row["acc_before"], row["acc_after"], row["delta_transf"]) == (40.0, 70.0, 30.0)
    assert (row["knowledge_gain"], row["knowledge_loss"]) == (40.0, 10.0)  # 0, 1, 3, 7 gained; 6 lost
    assert (row["rho_pos_before"], row["rho_pos_after"]) == (40.0, 20.0)  # 0, 1, 2, 4; then 2, 4
    assert (row["rho_neg_before"], row["rho_neg_after"]) == (20.0, 30.0)  # 6, 8; then 3, 7, 8
    # flips by class 3, 1, 0: class 0 holds 75 %; it gained 3 images, two of them flips
    assert row["transfer_rate_top50"] == 100.0
    assert row["transfer_rate_strict_top50"] == pytest.approx(200 / 3)
    assert row["transfer_rate_top100"] == 75.0  # class 2 has no flip, so its gain does not count
    assert row["transfer_rate_strict_top100"] == 50.0
    assert row["mcnemar_p"] == pytest.approx(2 * (1 + 5) / 32)


def test_rates_over_tied_classes_are_averaged() -> None:
    labels = np.array([0, 0, 1, 1])
    teacher, before, after = labels, np.array([0, 1, 1, 0]), np.array([0, 0, 1, 0])
    row = measure_transfer(labels, before, after, [teacher], 2).row()
    assert row["transfer_rate_top50"] == 50.0  # one class of two, and only class 0 gained


def test_without_flips_the_rates_are_undefined() -> None:
    labels, (student,) = draw_models(1, 60, 4, seed=0)
    row = measure_transfer(labels, student, labels, [student], 4).row()
    assert all(math.isnan(value) for name, value in row.items() if name.startswith("transfer_rate"))
    assert row["rho_pos_before"] == 0.0


def test_of_several_teachers_the_best_one_fills_the_row() -> None:
    labels, predictions = draw_models(5, 400, 6, seed=3)
    before, after, *teachers = predictions
    accuracies = [100 * float((teacher == labels).mean()) for teacher in teachers]
    measures = measure_transfer(labels, before, after, teachers, 6)
    assert [against.acc_teacher for against in measures.teachers] == pytest.approx(accuracies)
    assert measures.row()["acc_teacher"] == pytest.approx(max(accuracies))
    assert "rho_pos_after" not in measure_transfer(labels, before, after, [], 6).row()


def test_the_row_has_columns_of_the_schema() -> None:
    labels, (before, after, teacher) = draw_models(3, 100, 5, seed=1)
    row = measure_transfer(labels, before, after, [teacher], 5).row()
    assert row.keys() <= {column.name for column in TRANSFERS.columns}


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_scipys_exact_binomial_test(gained: int, lost: int) -> None:
    expected = scipy.stats.binomtest(gained, gained + lost, 0.5).pvalue if gained + lost else 1.0
    assert mcnemar_p(gained, lost) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_of_a_whole_validation_set() -> None:
    assert mcnemar_p(2500, 2700) == pytest.approx(scipy.stats.binomtest(2500, 5200, 0.5).pvalue, rel=1e-9)
    assert mcnemar_p(0, 50_000) == 0.0


@pytest.mark.parametrize(("n", "gained", "lost"), [(1000, 40, 25), (50_000, 900, 600), (300, 0, 7), (50, 25, 25)])
def test_the_interval_is_that_of_many_drawn_bootstraps(n: int, gained: int, lost: int) -> None:
    draws = np.random.default_rng(0).multinomial(n, [gained / n, lost / n, 1 - (gained + lost) / n], size=200_000)
    sums = draws[:, 0] - draws[:, 1]
    # the drawn quantile is uncertain by the chance of 4 standard errors around the level
    for end, level in zip(bootstrap_interval(n, gained, lost), (0.025, 0.975), strict=True):
        error = 4 * math.sqrt(level * (1 - level) / len(sums))
        low, high = np.quantile(sums, [level - error, level + error], method="inverted_cdf")
        assert low <= round(end * n / 100) <= high


@pytest.mark.parametrize("lost", range(0, 80, 5))
def test_the_interval_is_that_of_repeated_convolution(lost: int) -> None:
    n, gained = 160, 40
    chances = np.ones(1)
    for _ in range(n):
        chances = np.convolve(chances, [lost / n, 1 - (gained + lost) / n, gained / n])
    reached = np.cumsum(chances)
    expected = [100 * (int(np.argmax(reached >= level)) - n) / n for level in (0.025, 0.975)]
    assert bootstrap_interval(n, gained, lost) == pytest.approx(expected)


def test_the_interval_is_exact_where_it_can_be_counted() -> None:
    outcomes = [a + b + c for a in (1, -1, 0) for b in (1, -1, 0) for c in (1, -1, 0)]  # n = 3, one of each
    low, high = np.quantile(outcomes, [0.025, 0.975], method="inverted_cdf")
    assert bootstrap_interval(3, 1, 1) == pytest.approx((100 * low / 3, 100 * high / 3))
    assert bootstrap_interval(10, 0, 0) == (0.0, 0.0)
    assert bootstrap_interval(7, 7, 0) == (100.0, 100.0)


def test_flips_given_to_the_teacher() -> None:
    labels = np.array([0, 0, 0, 0, 0, 0, 0, 0])
    teacher = np.array([0, 0, 0, 1, 1, 1, 1, 0])
    student = np.array([1, 1, 1, 0, 0, 0, 0, 0])
    to_teacher = np.array([True, True, False, True, False, False, False, True])
    assert flips_given_to_teacher(labels, teacher, student, to_teacher) == (pytest.approx(200 / 3), 25.0)
    none = flips_given_to_teacher(labels, teacher, teacher, to_teacher)
    assert all(math.isnan(share) for share in none)
    with pytest.raises(DataError, match="to_teacher"):
        flips_given_to_teacher(labels, teacher, student, to_teacher[:2])


def test_input_that_does_not_fit_is_refused() -> None:
    labels, (before, after) = draw_models(2, 30, 3, seed=0)
    with pytest.raises(DataError, match="after"):
        measure_transfer(labels, before, after[:-1], [], 3)
    with pytest.raises(DataError, match="teacher"):
        measure_transfer(labels, before, after, [after + 3], 3)
