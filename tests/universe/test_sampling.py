"""Drawing pairs: what is drawn, how it is distributed, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from itertools import combinations, permutations
from math import comb, factorial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from kt_study.errors import PairsError
from orchestrator.planning import sampling
from orchestrator.planning.sampling import sample_pairs, sample_transfer_pairs


def names(n: int) -> list[str]:
    return [f"model_{index}" for index in range(n)]


def covered(pairs: list[tuple[str, str]]) -> set[str]:
    return {name for pair in pairs for name in pair}


def covering_sets(universe: int, n_pairs: int, n_models: int) -> list[tuple[tuple[str, str], ...]]:
    """Every valid draw, by trying all sets of pairs."""
    arcs = sorted(permutations(names(universe), 2))
    return [chosen for chosen in combinations(arcs, n_pairs) if len(covered(list(chosen))) == n_models]


def assert_uniform(counts: Counter[tuple[tuple[str, str], ...]], outcomes: int) -> None:
    observed = list(counts.values()) + [0] * (outcomes - len(counts))
    assert len(observed) == outcomes, "an outcome was drawn that does not exist"
    assert stats.chisquare(observed).pvalue > 1e-4


@st.composite
def covering_cases(draw: st.DrawFn) -> tuple[int, int, int, int]:
    universe = draw(st.integers(2, 40))
    n_models = draw(st.integers(2, universe))
    low, high = (n_models + 1) // 2, n_models * (n_models - 1)
    n_pairs = draw(
        st.one_of(st.integers(low, min(high, 3 * n_models)), st.integers(low, high), st.sampled_from([low, high]))
    )
    return universe, n_pairs, n_models, draw(st.integers(0, 2**70))


@settings(max_examples=150, deadline=None)
@given(covering_cases())
def test_a_sample_has_the_pairs_and_the_models_asked_for(case: tuple[int, int, int, int]) -> None:
    universe, n_pairs, n_models, seed = case
    pairs = sample_pairs(names(universe), n_pairs, n_models, seed)
    assert len(pairs) == len(set(pairs)) == n_pairs
    assert len(covered(pairs)) == n_models
    assert covered(pairs) <= set(names(universe))
    assert all(teacher != student for teacher, student in pairs)


@settings(max_examples=40, deadline=None)
@given(covering_cases(), st.randoms(use_true_random=False))
def test_the_order_of_the_list_does_not_matter(case: tuple[int, int, int, int], random: object) -> None:
    universe, n_pairs, n_models, seed = case
    shuffled = names(universe) * 2
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert sample_pairs(shuffled, n_pairs, n_models, seed) == sample_pairs(names(universe), n_pairs, n_models, seed)


def test_the_papers_sample_covers_its_301_models() -> None:
    pairs = sample_pairs(names(1321), 466, 301, seed=0)
    assert (len(set(pairs)), len(covered(pairs))) == (466, 301)
    assert pairs != sample_pairs(names(1321), 466, 301, seed=1)


@pytest.mark.parametrize(("n_pairs", "n_models"), [(661, 1321), (700, 1321), (1321, 1321), (4100, 1321), (90300, 301)])
def test_samples_of_the_whole_catalogue(n_pairs: int, n_models: int) -> None:
    pairs = sample_pairs(names(1321), n_pairs, n_models, seed=3)
    assert (len(set(pairs)), len(covered(pairs))) == (n_pairs, n_models)


@pytest.mark.parametrize(
    ("universe", "n_pairs", "n_models"),
    [
        (4, 2, 3),  # by counting, with a choice of models
        (4, 3, 4),  # by counting
        (3, 2, 3),
        (4, 5, 4),  # by rejection
        (3, 4, 3),  # by rejection, drawing what is left out
        (4, 4, 3),
    ],
)
def test_every_set_of_pairs_is_equally_likely(universe: int, n_pairs: int, n_models: int) -> None:
    outcomes = covering_sets(universe, n_pairs, n_models)
    draws = max(2000, 10 * len(outcomes))
    counts = Counter(tuple(sample_pairs(names(universe), n_pairs, n_models, seed)) for seed in range(draws))
    assert set(counts) <= set(outcomes)
    assert_uniform(counts, len(outcomes))


def exact_completions(n: int, m: int) -> dict[tuple[int, int], int]:
    """In how many ways t arcs that touch k of n numbers go on to m that touch all, in exact integers."""
    exact = {(m, k): int(k == n) for k in range(n + 3)}
    for t in range(m - 1, -1, -1):
        for k in range(n + 3):
            ways = (max(k * (k - 1) - t, 0), 2 * k * (n - k), (n - k) * (n - k - 1))
            exact[t, k] = sum(ways[new] * exact.get((t + 1, k + new), 0) for new in range(3)) if k <= n else 0
    return exact


@pytest.mark.parametrize(("n", "m"), [(2, 1), (3, 2), (5, 4), (9, 7), (12, 12), (20, 31)])
def test_counted_completions_are_exact(n: int, m: int) -> None:
    exact = exact_completions(n, m)
    covering = sum((-1) ** k * comb(n, k) * comb((n - k) * (n - k - 1), m) for k in range(n + 1))
    assert exact[0, 0] == factorial(m) * covering  # inclusion and exclusion over the untouched numbers
    table = sampling._completions(n, m)
    for t in range(m + 1):
        reached = [k for k in range(n + 1) if k <= 2 * t and k * (k - 1) >= t and exact[t, k]]
        largest = max(reached, key=lambda k: exact[t, k])
        for k in reached:
            assert table[t, k] / table[t, largest] == pytest.approx(exact[t, k] / exact[t, largest], rel=1e-12)


def log_chances(n: int, m: int) -> NDArray[np.float64]:
    """Natural log of the chance that a draw passes each state (t, k), [m + 1, n + 1], by sums of logarithms."""
    k = np.arange(n + 1.0)
    with np.errstate(divide="ignore"):
        one, two = np.log(2 * k * (n - k)), np.log((n - k) * np.maximum(n - k - 1, 0))
        steps = [(np.log(np.maximum(k * (k - 1) - t, 0)), one, two) for t in range(m)]
    before, after = np.full((m + 1, n + 1), -np.inf), np.full((m + 1, n + 3), -np.inf)
    before[0, 0] = after[m, n] = 0.0
    for t in range(m):
        for j, step in enumerate(steps[t]):
            before[t + 1, j:] = np.logaddexp(before[t + 1, j:], (before[t] + step)[: n + 1 - j])
    for t in range(m - 1, -1, -1):
        after[t, : n + 1] = np.logaddexp.reduce([step + after[t + 1, j : n + 1 + j] for j, step in enumerate(steps[t])])
    return np.asarray(before + after[:, : n + 1] - after[0, 0])


@pytest.mark.parametrize(("n", "m"), [(1321, 661), (1321, 800), (1321, 1321), (3000, 1600)])
def test_no_state_that_a_draw_could_meet_underflows(n: int, m: int) -> None:
    chances = log_chances(n, m)
    lost = chances[sampling._completions(n, m)[:, : n + 1] < 1e-300]
    assert np.exp(chances[m // 2]).sum() == pytest.approx(1)
    assert lost.max() < -200


@pytest.mark.parametrize(
    ("n_pairs", "n_models", "message"),
    [
        (1, 3, "ask for 2 to 6 pairs"),
        (7, 3, "ask for 2 to 6 pairs"),
        (5, 11, "the universe has 10"),
        (0, 1, "at least 2 models"),
        (1, 0, "0 to 0"),
        (-1, 2, "1 to 2"),
        (1, -1, "2 to 10"),
    ],
)
def test_impossible_samples_are_refused_with_the_bounds(n_pairs: int, n_models: int, message: str) -> None:
    with pytest.raises(PairsError, match=message):
        sample_pairs(names(10), n_pairs, n_models, seed=0)


def test_more_models_than_were_checked_are_refused() -> None:
    with pytest.raises(PairsError, match="3000"):
        sample_pairs(names(4000), 2500, 4000, seed=0)


def test_nothing_is_a_sample_too() -> None:
    assert sample_pairs(names(3), 0, 0, seed=0) == []


@settings(max_examples=80, deadline=None)
@given(
    st.sets(st.integers(0, 25), min_size=1), st.sets(st.integers(0, 25), min_size=1), st.data(), st.integers(0, 2**70)
)
def test_transfer_pairs(students: set[int], teachers: set[int], data: st.DataObject, seed: int) -> None:
    everything = {(f"m{t}", f"m{s}") for t in teachers for s in students if t != s}
    n = data.draw(st.integers(0, len(everything)))
    pairs = sample_transfer_pairs([f"m{s}" for s in students], [f"m{t}" for t in teachers], n, seed)
    assert len(pairs) == len(set(pairs)) == n
    assert set(pairs) <= everything
    listed = [f"m{s}" for s in reversed(sorted(students))]
    fewer = sample_transfer_pairs(listed, [f"m{t}" for t in teachers] * 2, n // 2, seed)
    assert set(fewer) <= set(pairs)


def test_transfer_pairs_are_uniform() -> None:
    students, teachers = ["a", "b", "c"], ["b", "c", "d"]
    everything = sorted((t, s) for t in teachers for s in students if t != s)
    counts = Counter(tuple(sample_transfer_pairs(students, teachers, 2, seed)) for seed in range(4200))
    assert_uniform(counts, comb(len(everything), 2))


def test_a_new_model_only_pushes_out_pairs_of_others() -> None:
    before = set(sample_transfer_pairs(names(30), names(30), 100, seed=5))
    after = set(sample_transfer_pairs(names(31), names(31), 100, seed=5))
    assert all("model_30" in pair for pair in after - before)
    assert len(after - before) < 20


def test_too_many_transfer_pairs_are_refused_with_the_bound() -> None:
    with pytest.raises(PairsError, match=r"8 transfer pairs .* 7 pairs .* 0 to 7"):
        sample_transfer_pairs(["a", "b", "c"], ["b", "c", "d"], 8, seed=0)
    assert sample_transfer_pairs([], [], 0, seed=0) == []


def test_the_hash_seed_of_the_process_does_not_matter() -> None:
    script = (
        "from orchestrator.planning.sampling import sample_pairs, sample_transfer_pairs\n"
        "names = [f'model_{i}' for i in range(50)]\n"
        "print(sample_pairs(names, 60, 40, 1), sample_pairs(names, 300, 40, 1))\n"
        "print(sample_transfer_pairs(names, names, 9, 1))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
