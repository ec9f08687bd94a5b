"""Semantic similarity of the classes that a teacher knows better, the top classes (paper, Figure 2b)."""

from __future__ import annotations

import math

import numpy as np

from kt_study.errors import DataError
from kt_study.schema import TOP_PERCENTS
from worker.measures.arrays import Counts, Floats
from worker.measures.top_classes import TopClasses, top_classes

GRID_BITS = 22
"""Similarities are whole steps of a grid, 2 ** 22 of them up to the largest: as fine as the float32 they come from."""
_SAME = 1e-9
"""Similarities that differ by less are equal except for rounding."""


def grid_step(similarity: Floats) -> float:
    """The step of the grid for float[C, C], a power of two: 2 ** -22 for similarities up to 1."""
    largest = float(np.abs(similarity).max(initial=0.0))
    _, exponent = math.frexp(largest * (1.0 - _SAME))  # a cosine of 1 may come out a little above
    return math.ldexp(1.0, exponent - GRID_BITS)


def on_grid(similarity: Floats) -> Floats:
    """`similarity`, float64[C, C], with every value rounded to the nearest step of its grid, half of which it changes at most.

    Sums of such values are exact in float64 up to two thousand million terms. So they do not depend on the order in which
    they are added, and single pairs and all pairs at once agree to the last bit.
    """
    step = grid_step(similarity)
    rounded: Floats = np.rint(similarity / step) * step
    return rounded


def check_similarity(similarity: Floats, n_classes: int) -> None:
    """Refuse a matrix that is not finite, symmetric, float64[n_classes, n_classes]. Raises DataError."""
    if similarity.shape != (n_classes, n_classes):
        shape = similarity.shape
        raise DataError(f"the class similarity has shape {shape} for {n_classes} classes; give one row per class")
    if not np.isfinite(similarity).all() or not np.array_equal(similarity, similarity.T):
        raise DataError("the class similarity is not finite and symmetric; check the matrix or the embeddings")


def average_similarity(similarity: Floats) -> float:
    """Mean over all pairs of different classes; nan for a single class.

    nan too if all of several pairs are equally similar: no set of classes differs from the others, except by rounding.
    """
    classes = len(similarity)
    off_diagonal = similarity.ravel()[1:].reshape(classes - 1, classes + 1)[:, :-1]  # a view, not a copy
    if classes > 2 and float(np.ptp(off_diagonal)) < _SAME:
        return float("nan")
    return _pair_mean(_sum_of_pairs(similarity), classes)


def top_similarity(flips: Counts, similarity: Floats) -> dict[str, float]:
    """Similarity of the classes that hold the top X % of flips, relative to the average over all pairs of classes.

    Which of several classes with equally many flips belong to the set is averaged over all their orders.

    Args:
        flips: int64[n_classes], positive flips.
        similarity: float64[n_classes, n_classes], symmetric.

    Returns:
        `top2_similarity`, ... for 2, 5, 20 and 50: % above the average, negative below; nan for fewer than two classes, and where
        all classes are equally similar.
    """
    average = average_similarity(similarity)
    means = {percent: _mean_similarity(top_classes(flips, percent), similarity) for percent in TOP_PERCENTS}
    return {
        f"top{percent}_similarity": (mean - average) / average * 100.0 if average else float("nan")
        for percent, mean in means.items()
    }


def _mean_similarity(top: TopClasses, similarity: Floats) -> float:
    """Mean over pairs of different classes in the set, and over all orders of the tied classes."""
    tied = int(top.tied.sum())
    sure_rows, tied_rows = similarity[top.sure], similarity[top.tied]
    total = _sum_of_pairs(sure_rows[:, top.sure])
    if tied:
        total += float(sure_rows[:, top.tied].sum()) * top.drawn / tied
    if tied > 1:
        total += _sum_of_pairs(tied_rows[:, top.tied]) * top.drawn * (top.drawn - 1) / (tied * (tied - 1))
    return _pair_mean(total, top.size)


def _sum_of_pairs(square: Floats) -> float:
    return float(square.sum() - np.trace(square)) / 2


def _pair_mean(total: float, size: int) -> float:
    return total / (size * (size - 1) / 2) if size > 1 else float("nan")
