"""Entropy and its exact null against scipy, every subset, and drawn subsets."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from worker.measures.arrays import Counts
from worker.measures.entropy import entropy, expected_subset_entropy


def null_by_scipy(errors: Counts, size: int) -> float:
    """log m - (1/m) sum_c E[K_c log K_c], each class's own hypergeometric distribution from scipy."""
    total = 0.0
    for count in errors:
        k = np.arange(count + 1)
        chances = scipy.stats.hypergeom.pmf(k, errors.sum(), count, size)
        total += float(chances @ (k * np.log(np.maximum(k, 1))))
    return math.log(size) - total / size


def test_uniform_over_a_thousand_classes_is_the_published_figure() -> None:
    assert round(entropy(np.full(1000, 7)), 4) == 6.9078


@given(hnp.arrays(np.int64, st.integers(1, 40), elements=st.integers(0, 60)))
@settings(deadline=None)
def test_entropy_is_scipys(counts: Counts) -> None:
    if counts.sum() == 0:
        assert math.isnan(entropy(counts))
    else:
        assert entropy(counts) == pytest.approx(scipy.stats.entropy(counts), abs=1e-12)


@pytest.mark.parametrize("counts", [[0, 5, 0], [1], [49]])
def test_flips_in_one_class_have_entropy_zero(counts: list[int]) -> None:
    assert entropy(np.array(counts)) == 0.0


@pytest.mark.parametrize("size", range(1, 9))
def test_null_is_the_mean_over_every_subset(size: int) -> None:
    errors = np.array([3, 0, 1, 4])
    classes = np.repeat(np.arange(4), errors)
    entropies = [
        scipy.stats.entropy(np.bincount(subset, minlength=4)) for subset in itertools.combinations(classes, size)
    ]
    null = expected_subset_entropy(errors[None], np.array([[size]]))
    assert null[0, 0] == pytest.approx(np.mean(entropies), abs=1e-12)


@given(hnp.arrays(np.int64, st.integers(1, 20), elements=st.integers(0, 70)), st.data())
@settings(max_examples=80, deadline=None)
def test_null_is_that_of_scipys_hypergeometric(errors: Counts, data: st.DataObject) -> None:
    total = int(errors.sum())
    size = data.draw(st.integers(0, total))
    null = float(expected_subset_entropy(errors[None], np.array([[size]]))[0, 0])
    if size == 0:
        assert math.isnan(null)
    else:
        assert null == pytest.approx(max(null_by_scipy(errors, size), 0.0), abs=1e-10)


def test_null_of_several_students_is_that_of_each_alone() -> None:
    rng = np.random.default_rng(0)
    errors = rng.integers(0, np.array([[3], [50], [1], [300]]), size=(4, 60))
    sizes = np.stack([np.linspace(0, row.sum(), 9).astype(np.int64) for row in errors])
    together = expected_subset_entropy(errors, sizes)
    for row in range(4):
        alone = [expected_subset_entropy(errors[row : row + 1], np.array([[size]]))[0, 0] for size in sizes[row]]
        np.testing.assert_array_equal(together[row], alone)


def test_null_of_a_large_class_neither_overflows_nor_underflows() -> None:
    errors = np.array([5000, 20000, 3])
    sizes = np.array([[1, 2, 100, 12000, 24990, 25003]])
    null = expected_subset_entropy(errors[None], sizes)[0]
    np.testing.assert_allclose(null, [max(null_by_scipy(errors, size), 0.0) for size in sizes[0]], atol=1e-9)


def test_null_is_the_mean_of_drawn_subsets() -> None:
    rng = np.random.default_rng(1)
    errors = rng.integers(0, 40, size=200)
    draws = rng.multivariate_hypergeometric(errors, 600, size=2000)
    entropies = scipy.stats.entropy(draws, axis=1)
    null = expected_subset_entropy(errors[None], np.array([[600]]))[0, 0]
    assert abs(null - entropies.mean()) < 4 * entropies.std() / math.sqrt(len(entropies))
