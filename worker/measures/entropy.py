"""Entropy of flips over classes, and its value expected by chance.

The entropy of few flips is always small: m flips cannot fill more than m classes. Its null is the mean
entropy of m errors drawn at random from all errors of the student. With e_c errors in class c, the drawn count K_c is
hypergeometric, and because the mean of a sum is the sum of means,

    E[entropy] = log m - (1/m) sum_c E[K_c log K_c]

is exact without draws. One more step makes it cheap for thousands of pairs: a class of e - 1 errors is a class of
e errors less a random one, so all classes can be written as mixtures over the largest class, and one hypergeometric
distribution is left for each m.
"""

from __future__ import annotations

import numpy as np

from worker.measures.arrays import Counts, Floats


def xlogx(highest: int) -> Floats:
    """k log k for k = 0..highest, nats; 0 at 0."""
    k = np.arange(highest + 1, dtype=np.float64)
    return k * np.log(np.maximum(k, 1.0))


def entropy(counts: Counts) -> float:
    """Shannon entropy of `counts`, int64[n_classes], over classes, nats (paper, Figure 1b); nan without any count."""
    occurrences = np.bincount(counts)
    # summed from the smallest count up, one by one, as the compiled kernel does
    weighted = np.cumsum(occurrences * xlogx(occurrences.size - 1))[-1]
    return float(entropy_of_sums(np.array([counts.sum()]), np.array([weighted]))[0])


def entropy_of_sums(totals: Counts, weighted: Floats) -> Floats:
    """log N - S/N in nats for totals N and S = sum_c k_c log k_c; nan where N is 0, never below 0."""
    some = np.maximum(totals, 1)
    return np.where(totals > 0, np.maximum(np.log(some) - weighted / some, 0.0), np.nan)


def expected_subset_entropy(errors: Counts, sizes: Counts) -> Floats:
    """Mean entropy, nats, of random subsets of a student's errors. Exact, not drawn.

    Time grows with the most errors in any class, once for each size and once more for each error of that class.

    Args:
        errors: int64[students, n_classes], each student's errors in each class.
        sizes: int64[students, k], sizes of the subsets, each at most the sum of the student's `errors`.

    Returns:
        float64[students, k]; nan at size 0.
    """
    largest = errors.max(axis=1)
    means = _means_by_largest_class(errors, largest)
    weighted = _hypergeometric_mean(means, largest, errors.sum(axis=1), sizes)
    return entropy_of_sums(sizes, weighted)


def _means_by_largest_class(errors: Counts, largest: Counts) -> Floats:
    """float64[students, L + 1]: the mean of sum_c K_c log K_c, given that k errors of the largest class (L) are drawn.

    Covers every class: means over a class of e - 1 errors become means over one of e errors by removing one error at
    random, which is a drawn one with chance k/e. Row s is valid up to k = largest[s].
    """
    students, highest = errors.shape[0], int(largest.max())
    terms = xlogx(highest)
    means = np.zeros((students, highest + 1))
    for e in range(1, highest + 1):
        drawn = np.arange(e + 1) / e
        raised = np.count_nonzero(errors == e, axis=1)[:, None] * terms[: e + 1]
        raised[:, 1:] += drawn[1:] * means[:, :e]
        raised[:, :-1] += (1.0 - drawn[:-1]) * means[:, :e]
        open_rows = largest >= e
        means[open_rows, : e + 1] = raised[open_rows]
    return means


def _hypergeometric_mean(values: Floats, marked: Counts, population: Counts, sizes: Counts) -> Floats:
    """float64[students, k]: the mean of values[K], K of `size` errors drawn from `population` being among the `marked`.

    Goes down from the largest K with two numbers: the mean given K >= k, and P(K = k | K >= k). Neighbours have the
    ratio P(k+1)/P(k) = (marked-k)(size-k) / ((k+1)(population-marked-size+k+1)). Nothing overflows, and a chance that
    underflows to 0 stays there rightly, for it only falls on the way down.
    """
    marked, m = marked[:, None].astype(np.float64), sizes.astype(np.float64)
    rest = population[:, None] - marked - m + 1.0
    mean = np.zeros(sizes.shape)
    chance = np.ones(sizes.shape)
    for k in range(values.shape[1] - 1, -1, -1):
        up = np.maximum(marked - k, 0.0) * np.maximum(m - k, 0.0)
        chance *= np.maximum(rest + k, 0.0) * (k + 1.0)
        chance /= chance + up
        mean += chance * (values[:, k, None] - mean)
    return mean
