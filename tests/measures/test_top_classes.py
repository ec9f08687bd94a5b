"""The classes that hold the top X % of flips, by hand, by loop, and over every order of ties."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kt_study.schema import TOP_PERCENTS
from worker.measures.arrays import Counts, Floats
from worker.measures.similarity import average_similarity, grid_step, on_grid, top_similarity
from worker.measures.top_classes import top_classes


def size_by_loop(flips: Counts, percent: int) -> int:
    held, total = 0, sum(flips.tolist())
    for size, count in enumerate(sorted(flips.tolist(), reverse=True)):
        if held * 100 >= percent * total:
            return size
        held += count
    return len(flips)


def sets_over_orders(flips: Counts, percent: int) -> list[list[int]]:
    """The top set for every order of all classes, ties broken by that order."""
    size = size_by_loop(flips, percent)
    orders = itertools.permutations(range(len(flips)))
    return [sorted(order, key=lambda c: -flips[c])[:size] for order in orders]


def draw_similarity(n_classes: int, seed: int) -> Floats:
    half = np.random.default_rng(seed).random((n_classes, n_classes))
    return half + half.T


@given(hnp.arrays(np.int64, st.integers(1, 30), elements=st.integers(0, 9)), st.sampled_from((*TOP_PERCENTS, 100)))
def test_size_is_that_of_a_loop(flips: Counts, percent: int) -> None:
    top = top_classes(flips, percent)
    assert top.size == size_by_loop(flips, percent)
    assert not (top.sure & top.tied).any()
    assert 0 <= top.drawn <= top.tied.sum()


def test_exactly_half_is_enough() -> None:
    assert top_classes(np.array([1, 3, 2]), 50).size == 1
    assert top_classes(np.array([1, 3, 3]), 50).size == 2


@given(hnp.arrays(np.int64, st.integers(1, 6), elements=st.integers(0, 3)), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_expectations_are_means_over_every_order_of_ties(flips: Counts, seed: int) -> None:
    similarity, values = draw_similarity(len(flips), seed), np.arange(len(flips)) + 1
    relative = top_similarity(flips, similarity)
    average = average_similarity(similarity)
    for percent in TOP_PERCENTS:
        sets = sets_over_orders(flips, percent)
        sums = [sum(values[c] for c in members) for members in sets]
        assert top_classes(flips, percent).expected_sum(values) == pytest.approx(np.mean(sums))
        if len(sets[0]) < 2:
            assert np.isnan(relative[f"top{percent}_similarity"])
            continue
        means = [np.mean([similarity[i, j] for i, j in itertools.combinations(members, 2)]) for members in sets]
        expected = 100 * (np.mean(means) - average) / average
        assert relative[f"top{percent}_similarity"] == pytest.approx(expected, abs=1e-9)


def test_average_similarity_leaves_out_the_diagonal() -> None:
    assert average_similarity(np.array([[1.0, 0.2, 0.4], [0.2, 1.0, 0.6], [0.4, 0.6, 1.0]])) == pytest.approx(0.4)
    assert np.isnan(average_similarity(np.ones((1, 1))))


def test_classes_that_are_all_equally_alike_have_no_relative_similarity() -> None:
    """WordNet finds all ten digits equally alike; sums of a third come out unequal in their last bits."""
    alike = np.full((10, 10), 1 / 3)
    alike[2, 5] = alike[5, 2] = 1 / 3 + 1e-16
    assert np.isnan(average_similarity(alike))
    assert np.isnan(list(top_similarity(np.arange(10), alike).values())).all()
    alike[2, 5] = alike[5, 2] = 1 / 3 + 1e-6
    assert average_similarity(alike) == pytest.approx(1 / 3 + 1e-6 / 45)
    assert average_similarity(np.array([[1.0, 0.2], [0.2, 1.0]])) == pytest.approx(0.2)  # the one pair there is


def test_neighbouring_classes_gain_nothing_from_their_place() -> None:
    """All classes tied and a similarity that follows the order of classes: the top classes are average."""
    place = np.arange(40.0)
    similarity = 1 / (1 + np.abs(place[:, None] - place))
    relative = top_similarity(np.full(40, 3), similarity)
    np.testing.assert_allclose([relative["top20_similarity"], relative["top50_similarity"]], 0.0, atol=1e-9)


@given(
    hnp.arrays(np.float64, (4, 4), elements=st.floats(-1e6, 1e6, allow_subnormal=False)),
    st.sampled_from([1e-9, 1.0, 1e9]),
)
def test_the_grid_moves_a_similarity_by_half_a_step_at_most(square: Floats, scale: float) -> None:
    similarity = (square + square.T) * scale
    rounded, step = on_grid(similarity), grid_step(similarity)
    assert math.frexp(step)[0] == 0.5
    assert np.abs(similarity).max() / step <= 2**22
    assert (np.abs(rounded - similarity) <= step / 2).all()
    assert (rounded / step == np.rint(rounded / step)).all()
    np.testing.assert_array_equal(on_grid(rounded), rounded)


def test_similarities_up_to_one_lie_on_a_grid_of_a_four_millionth() -> None:
    assert grid_step(np.array([[1.0, 0.3], [0.3, 1.0]])) == grid_step(np.array([[0.7]])) == 2.0**-22
    assert grid_step(np.array([[1.0 + 1e-15]])) == 2.0**-22
    assert on_grid(np.array([[1.0, 0.5], [0.5, 1.0]])).tolist() == [[1.0, 0.5], [0.5, 1.0]]


def test_sums_on_the_grid_are_exact_in_any_order() -> None:
    similarity = on_grid(draw_similarity(60, 3))
    flips = np.random.default_rng(3).integers(0, 5, 60)
    order = np.random.default_rng(4).permutation(60)
    shuffled = top_similarity(flips[order], similarity[np.ix_(order, order)])
    np.testing.assert_array_equal(list(shuffled.values()), list(top_similarity(flips, similarity).values()))
    assert similarity.sum() == float(sum(Fraction(value) for value in similarity.ravel().tolist()))
