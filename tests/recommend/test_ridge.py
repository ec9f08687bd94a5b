"""The regression and its cross-validation against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.dummy import DummyRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold, LeaveOneGroupOut, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from orchestrator.results.recommend.ridge import ALPHA, fit, folds_of, held_out_predictions, root_mean_square

Floats = NDArray[np.float64]


def theirs(alpha: float = ALPHA) -> Pipeline:
    """The same model of scikit-learn's: gaps are left out of mean and deviation, then count as the mean."""
    return make_pipeline(StandardScaler(), SimpleImputer(strategy="constant", fill_value=0.0), Ridge(alpha=alpha))


def drawn(n: int = 60, seed: int = 0) -> tuple[Floats, Floats]:
    """Features of different scales, one with gaps, one constant, one 0 or 1, and a target that depends on them."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, 5)) * [1, 20, 0.1, 1, 1] + [0, 300, 0, 7, 0]
    features[:, 3] = 7.1
    features[:, 4] = features[:, 4] > 0
    target = features @ [0.5, -0.05, 4.0, 1.0, 2.0] + rng.normal(size=n)
    features[rng.random(n) < 0.3, 2] = np.nan
    return features, target


@pytest.mark.parametrize("alpha", [0.01, ALPHA, 30.0])
def test_weights_and_predictions_are_scikit_learns(alpha: float) -> None:
    (features, target), (new, _) = drawn(), drawn(seed=1)
    reference, mine = theirs(alpha).fit(features, target), fit(features, target, alpha)
    np.testing.assert_allclose(mine.weights, reference[-1].coef_, rtol=1e-9, atol=1e-12)
    assert mine.intercept == pytest.approx(reference[-1].intercept_)
    np.testing.assert_allclose(mine.predict(new), reference.predict(new), rtol=1e-9)


def test_a_feature_without_any_value_counts_for_nothing() -> None:
    features, target = drawn()
    empty = np.full((len(features), 1), np.nan)
    with_empty = fit(np.hstack([features, empty]), target)
    assert with_empty.weights[-1] == 0.0
    np.testing.assert_allclose(with_empty.weights[:-1], fit(features, target).weights)


def test_leaving_one_group_out_is_scikit_learns() -> None:
    features, target = drawn()
    groups = np.random.default_rng(2).choice(list("abcdefg"), size=len(target))
    folds = folds_of(groups.tolist())
    by_ridge, by_mean = held_out_predictions(features, target, folds)
    out = LeaveOneGroupOut()
    expected = cross_val_predict(theirs(), features, target, groups=groups, cv=out)
    np.testing.assert_allclose(by_ridge, expected, rtol=1e-9)
    np.testing.assert_allclose(by_mean, cross_val_predict(DummyRegressor(), target, target, groups=groups, cv=out))


def test_many_groups_are_dealt_as_scikit_learn_deals_them() -> None:
    sizes = np.random.default_rng(3).permutation(np.arange(1, 31))  # all different, so that no tie is broken
    groups = np.repeat([f"group{number}" for number in range(30)], sizes)
    folds = folds_of(groups.tolist(), most=7)
    expected = {frozenset(test) for _, test in GroupKFold(7).split(np.zeros(len(groups)), groups=groups)}
    assert {frozenset(np.flatnonzero(folds == fold)) for fold in range(7)} == expected


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=60), st.integers(2, 6))
def test_a_group_is_never_torn_and_folds_are_even(groups: list[str], most: int) -> None:
    folds = folds_of(groups, most)
    for group in set(groups):
        assert len({fold for fold, name in zip(folds.tolist(), groups, strict=True) if name == group}) == 1
    rows = np.bincount(folds)
    assert len(rows) == min(most, len(set(groups))) and rows.min() > 0
    assert rows.max() - rows.min() <= max(groups.count(group) for group in groups)


def test_root_mean_square() -> None:
    assert root_mean_square(np.array([3.0, -4.0, 0.0, 0.0])) == pytest.approx(2.5)
