"""Loops over pairs and bits, compiled (`worker.measures.jit`).

In numpy alone the count of classes by their flips would be one bincount per pair, which holds the lock.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from worker.measures.arrays import Counts, Floats, Ints
from worker.measures.bits import Words
from worker.measures.jit import compiled

Small = npt.NDArray[np.int32]

_ODD_BITS = np.uint64(0x5555555555555555)
_PAIRS = np.uint64(0x3333333333333333)
_NIBBLES = np.uint64(0x0F0F0F0F0F0F0F0F)
_BYTE_SUM = np.uint64(0x0101010101010101)
_ONE, _TWO, _FOUR, _TOP_BYTE = np.uint64(1), np.uint64(2), np.uint64(4), np.uint64(56)


@compiled
def _popcount(word: np.uint64) -> np.uint64:
    """Set bits of a word; LLVM turns this into one instruction."""
    word -= (word >> _ONE) & _ODD_BITS
    word = (word & _PAIRS) + ((word >> _TWO) & _PAIRS)
    return (((word + (word >> _FOUR)) & _NIBBLES) * _BYTE_SUM) >> _TOP_BYTE


@compiled
def count_flips(teacher: Words, student: Words, starts: Counts, bits: Small, flips: Small) -> None:
    """flips[c] = samples of class c that the teacher gets right and the student wrong; `bits` is scratch, int32[W].

    With one word per class they may be the same array.
    """
    for w in range(teacher.size):
        bits[w] = _popcount(teacher[w] & ~student[w])
    if flips.size == bits.size:
        return
    for c in range(flips.size):
        flips[c] = 0
        for w in range(starts[c], starts[c + 1]):
            flips[c] += bits[w]


@compiled
def scratch(n_words: int, n_classes: int) -> tuple[Small, Small]:
    """`bits` and `flips` for `count_flips`."""
    bits = np.empty(n_words, dtype=np.int32)
    return bits, bits if n_words == n_classes else np.empty(n_classes, dtype=np.int32)


@compiled
def count_values(values: Small, occurrences: Counts) -> int:
    """Add 1 to occurrences[v] for every v in `values`; the largest v.

    Four rows in turn: neighbouring classes mostly have the same few flips, and additions to one cell wait for each other.
    """
    highest = 0
    for i in range(values.size):
        value = values[i]
        occurrences[i & 3, value] += 1
        highest = max(highest, value)
    return highest


@compiled
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
    bits, flips = scratch(words.shape[1], starts.size - 1)
    occurrences = np.zeros((4, terms.size), dtype=np.int64)
    classes = np.empty(terms.size, dtype=np.int64)
    for teacher in range(words.shape[0]):
        for s in range(students.size):
            count_flips(words[teacher], words[students[s]], starts, bits, flips)
            highest = count_values(flips, occurrences)
            total, summed = 0, 0.0
            for k in range(highest + 1):
                classes[k] = occurrences[0, k] + occurrences[1, k] + occurrences[2, k] + occurrences[3, k]
                occurrences[:, k] = 0
                total += classes[k] * k
                summed += classes[k] * terms[k]
            totals[s, teacher], weighted[s, teacher] = total, summed
            _count_top_classes(classes, highest, total, percents, n_top[s, teacher])


@compiled
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


@compiled
def count_agreement(predictions: Ints, first: int, last: int, same: Small) -> None:
    """same[m, k] = same[k, m] = samples on which models m and k predict the same class, for m in first..last-1 and k >= m.

    `predictions` is int[M, n] and `same` int32[M, M]. In runs of 4096 samples, so that those of a few models stay in the
    cache.
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


@compiled
def _count_equal(first: Ints, second: Ints) -> np.int32:
    equal = np.int32(0)  # counts as wide as numba's integers would be added half as fast
    for i in range(first.size):
        equal = np.int32(equal + np.int32(first[i] == second[i]))
    return equal
