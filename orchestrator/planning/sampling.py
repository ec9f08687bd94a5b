"""Draws the pairs of a study, reproducibly from the seed on every platform and for every order of the lists.

All randomness is a hash of the seed and of names or counters (`kt_study.hashing`), not a generator whose algorithm could
change. Lists are read as sets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from kt_study.errors import PairsError
from kt_study.hashing import hash64, hash64_array

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Pair = tuple[str, str]
"""(teacher, student)"""

Arcs = set[tuple[int, int]]

_REJECTION_MEAN = 3.0  # expected uncovered models of a plain draw, up to which rejection is cheaper than the table
_MOST_COUNTED = 3000  # models; beyond it the counts of states that draws reach leave the range of float64
_LARGEST = 2.0**950  # scale of the table's rows: leaves room above for products, and the most room below
_ATTEMPTS = 10_000  # each succeeds with a probability of about exp(-_REJECTION_MEAN) or more


def sample_pairs(models: Sequence[str], n_pairs: int, n_models: int, seed: int) -> list[Pair]:
    """Draw `n_pairs` ordered pairs of different models that cover exactly `n_models` models.

    The distribution is uniform: every set of `n_pairs` ordered pairs that covers exactly `n_models` of the models is
    equally likely, up to the rounding of float64 (relative error below 1e-9). The models are drawn first, uniformly;
    every choice of models has equally many covering sets, so that drawing the pairs uniformly given the models is
    uniform overall. A plain draw of 466 pairs would leave out about 14 of 301 models.

    Args:
        models: names to draw from; order and repetitions do not matter.
        n_pairs: number of pairs, the paper's is 466.
        n_models: number of models among them, the paper's is 301.
        seed: of the draw.

    Returns:
        (teacher, student) pairs, sorted.

    Raises:
        PairsError: no such set of pairs exists; the message gives the bounds.
    """
    universe = sorted(set(models))
    _check_covering(len(universe), n_pairs, n_models)
    chosen = sorted(universe, key=lambda name: (hash64("pair models", seed, name), name))[:n_models]
    arcs = _covering_arcs(n_models, n_pairs, seed)
    return sorted((chosen[teacher], chosen[student]) for teacher, student in arcs)


def sample_transfer_pairs(students: Sequence[str], teachers: Sequence[str], n: int, seed: int) -> list[Pair]:
    """Draw `n` different pairs from teachers x students, uniformly without replacement, no model with itself.

    Each pair has a rank that depends only on the seed and its two names; the first `n` are taken. So a larger `n` adds
    pairs to those of a smaller one, and a model added to a list only adds pairs with this model.

    Args:
        students, teachers: names; order and repetitions do not matter, and a name may be in both.
        n: number of pairs; 0 gives none.
        seed: of the draw.

    Returns:
        (teacher, student) pairs, sorted.

    Raises:
        PairsError: more pairs than exist; the message gives the bound.
    """
    import numpy as np

    rows, columns = sorted(set(teachers)), sorted(set(students))
    exist = len(rows) * len(columns) - len(set(rows) & set(columns))
    if not 0 <= n <= exist:
        raise PairsError(
            f"{n} transfer pairs cannot be drawn: {len(rows)} teachers x {len(columns)} students are {exist} pairs of "
            f"different models; ask for 0 to {exist}"
        )
    if n == 0:
        return []
    ranks = _ranks(rows, columns, seed)
    last = np.partition(ranks, n - 1, axis=None)[n - 1]
    candidates = np.argwhere(ranks <= last)
    order = np.argsort(ranks[ranks <= last], kind="stable")[:n]
    return sorted((rows[row], columns[column]) for row, column in candidates[order].tolist())


def _ranks(teachers: Sequence[str], students: Sequence[str], seed: int) -> NDArray[np.uint64]:
    """Rank of each pair, uint64 [teachers, students]; the largest number for a self-pair."""
    import numpy as np

    rows = np.array([hash64("transfer teacher", seed, name) for name in teachers], dtype=np.uint64)
    columns = np.array([hash64("transfer student", seed, name) for name in students], dtype=np.uint64)
    ranks = hash64_array(hash64("transfer pair", seed), rows[:, None] + columns[None, :])
    column_of = {name: index for index, name in enumerate(students)}
    for row, name in enumerate(teachers):
        if name in column_of:
            ranks[row, column_of[name]] = np.iinfo(np.uint64).max
    return ranks


def _check_covering(universe: int, n_pairs: int, n_models: int) -> None:
    if not 0 <= n_models <= universe:
        raise PairsError(f"{n_models} models cannot be covered: the universe has {universe}; ask for 2 to {universe}")
    low, high = math.ceil(n_models / 2), n_models * (n_models - 1)
    if not low <= n_pairs <= high:
        fits = f"ask for {low} to {high} pairs" if low <= high else "ask for at least 2 models"
        raise PairsError(f"{n_pairs} pairs cannot cover exactly {n_models} models; {fits}")


def _covering_arcs(n: int, m: int, seed: int) -> Arcs:
    """A uniform draw among the sets of `m` ordered pairs of 0..n-1 that touch every number."""
    if m == 0:
        return set()
    if m >= n and n * math.exp(-2 * m / n) <= _REJECTION_MEAN:
        return _by_rejection(n, m, seed)
    if n > _MOST_COUNTED:
        raise PairsError(f"{m} pairs are too few to cover {n} models evenly; ask for at most {_MOST_COUNTED} models")
    return _by_counting(n, m, seed)


def _by_rejection(n: int, m: int, seed: int) -> Arcs:
    """Plain draws of `m` arcs until one touches every number."""
    import numpy as np

    everything = n * (n - 1)
    for attempt in range(_ATTEMPTS):
        drawn = _distinct(hash64("pairs", seed, attempt), everything, min(m, everything - m))
        index = drawn if m <= everything - m else np.setdiff1d(np.arange(everything), drawn)
        first, rest = np.divmod(index, n - 1)
        second = rest + (rest >= first)
        if len(np.union1d(first, second)) == n:
            return set(zip(first.tolist(), second.tolist(), strict=True))
    raise PairsError(f"{m} pairs that cover {n} models were not found in {_ATTEMPTS} draws; use another seed")


def _distinct(key: int, population: int, count: int) -> NDArray[np.int64]:
    """`count` different numbers below `population`: the first ones of a stream of uniform numbers, int64 [count]."""
    import numpy as np

    length = 2 * count + 16
    while True:
        stream = hash64_array(key, np.arange(length)) % np.uint64(population)
        values, first_seen = np.unique(stream, return_index=True)
        if len(values) >= count:
            return np.asarray(stream[np.sort(first_seen)[:count]], dtype=np.int64)
        length *= 2


def _by_counting(n: int, m: int, seed: int) -> Arcs:
    """Arc by arc, each kind of arc with the share of its completions among all completions as probability.

    A state is (t, k): t arcs drawn, which touch k numbers. The next arc joins two touched numbers, one, or none. How
    many arcs of each kind there are depends on t and k alone, so completions can be counted from the end; what is drawn
    is a uniform sequence of different arcs that touches everything, hence a uniform set. Numbers are touched in
    ascending order without loss of generality, since the numbers of the models are themselves uniform.
    """
    completions = _completions(n, m)
    draw = _stream(seed)
    arcs: Arcs = set()
    k = 0
    for t in range(m):
        weights = [ways * float(completions[t + 1, k + new]) for new, ways in enumerate(_ways(n, t, k))]
        at = draw(1 << 53) * 2.0**-53 * sum(weights)
        if at < weights[0]:
            arcs.add(_unused_arc(arcs, k, draw))
        elif at < weights[0] + weights[1]:
            arcs.add((draw(k), k) if draw(2) else (k, draw(k)))
            k += 1
        else:
            arcs.add((k, k + 1))
            k += 2
    return arcs


def _ways(n: int, t: int, k: int) -> tuple[int, int, int]:
    """Arcs that can come next and touch 0, 1 and 2 new numbers."""
    return k * (k - 1) - t, 2 * k * (n - k), (n - k) * (n - k - 1)


def _completions(n: int, m: int) -> NDArray[np.float64]:
    """The number of completions of each state (t, k), float64 [m + 1, n + 3], each row up to a factor.

    States that no draw reaches (k > 2t, or fewer than t arcs among k numbers) are 0, since their counts are so much larger
    that those of the others would underflow.
    """
    import numpy as np

    k = np.arange(n + 1, dtype=np.float64)
    pairs, one, two = k * (k - 1), 2 * k * (n - k), (n - k) * (n - k - 1)
    completions = np.zeros((m + 1, n + 3))
    completions[m, n] = _LARGEST
    for t in range(m - 1, -1, -1):
        low, high = max(0, n - 2 * (m - t)), min(n, 2 * t) + 1
        after = completions[t + 1]
        row = np.maximum(pairs[low:high] - t, 0.0) * after[low:high]
        row += one[low:high] * after[low + 1 : high + 1]
        row += two[low:high] * after[low + 2 : high + 2]
        row *= pairs[low:high] >= t
        completions[t, low:high] = row * (_LARGEST / row.max())
    return completions


def _unused_arc(arcs: Arcs, k: int, draw: Callable[[int], int]) -> tuple[int, int]:
    """A uniform draw of the arcs among 0..k-1 that are not drawn yet; there is at least one."""
    while True:
        first, second = draw(k), draw(k - 1)
        arc = (first, second + (second >= first))
        if arc not in arcs:
            return arc


def _stream(seed: int) -> Callable[[int], int]:
    """A function that draws the next uniform integer below its argument (bias below argument / 2**64)."""
    counter: Iterator[int] = iter(range(1 << 62))
    return lambda bound: (hash64("pair arcs", seed, next(counter)) * bound) >> 64
