"""Mean similarity within the top classes of every pair of models, compiled by numba like `worker.measures.kernels`.

A mean over orders of tied classes needs sums of the similarity over pairs of classes within and between a few sets. These
are added up a row of the matrix at a time: a class's row is fetched once for all the classes it is paired with, and a block
of columns once for many pairs of models.
"""

from __future__ import annotations

import numpy as np

from worker.measures.arrays import Counts, Floats
from worker.measures.bits import Words
from worker.measures.kernels import Small, compiled, count_flips, scratch

_COLUMNS = 128  # of a block: 1,000 rows of it are a megabyte, which the second cache of a core holds
_PAIRS_AT_A_TIME = 16


def upper_blocks(similarity: Floats) -> Floats:
    """float64[blocks, C, 128]: what lies above the diagonal of float64[C, C], in blocks of columns, 0 elsewhere."""
    classes = len(similarity)
    upper = np.zeros((classes, -(-classes // _COLUMNS) * _COLUMNS))
    upper[:, :classes] = np.triu(similarity, 1)
    return np.ascontiguousarray(upper.reshape(classes, -1, _COLUMNS).transpose(1, 0, 2))


@compiled
def mean_top_similarities(
    words: Words, starts: Counts, students: Counts, blocks: Floats, n_top: Counts, mean: Floats
) -> None:
    """Mean similarity over pairs of classes among the top ones, averaged over all orders of tied classes.

    Args:
        words: uint64[M, W], and starts: int64[classes + 1], as in `Correctness`.
        students: int64[S], rows of `words`; every model is a teacher of each.
        blocks: of `upper_blocks`, for the classes with samples.
        n_top: int64[S, M, P], ascending sizes of the sets.
        mean: out, float64[S, M, P]; nan for sets of fewer than two classes.
    """
    classes, percents = starts.size - 1, n_top.shape[2]
    bits, flips = scratch(words.shape[1], classes)
    size = min(_PAIRS_AT_A_TIME, words.shape[0] * students.size)
    parts = np.empty((size, blocks.shape[0] * _COLUMNS), dtype=np.int32)
    rows = np.empty((size, classes), dtype=np.int32)
    edges = np.empty((size, 2 * percents + 2), dtype=np.int64)
    ties = np.empty((size, percents), dtype=np.int64)
    reached = np.empty((size, 2 * percents + 1), dtype=np.int64)
    sums = np.empty((size, 4, 2 * percents + 1, 2 * percents + 1))
    row = np.empty(_COLUMNS)
    for first in range(0, words.shape[0] * students.size, size):
        pairs = min(size, words.shape[0] * students.size - first)
        for i in range(pairs):
            teacher, s = divmod(first + i, students.size)
            count_flips(words[teacher], words[students[s]], starts, bits, flips)
            _divide(flips, n_top[s, teacher], parts[i], rows[i], edges[i], ties[i])
            reached[i] = edges[i, :-1]
            sums[i] = 0.0
        for b in range(blocks.shape[0]):
            columns = slice(b * _COLUMNS, (b + 1) * _COLUMNS)
            for i in range(pairs):
                _add_block(blocks[b], rows[i], edges[i], reached[i], columns.stop, parts[i, columns], row, sums[i])
        for i in range(pairs):
            teacher, s = divmod(first + i, students.size)
            _means_over_orders(sums[i].sum(axis=0), edges[i], ties[i], n_top[s, teacher], mean[s, teacher])


@compiled
def _divide(flips: Small, n_top: Counts, parts: Small, rows: Small, edges: Counts, ties: Counts) -> None:
    """Divide the classes into parts by their flips, most first, so that each set of top classes is made of whole parts.

    Set p is every part before ties[p], and n_top[p] - edges[ties[p]] classes of that one, whose flips are equal.

    Args:
        flips: int32[classes].
        n_top: int64[P], ascending sizes of the sets; those below 2 have no part of their own.
        parts: out, int32[at least classes], the part of each class, 0 to 2 P; the last part is the rest.
        rows: out, int32[classes], the classes by their parts, in their own order within a part.
        edges: out, int64[2 P + 2], where each part begins in `rows`.
        ties: out, int64[P].
    """
    rest = 2 * n_top.size
    highest = flips.max()
    occurrences = np.zeros(highest + 1, dtype=np.int64)
    for c in range(flips.size):
        occurrences[flips[c]] += 1
    part_of = np.full(highest + 1, rest, dtype=np.int64)
    k, before = highest, 0
    for p in range(n_top.size):
        if n_top[p] < 2:
            continue
        while before + occurrences[k] < n_top[p]:
            part_of[k] = min(part_of[k], 2 * p)
            before += occurrences[k]
            k -= 1
        part_of[k] = min(part_of[k], 2 * p + 1)
        ties[p] = part_of[k]
    edges[:] = 0
    parts[:] = rest
    for c in range(flips.size):
        parts[c] = part_of[flips[c]]
        edges[parts[c] + 1] += 1
    for part in range(rest + 1):
        edges[part + 1] += edges[part]
    place = edges.copy()
    for c in range(flips.size):
        rows[place[parts[c]]] = c
        place[parts[c]] += 1


@compiled
def _add_block(
    block: Floats, rows: Small, edges: Counts, reached: Counts, end: int, parts: Small, row: Floats, sums: Floats
) -> None:
    """Add to sums[:, a, b] the block's similarities of classes of part a, as rows, with those of part b, as columns.

    Rows from `end` on have nothing above the diagonal here; `reached` moves on to the first such of each part. `row` is
    scratch. The four sums are added to by turns: one addition need not wait for the last.
    """
    for a in range(sums.shape[1] - 1):
        while reached[a] < edges[a + 1] and rows[reached[a]] < end:
            reached[a] += 1
        if reached[a] > edges[a]:
            _add_rows(block, rows[edges[a] : reached[a]], row)
            for c in range(row.size):
                sums[c & 3, a, parts[c]] += row[c]


@compiled
def _add_rows(block: Floats, rows: Small, total: Floats) -> None:
    """total = block[rows].sum(axis=0), four rows at a time."""
    total[:] = 0.0
    whole = rows.size & ~3
    for i in range(0, whole, 4):
        a, b, c, d = block[rows[i]], block[rows[i + 1]], block[rows[i + 2]], block[rows[i + 3]]
        for k in range(total.size):
            total[k] += (a[k] + b[k]) + (c[k] + d[k])
    for i in range(whole, rows.size):
        a = block[rows[i]]
        for k in range(total.size):
            total[k] += a[k]


@compiled
def _means_over_orders(sums: Floats, edges: Counts, ties: Counts, n_top: Counts, mean: Floats) -> None:
    """Parts before ties[p] are in set p for sure; of the tied classes, as many as are left, at random."""
    for p in range(n_top.size):
        size = n_top[p]
        if size < 2:
            mean[p] = np.nan
            continue
        part = ties[p]
        tied, drawn = edges[part + 1] - edges[part], size - edges[part]
        total = sums[:part, :part].sum()
        total += (sums[part, :part].sum() + sums[:part, part].sum()) * drawn / tied
        if tied > 1:
            total += sums[part, part] * drawn * (drawn - 1) / (tied * (tied - 1))
        mean[p] = total / (size * (size - 1) / 2)
