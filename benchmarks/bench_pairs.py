"""All pairs: the bit engine against matrix products, a loop over single pairs, and the memory's and the cache's bandwidth.

    python -m benchmarks.bench_pairs                    301 models (the paper's universe) and 1,700 (all of timm)
    python -m benchmarks.bench_pairs --models 301

Predictions are drawn: a difficulty for every sample, a skill for every model, so that accuracies lie between about 65
and 85 % and models err on the same samples as real ones do. 50,000 samples of 1,000 classes, like ImageNet's
validation set.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from benchmarks.harness import interleave, medians, versions, write_result
from worker.measures.allpairs import iter_all_pairs
from worker.measures.arrays import Counts, Floats, Ints, in_lines
from worker.measures.jit import compiled
from worker.measures.kernels import Small
from worker.measures.pair import measure_pair
from worker.measures.similarity_kernels import add_rows
from worker.measures.top_classes import top_classes

SAMPLES, CLASSES = 50_000, 1_000
NAIVE_PAIRS = 50
ROW_PAIRS = 1_000
SCALED = {"single_pairs": NAIVE_PAIRS, "rows_of_the_sets": ROW_PAIRS}
"""Cases that measure so many ordered pairs, and whose time is scaled to all."""
ROW_BYTES = 20 * 8  # columns of a pair, written once


def draw_predictions(models: int, seed: int = 0) -> tuple[Ints, Ints]:
    """Labels int64[n] and predictions int16[models, n]."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(CLASSES), SAMPLES // CLASSES)
    difficulty = rng.normal(size=SAMPLES)
    predictions = np.empty((models, SAMPLES), dtype=np.int16)
    for row in predictions:
        right = difficulty + 0.5 * rng.normal(size=SAMPLES) < rng.uniform(0.45, 1.2)
        row[:] = np.where(right, labels, rng.integers(0, CLASSES, SAMPLES))
    return labels, predictions


def bits(
    labels: Ints, predictions: Ints, *, agreement: bool = False, similarity: Floats | None = None
) -> Callable[[], None]:
    """The engine, with the columns of agreement and of similarity or without."""

    def run() -> None:
        for _ in iter_all_pairs(
            labels, predictions, CLASSES, agreement=agreement, similarity=similarity, threads=cores()
        ):
            pass

    return run


def matrix_products(labels: Ints, predictions: Ints) -> Callable[[], None]:
    """Flips of every pair as one float32 product: totals only, without classes."""

    def run() -> None:
        right = (predictions == labels).astype(np.float32)
        _ = right @ (1.0 - right).T

    return run


def matrix_products_by_class(labels: Ints, predictions: Ints) -> Callable[[], None]:
    """Flips of every pair in every class as float32 products, one a class; what comes after them is left out."""

    def run() -> None:
        right = (predictions == labels).astype(np.float32).reshape(len(predictions), CLASSES, -1)
        for c in range(CLASSES):
            _ = right[:, c] @ (1.0 - right[:, c]).T

    return run


def products_with_similarity(models: int, similarity: Floats) -> Callable[[], None]:
    """One set of classes of every ordered pair times the similarity, as float32 products: the start of a dense way to
    one mean similarity a pair, where the engine gives four, ties averaged over all orders."""
    sets = (np.random.default_rng(0).random((models, CLASSES)) < 0.4).astype(np.float32)
    single = similarity.astype(np.float32)

    def run() -> None:
        for _ in range(models - 1):
            _ = sets @ single

    return run


@compiled
def add_up(blocks: Small, sets: Small, sizes: Counts, total: Small) -> None:
    """The sum of `blocks[b]` over the classes of each set that have anything above the diagonal there, for each block b."""
    for b in range(blocks.shape[0]):
        for i in range(sizes.size):
            known = np.searchsorted(sets[i, : sizes[i]], (b + 1) * total.size)
            add_rows(blocks[b], sets[i, :known], total)


