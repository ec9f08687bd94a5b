"""Loops over pairs and bits that numpy has no single call for, compiled by numba. They release the interpreter lock.

In numpy alone the count of classes by their flips would be a bincount a pair, which holds the lock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

from worker.measures.arrays import Counts, Floats, Ints
from worker.measures.bits import Words

Small = npt.NDArray[np.int32]
Function = TypeVar("Function", bound=Callable[..., Any])


def _compiled(function: Function) -> Function:
    """Compile at the first call; kept on disk for the next process where numba finds a folder it may write to."""
    try:
        return cast(Function, numba.njit(nogil=True, cache=True)(function))
    except RuntimeError:
        return cast(Function, numba.njit(nogil=True)(function))


_ODD_BITS = np.uint64(0x5555555555555555)
_PAIRS = np.uint64(0x3333333333333333)
_NIBBLES = np.uint64(0x0F0F0F0F0F0F0F0F)
_BYTE_SUM = np.uint64(0x0101010101010101)
_ONE, _TWO, _FOUR, _TOP_BYTE = np.uint64(1), np.uint64(2), np.uint64(4), np.uint64(56)


@_compiled
def _popcount(word: np.uint64) -> np.uint64:
    """Set bits of a word; LLVM turns this into one instruction."""
    word -= (word >> _ONE) & _ODD_BITS
    word = (word & _PAIRS) + ((word >> _TWO) & _PAIRS)
    return (((word + (word >> _FOUR)) & _NIBBLES) * _BYTE_SUM) >> _TOP_BYTE


@_compiled
def count_flips(teacher: Words, student: Words, starts: Counts, bits: Small, flips: Small) -> None:
    """flips[c] = samples of class c that the teacher gets right and the student wrong; `bits` is scratch, int32[W].

    With one word a class they may be the same array.
    """
    for w in range(teacher.size):
        bits[w] = _popcount(teacher[w] & ~student[w])
    if flips.size == bits.size:
        return
    for c in range(flips.size):
        flips[c] = 0
        for w in range(starts[c], starts[c + 1]):
            flips[c] += bits[w]


@_compiled
def _scratch(n_words: int, n_classes: int) -> tuple[Small, Small]:
    """`bits` and `flips` for `count_flips`."""
    bits = np.empty(n_words, dtype=np.int32)
    return bits, bits if n_words == n_classes else np.empty(n_classes, dtype=np.int32)


@_compiled
def _count_values(values: Small, occurrences: Counts) -> int:
    """Add 1 to occurrences[v] for every v in `values`; the largest v.

    Four rows by turns: neighbouring classes mostly have the same few flips, and one addition would wait for another.
    """
    highest = 0
    for i in range(values.size):
        value = values[i]
        occurrences[i & 3, value] += 1
        highest = max(highest, value)
    return highest


@_compiled
def summarise_flips(
    words: Words,
    starts: Counts,
    students: Counts,
    terms: Floats,
    percents: Counts,
    totals: Counts,
    weighted: Floats,
    n_top: Counts,
) -> None:
    """Positive flips of every model as a teacher of each of `students`: their number, sum of k log k, and top classes.

    Args:
        words: uint64[M, W], and starts: int64[classes + 1], as in `Correctness`.
        students: int64[S], rows of `words`.
        terms: float64[most samples in a class + 1], k log k.
        percents: int64[P], ascending.
        totals: out, int64[S, M], positive flips.
        weighted: out, float64[S, M], sum over classes of k log k, added up from the smallest k.
        n_top: out, int64[S, M, P], classes in the smallest set that holds percents[p] % of the flips.
    """
    bits, flips = _scratch(words.shape[1], starts.size - 1)
    occurrences = np.zeros((4, terms.size), dtype=np.int64)
    classes = np.empty(terms.size, dtype=np.int64)
    for teacher in range(words.shape[0]):
        for s in range(students.size):
            count_flips(words[teacher], words[students[s]], starts, bits, flips)
            highest = _count_values(flips, occurrences)
            total, summed = 0, 0.0
            for k in range(highest + 1):
                classes[k] = occurrences[0, k] + occurrences[1, k] + occurrences[2, k] + occurrences[3, k]
                occurrences[:, k] = 0
                total += classes[k] * k
                summed += classes[k] * terms[k]
            totals[s, teacher], weighted[s, teacher] = total, summed
            _count_top_classes(classes, highest, total, percents, n_top[s, teacher])


@_compiled
def _count_top_classes(classes: Counts, highest: int, total: int, percents: Counts, n_top: Counts) -> None:
    """n_top[p] = classes needed, those with most flips first, to hold percents[p] % of `total` flips."""
    k, held, taken = highest, 0, 0
    for p in range(percents.size):
        needed = -(-total * percents[p] // 100)
        while held + classes[k] * k < needed:
            held += classes[k] * k
            taken += classes[k]
            k -= 1
        n_top[p] = taken + (-(-(needed - held) // k) if needed > 0 else 0)


@_compiled
def count_agreement(predictions: Ints, first: int, last: int, same: Small) -> None:
    """same[m, k] = same[k, m] = samples on which models m and k predict the same class, for m in first..last-1 and k >= m.

    `predictions` is int[M, n] and `same` int32[M, M]. Goes by runs of 4096 samples, so that those of a few models stay
    in the cache.
    """
    models = predictions.shape[0]
    same[first:last, first:] = 0
    for start in range(0, predictions.shape[1], 4096):
        for k in range(first, models):
            run = predictions[k, start : start + 4096]
            for m in range(first, min(last, k + 1)):
                same[m, k] += _count_equal(run, predictions[m, start : start + 4096])
    for m in range(first, last):
        for k in range(m + 1, models):
            same[k, m] = same[m, k]


@_compiled
def _count_equal(first: Ints, second: Ints) -> np.int32:
    equal = np.int32(0)  # counts as wide as numba's integers would be added half as fast
    for i in range(first.size):
        equal = np.int32(equal + np.int32(first[i] == second[i]))
    return equal


@_compiled
def _by_most_flips(flips: Small) -> Counts:
    """Classes by their flips, most first, equal ones in their own order: a counting sort, for there are few numbers."""
    highest = flips.max()
    place = np.zeros(highest + 2, dtype=np.int64)
    for c in range(flips.size):
        place[highest - flips[c] + 1] += 1
    place = np.cumsum(place)
    order = np.empty(flips.size, dtype=np.int64)
    for c in range(flips.size):
        behind = highest - flips[c]
        order[place[behind]] = c
        place[behind] += 1
    return order


@_compiled
def _sum_at(values: Floats, places: Counts) -> float:
    """Sum of values[places], by four sums in turn: one addition need not wait for the last."""
    a, b, c, d = 0.0, 0.0, 0.0, 0.0
    whole = places.size & ~3
    for i in range(0, whole, 4):
        a += values[places[i]]
        b += values[places[i + 1]]
        c += values[places[i + 2]]
        d += values[places[i + 3]]
    for i in range(whole, places.size):
        a += values[places[i]]
    return (a + b) + (c + d)


@_compiled
def _mean_top_similarity(similarity: Floats, flips: Small, n_top: Counts, mean: Floats) -> None:
    """mean[p] = mean similarity over pairs of classes among the top n_top[p], averaged over all orders of tied classes.

    Args:
        similarity: float64[classes, classes], symmetric.
        flips: int32[classes].
        n_top: int64[P], ascending sizes of the sets.
        mean: out, float64[P]; nan for sets of fewer than two classes.
    """
    order = _by_most_flips(flips)
    within_ties, before_ties = np.zeros(flips.size + 1), np.zeros(flips.size + 1)
    done, tie_start = 0, 0
    for p in range(n_top.size):
        size = n_top[p]
        if size < 2:
            mean[p] = np.nan
            continue
        while done < flips.size and (done < size or flips[order[done]] == flips[order[size - 1]]):
            if flips[order[done]] != flips[order[tie_start]]:
                tie_start = done
            row = similarity[order[done]]
            before_ties[done + 1] = before_ties[done] + _sum_at(row, order[:tie_start])
            within_ties[done + 1] = within_ties[done] + _sum_at(row, order[tie_start:done])
            done += 1
        first = size - 1
        while first > 0 and flips[order[first - 1]] == flips[order[size - 1]]:
            first -= 1
        last = size
        while last < flips.size and flips[order[last]] == flips[order[size - 1]]:
            last += 1
        mean[p] = _mean_over_orders(before_ties, within_ties, first, size, last)


@_compiled
def _mean_over_orders(before_ties: Floats, within_ties: Floats, first: int, size: int, last: int) -> float:
    """Ranks below `first` are in the set for sure; of the tied ranks first..last-1, size - first are, at random."""
    tied, drawn = last - first, size - first
    total = float(before_ties[first] + within_ties[first])
    total += (before_ties[last] - before_ties[first]) * drawn / tied
    if tied > 1:
        total += (within_ties[last] - within_ties[first]) * drawn * (drawn - 1) / (tied * (tied - 1))
    return float(total / (size * (size - 1) / 2))


@_compiled
def mean_top_similarities(
    words: Words, starts: Counts, students: Counts, similarity: Floats, n_top: Counts, mean: Floats
) -> None:
    """`_mean_top_similarity` for every model as a teacher of each of `students`; n_top and mean are [S, M, P]."""
    bits, flips = _scratch(words.shape[1], starts.size - 1)
    for teacher in range(words.shape[0]):
        for s in range(students.size):
            count_flips(words[teacher], words[students[s]], starts, bits, flips)
            _mean_top_similarity(similarity, flips, n_top[s, teacher], mean[s, teacher])
