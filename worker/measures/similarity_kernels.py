"""Mean similarity within the top classes of every pair of models, compiled like `worker.measures.kernels`.

A mean over orders of tied classes needs sums of the similarity over pairs of classes within and between a few sets. These
are added row by row: the row of a class is loaded once for all classes it is paired with, and a block of
columns once for many pairs of models. Similarities are multiples of the step of `worker.measures.similarity.on_grid`, so the
sums are exact.
"""

from __future__ import annotations

import numpy as np

from worker.measures.arrays import Counts, Floats, in_lines
from worker.measures.bits import Words
from worker.measures.jit import compiled
from worker.measures.kernels import Small, count_flips, count_values, scratch
from worker.measures.similarity import GRID_BITS

_COLUMNS = 256  # of a block: 1,000 rows of it are a megabyte, about what the second cache of a core holds
_PAIRS_PER_RUN = 32
_ROWS_PER_SUM = 2 ** (31 - GRID_BITS) - 1  # the sum of more could exceed int32


def upper_blocks(similarity: Floats, step: float) -> Small:
    """int32[blocks, C, 256]: float64[C, C] above its diagonal, in steps and in blocks of columns; 0 elsewhere."""
    classes = len(similarity)
    upper = np.zeros((classes, -(-classes // _COLUMNS) * _COLUMNS), dtype=np.int32)
    upper[:, :classes] = np.rint(np.triu(similarity, 1) / step)
    blocks: Small = in_lines(upper.reshape(classes, -1, _COLUMNS).transpose(1, 0, 2))
    return blocks


@compiled
def mean_top_similarities(
    words: Words, starts: Counts, students: Counts, blocks: Small, n_top: Counts, mean: Floats
) -> None:
    """Mean similarity over pairs of classes among the top ones, averaged over all orders of tied classes.

    Args:
        words: uint64[M, W], and starts: int64[classes + 1], as in `Correctness`.
        students: int64[S], rows of `words`; every model is a teacher of each.
        blocks: of `upper_blocks`, for the classes with samples.
        n_top: int64[S, M, P], ascending sizes of the sets.
        mean: out, float64[S, M, P], in steps; nan for sets of fewer than two classes.
    """
    classes, most_parts, total = starts.size - 1, 2 * n_top.shape[2], words.shape[0] * students.size
    size = min(_PAIRS_PER_RUN, total)
    bits, flips = scratch(words.shape[1], classes)
    most_flips = 64 * (starts[1:] - starts[:-1]).max()
    occurrences = np.zeros((4, most_flips + 1), dtype=np.int64)
    part_of = np.empty(most_flips + 1, dtype=np.int64)
    columns = np.empty((size, classes + 1), dtype=np.int32)
    parts = np.empty((size, classes), dtype=np.int32)
    rows = np.empty((size, classes), dtype=np.int32)
    n_parts = np.empty(size, dtype=np.int64)
    edges = np.empty((size, most_parts + 1), dtype=np.int64)
    ties = np.empty((size, n_top.shape[2]), dtype=np.int64)
    row_ends = np.empty((size, most_parts), dtype=np.int64)
    column_ends = np.empty(size, dtype=np.int64)
    sums = np.empty((size, 4, most_parts, most_parts), dtype=np.int64)
    row = np.empty(_COLUMNS, dtype=np.int32)
    for first in range(0, total, size):
        pairs = min(size, total - first)
        for i in range(pairs):
            teacher, s = divmod(first + i, students.size)
            count_flips(words[teacher], words[students[s]], starts, bits, flips)
            n_parts[i] = _divide(flips, n_top[s, teacher], occurrences, part_of, edges[i], ties[i])
            _sort_by_part(flips, part_of, edges[i, : n_parts[i] + 1], columns[i], parts[i], rows[i])
            row_ends[i], column_ends[i], sums[i] = edges[i, :-1], 0, 0
        for b in range(blocks.shape[0]):
            end = (b + 1) * _COLUMNS
            for i in range(pairs):
                known = edges[i, n_parts[i]]
                begin = column_ends[i]
                column_ends[i] = _first_from(end, columns[i], begin, known)
                here = slice(begin, column_ends[i])
                for a in range(n_parts[i]):
                    row_ends[i, a] = _first_from(end, rows[i], row_ends[i, a], edges[i, a + 1])
                    part = rows[i, edges[i, a] : row_ends[i, a]]
                    _add_part(blocks[b], part, end - _COLUMNS, columns[i, here], parts[i, here], row, sums[i, :, a])
        for i in range(pairs):
            teacher, s = divmod(first + i, students.size)
            _means_over_orders(sums[i].sum(axis=0), edges[i], ties[i], n_top[s, teacher], mean[s, teacher])


@compiled
def _divide(flips: Small, n_top: Counts, occurrences: Counts, part_of: Counts, edges: Counts, ties: Counts) -> int:
    """Divide the top classes into parts by their flips, most first, so that each set of them is made of whole parts.

    Set p is every part before ties[p], and n_top[p] - edges[ties[p]] classes of that one, whose flips are equal.

    Args:
        flips: int32[classes].
        n_top: int64[P], ascending sizes of the sets; those below 2 have no part of their own.
        occurrences: scratch, int64[4, more than the most flips], zeros before and after.
        part_of: out, int64[more than the most flips]: the part of a class with so many flips; -1 for those in no set.
        edges: out, int64[2 P + 1], number of classes before each part, and before the rest.
        ties: out, int64[P].

    Returns:
        The number of parts, at most 2 P.
    """
    highest = count_values(flips, occurrences)
    k, before, parts = highest, 0, 0
    edges[:] = 0
    part_of[: highest + 1] = -1
    for p in range(n_top.size):
        if n_top[p] > max(before, 1):
            while before + occurrences[:, k].sum() < n_top[p]:
                part_of[k] = parts
                before += occurrences[:, k].sum()
                k -= 1
            if before > edges[parts]:
                parts += 1
                edges[parts] = before
            part_of[k] = parts
            before += occurrences[:, k].sum()
            k -= 1
            parts += 1
            edges[parts] = before
        ties[p] = parts - 1
    occurrences[:, : highest + 1] = 0
    return parts


@compiled
def _sort_by_part(flips: Small, part_of: Counts, edges: Counts, columns: Small, parts: Small, rows: Small) -> None:
    """The classes that are in a set: in their own order, each one's part, and sorted by part.

    Args:
        flips: int32[classes], and part_of and edges: int64[parts + 1], as in `_divide`.
        columns: out, int32[classes + 1], ascending; parts: out, int32[classes], of each of them.
        rows: out, int32[classes], the classes by their parts, ascending within a part.
    """
    known = 0
    for c in range(flips.size):  # without a branch, which the processor could not foresee
        columns[known] = c
        known += part_of[flips[c]] >= 0
    place = edges.copy()
    for j in range(known):
        part = part_of[flips[columns[j]]]
        parts[j] = part
        rows[place[part]] = columns[j]
        place[part] += 1


@compiled
def _first_from(end: int, ascending: Small, begin: int, stop: int) -> int:
    """The first place from `begin` on whose class is `end` or more; `stop` where there is none before it."""
    while begin < stop and ascending[begin] < end:
        begin += 1
    return begin


@compiled
def _add_part(block: Small, rows: Small, base: int, columns: Small, parts: Small, row: Small, sums: Counts) -> None:
    """Add to sums[:, b], int64[4, parts], the block's similarities of these rows with its columns of part b.

    `columns` are counted from `base` on; `row` is scratch. The four sums are used in turn, so that an addition does not wait
    for the last one.
    """
    for first in range(0, rows.size, _ROWS_PER_SUM):
        add_rows(block, rows[first : first + _ROWS_PER_SUM], row)
        for j in range(columns.size):
            sums[j & 3, parts[j]] += row[columns[j] - base]


@compiled
def add_rows(block: Small, rows: Small, total: Small) -> None:
    """total = block[rows].sum(axis=0), in groups of eight rows."""
    total[:] = 0
    done = rows.size & ~7
    for i in range(0, done, 8):
        a, b, c, d = block[rows[i]], block[rows[i + 1]], block[rows[i + 2]], block[rows[i + 3]]
        e, f, g, h = block[rows[i + 4]], block[rows[i + 5]], block[rows[i + 6]], block[rows[i + 7]]
        for k in range(total.size):
            total[k] += ((a[k] + b[k]) + (c[k] + d[k])) + ((e[k] + f[k]) + (g[k] + h[k]))
    if rows.size & 4:
        a, b, c, d = block[rows[done]], block[rows[done + 1]], block[rows[done + 2]], block[rows[done + 3]]
        for k in range(total.size):
            total[k] += (a[k] + b[k]) + (c[k] + d[k])
        done += 4
    for i in range(done, rows.size):
        a = block[rows[i]]
        for k in range(total.size):
            total[k] += a[k]


@compiled
def _means_over_orders(sums: Counts, edges: Counts, ties: Counts, n_top: Counts, mean: Floats) -> None:
    """Parts before ties[p] are in set p for sure; of the tied classes, as many as are left, at random.

    The same operations in the same order as for a single pair, so the same result to the last bit.
    """
    for p in range(n_top.size):
        size = n_top[p]
        if size < 2:
            mean[p] = np.nan
            continue
        part = ties[p]
        tied, drawn = edges[part + 1] - edges[part], size - edges[part]
        between = sums[part, :part].sum() + sums[:part, part].sum()
        total = float(sums[:part, :part].sum()) + float(between) * drawn / tied
        if tied > 1:
            total += float(sums[part, part]) * drawn * (drawn - 1) / (tied * (tied - 1))
        mean[p] = total / (size * (size - 1) / 2)