def rows_of_the_sets(labels: Ints, predictions: Ints) -> Callable[[], None]:
    """Add up, for ROW_PAIRS ordered pairs, the rows of the similarity above its diagonal for the classes with the top 50 %
    of flips and those tied with them, and nothing else: the engine's additions without all that tells what to add."""
    sets = np.zeros((ROW_PAIRS, CLASSES), dtype=np.int32)
    sizes = np.zeros(ROW_PAIRS, dtype=np.int64)
    for i in range(ROW_PAIRS):
        flips = measure_pair(labels, predictions[i % 7], predictions[7 + i % 11], CLASSES).positive_flips
        top = top_classes(flips, 50)
        members = np.flatnonzero(top.sure | top.tied)
        sizes[i] = members.size
        sets[i, : members.size] = members
    blocks = in_lines(np.ones((4, CLASSES, 256), dtype=np.int32))
    pool = ThreadPoolExecutor(cores())

    def run() -> None:
        parts = zip(np.array_split(sets, cores()), np.array_split(sizes, cores()), strict=True)
        for _ in pool.map(lambda part: add_up(blocks, *part, np.zeros(256, np.int32)), parts):
            pass

    return run


def single_pairs(labels: Ints, predictions: Ints) -> Callable[[], None]:
    """`measure_pair` on NAIVE_PAIRS ordered pairs."""

    def run() -> None:
        for i in range(NAIVE_PAIRS):
            measure_pair(labels, predictions[i % 7], predictions[7 + i % 11], CLASSES)

    return run


def memory_traffic(models: int) -> Callable[[], None]:
    """Read predictions once and write a row a pair once: no engine that starts and ends in memory can be faster."""
    source = np.ones(models * SAMPLES * 2 // 8)
    rows = np.empty(models * (models - 1) * ROW_BYTES // 8)
    total: list[Floats] = []

    def run() -> None:
        total[:] = [source.sum()]
        rows[:] = 0.0

    return run


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def measure(models: int, rounds: int, by_class: bool) -> dict[str, float]:
    """Median seconds of every case at this number of models; the loop over single pairs is scaled to all pairs."""
    labels, predictions = draw_predictions(models)
    cases = {
        "bits": bits(labels, predictions),
        "bits_with_agreement": bits(labels, predictions, agreement=True),
        "matrix_products_totals_only": matrix_products(labels, predictions),
        "single_pairs": single_pairs(labels, predictions),
        "memory_traffic": memory_traffic(models),
    }
    half = np.random.default_rng(0).random((CLASSES, CLASSES))
    cases["bits_with_similarity"] = bits(labels, predictions, agreement=True, similarity=half + half.T)
    cases["rows_of_the_sets"] = rows_of_the_sets(labels, predictions)
    if by_class:
        cases["matrix_products_of_one_set_with_similarity"] = products_with_similarity(models, half + half.T)
        cases["matrix_products_by_class"] = matrix_products_by_class(labels, predictions)
    seconds = medians(interleave(cases, rounds))
    for name, measured in SCALED.items():
        seconds[name] *= models * (models - 1) / measured
    return seconds


def main() -> None:
    """Measure, print seconds and ratios, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, nargs="*", default=[301, 1700])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    result = {}
    for models in options.models:
        seconds = measure(models, options.rounds, by_class=models <= 500)
        result[str(models)] = {
            "pairs": models * (models - 1),
            "median_seconds": seconds,
            "ratio_to_bits": {name: value / seconds["bits"] for name, value in seconds.items()},
        }
        print(f"{models} models, {models * (models - 1):,} ordered pairs, n = {SAMPLES:,}, {CLASSES:,} classes")
        for name, value in seconds.items():
            scaled = f", {SCALED[name]:,} pairs measured and scaled" if name in SCALED else ""
            print(f"  {name:30} {value:12.3f} s  {value / seconds['bits']:10.2f} x bits{scaled}")
    path = write_result(
        "pairs",
        {
            "threads": cores(),
            "rounds": options.rounds,
            "pairs_measured": SCALED,
            "versions": versions("numpy", "numba"),
            "by_models": result,
        },
    )
    print(path)


if __name__ == "__main__":
    main()
