"""Every ordered pair of M models in one pass over bits (the complementarity study for all of timm).

A pair costs one and-not and one popcount per 64 samples, then a count of classes by their flips; all other measures are
computed from a few integers per pair. Results equal those of `measure_pair` and `top_similarity` to the last bit.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from kt_study.errors import DataError
from kt_study.files import atomic_write
from kt_study.schema import TOP_PERCENTS
from worker.measures import kernels, similarity_kernels
from worker.measures.arrays import Counts, Floats, Ints, check_labels, check_predictions
from worker.measures.bits import Correctness, pack_correctness
from worker.measures.entropy import entropy_of_sums, expected_subset_entropy, xlogx
from worker.measures.rates import pair_rates
from worker.measures.similarity import average_similarity, check_similarity, grid_step, on_grid

if TYPE_CHECKING:
    import pyarrow as pa

Columns = dict[str, npt.NDArray[Any]]
_MODELS_PER_RUN = 16  # compared with all others: their predictions stay in the processor's cache
_BLOCK_PAIRS = 1 << 15  # pairs of a block: their columns and temporaries stay in the processor's cache


class _Task(msgspec.Struct, frozen=True, kw_only=True):
    """Inputs of every block: bits uint64[M, W], same int32[M, M] or None, similarity int32[blocks, C, 256] or None."""

    correct: Correctness
    right: Counts  # int64[M], samples each model gets right
    errors: Counts  # int64[M, classes with samples], samples of each class each model gets wrong
    terms: Floats  # k log k up to the largest class
    same: kernels.Small | None  # samples on which two models predict the same class
    similarity: kernels.Small | None  # `upper_blocks` of the classes with samples
    similarity_step: float
    average_similarity: float


def iter_all_pairs(
    labels: Ints,
    predictions: Ints,
    n_classes: int,
    *,
    similarity: Floats | None = None,
    agreement: bool = True,
    threads: int = 2,
) -> Iterator[Columns]:
    """Measure every ordered pair of different models, block by block, students ascending, teachers ascending within.

    Memory beyond the inputs: one bit per sample and model, 4 bytes per pair for the agreement, and a few blocks of about
    32,000 pairs.

    Args:
        labels: int[n], classes from 0.
        predictions: int[M, n]; int16 is fastest.
        n_classes: classes of the data set, those without samples included.
        similarity: float64[n_classes, n_classes], symmetric, taken `on_grid`; adds the `topX_similarity` columns, at
            about 0.02 ms per pair with 1,000 classes; the rest takes less than 0.01 ms.
        agreement: adds the `agreement` column, for which all predictions are compared; up to twice the time.
        threads: blocks computed in parallel.

    Yields:
        Columns of equal length: `teacher` and `student`, int32 rows of `predictions`, and the measures of the
        `complementarity` table under its names, counts as int64 and the others as float64.

    Raises:
        DataError: shapes differ, a class is not in [0, n_classes), or the similarity is not symmetric.
    """
    check_labels(labels, n_classes)
    check_predictions("predictions", predictions, labels, n_classes)
    if predictions.ndim != 2:
        raise DataError(f"predictions have shape {predictions.shape}, expected one row per model")
    if similarity is not None:
        check_similarity(similarity, n_classes)
        similarity = on_grid(similarity)
    with ThreadPoolExecutor(threads) as pool:
        correct = pack_correctness(labels, predictions, n_classes, pool)
        task = _prepare(correct, _count_agreement(predictions, pool) if agreement else None, similarity)
        students = _blocks_of_students(len(predictions), threads)
        yield from _in_order(pool, lambda some: _measure_block(task, some), students, ahead=2 * threads)


def iter_agreements(predictions: Ints, *, threads: int = 2) -> Iterator[Columns]:
    """The agreement of every ordered pair of different models, in the order and columns of `iter_all_pairs`."""
    models, n = predictions.shape
    with ThreadPoolExecutor(threads) as pool:
        same = _count_agreement(predictions, pool)
    for students in _blocks_of_students(models, threads):
        teacher, student = np.broadcast_arrays(np.arange(models), students[:, None])
        others = teacher != student
        yield {
            "teacher": teacher[others].astype(np.int32),
            "student": student[others].astype(np.int32),
            "n": np.full(int(others.sum()), n, dtype=np.int64),
            "agreement": (same[students] * 100.0 / n)[others],
        }


def _blocks_of_students(models: int, threads: int) -> Iterator[Counts]:
    """Blocks int64[S]: small enough for the cache, and enough of them to keep every thread busy."""
    block = max(min(_BLOCK_PAIRS // max(models, 1), models // (4 * threads)), 1)
    for first in range(0, models, block):
        yield np.arange(first, min(first + block, models))


def write_all_pairs(
    path: Path,
    labels: Ints | None,
    predictions: Ints,
    n_classes: int,
    *,
    models: Sequence[str],
    keys: Sequence[str] = (),
    constants: Mapping[str, str] | None = None,
    similarity: Floats | None = None,
    agreement: bool = True,
    threads: int = 2,
) -> int:
    """Write every ordered pair to a parquet file, one row per pair; the file is complete or absent.

    Args:
        path: the parquet file.
        models: names of the models, one per row of `predictions`, for the columns `teacher` and `student`.
        keys: of the models likewise, for `teacher_key` and `student_key`; none to leave these out.
        constants: text columns with one value for all rows, such as `dataset`.
        labels, predictions, n_classes, similarity, agreement, threads: as for `iter_all_pairs`; without labels the
            columns are teacher, student, n and agreement.

    Returns:
        Rows written, M * (M - 1).

    Raises:
        DataError: as for `iter_all_pairs`, or names and predictions differ in number.
        DiskError: the file cannot be written.
    """
    import pyarrow.parquet as pq

    if len(models) != len(predictions):
        raise DataError(f"{len(models)} model names for {len(predictions)} rows of predictions")
    if len(models) < 2:
        raise DataError(f"{len(models)} model makes no pair; give at least two")
    if labels is None:
        blocks = iter_agreements(predictions, threads=threads)
    else:
        blocks = iter_all_pairs(
            labels, predictions, n_classes, similarity=similarity, agreement=agreement, threads=threads
        )
    rows = 0
    with atomic_write(path) as scratch:
        tables = (_as_table(block, models, keys, constants or {}) for block in blocks)
        first = next(tables)
        with pq.ParquetWriter(scratch, first.schema, compression="zstd") as writer:
            for table in itertools.chain([first], tables):
                writer.write_table(table)
                rows += table.num_rows
    return rows


def _prepare(correct: Correctness, same: kernels.Small | None, similarity: Floats | None) -> _Task:
    right_by_class = correct.right_by_class()
    present = np.ix_(correct.classes, correct.classes)
    step = float("nan") if similarity is None else grid_step(similarity)
    return _Task(
        correct=correct,
        right=right_by_class.sum(axis=1),
        errors=correct.class_sizes - right_by_class,
        terms=xlogx(int(correct.class_sizes.max())),
        same=same,
        similarity=None if similarity is None else similarity_kernels.upper_blocks(similarity[present], step),
        similarity_step=step,
        average_similarity=float("nan") if similarity is None else average_similarity(similarity),
    )


def _measure_block(task: _Task, students: Counts) -> Columns:
    """All columns for these students, int64[S], with every other model as the teacher."""
    correct, models = task.correct, len(task.right)
    shape = (students.size, models)
    positive, weighted = np.empty(shape, dtype=np.int64), np.empty(shape)
    n_top = np.empty((*shape, len(TOP_PERCENTS)), dtype=np.int64)
    percents = np.array(TOP_PERCENTS)
    kernels.summarise_flips(correct.words, correct.starts, students, task.terms, percents, positive, weighted, n_top)
    teacher, student = np.broadcast_arrays(np.arange(models), students[:, None])
    right_teacher, right_student = task.right[teacher], task.right[student]
    columns: Columns = {
        "teacher": teacher.astype(np.int32),
        "student": student.astype(np.int32),
        "n": np.full(shape, correct.n, dtype=np.int64),
        "n_classes": np.full(shape, correct.n_classes, dtype=np.int64),
        "n_positive_flips": positive,
        "n_negative_flips": right_student - right_teacher + positive,
        **pair_rates(correct.n, right_teacher, right_student, positive),
        "entropy": entropy_of_sums(positive, weighted),
        "entropy_null": expected_subset_entropy(task.errors[students], positive),
    }
    for p, percent in enumerate(TOP_PERCENTS):
        columns[f"top{percent}_classes"] = n_top[..., p] * 100.0 / correct.n_classes
    if task.same is not None:
        columns["agreement"] = task.same[students] * 100.0 / correct.n
    if task.similarity is not None:
        columns |= _similarities(task, task.similarity, students, n_top)
    others = teacher != student
    return {name: values[others] for name, values in columns.items()}


def _count_agreement(predictions: Ints, pool: Executor) -> kernels.Small:
    """int32[M, M], symmetric: samples on which two models predict the same class."""
    models = len(predictions)
    same = np.empty((models, models), dtype=np.int32)

    def count(first: int) -> None:
        kernels.count_agreement(predictions, first, min(first + _MODELS_PER_RUN, models), same)

    for _ in pool.map(count, range(0, models, _MODELS_PER_RUN)):
        pass
    return same


def _similarities(task: _Task, similarity: kernels.Small, students: Counts, n_top: Counts) -> Columns:
    """The `topX_similarity` columns, float64[S, M], % above the average over all pairs of classes."""
    mean = np.empty(n_top.shape)
    similarity_kernels.mean_top_similarities(task.correct.words, task.correct.starts, students, similarity, n_top, mean)
    mean *= task.similarity_step
    relative = (mean - task.average_similarity) / (task.average_similarity or np.nan) * 100.0
    return {f"top{percent}_similarity": relative[..., p] for p, percent in enumerate(TOP_PERCENTS)}


def _in_order(
    pool: Executor, work: Callable[[Counts], Columns], items: Iterable[Counts], *, ahead: int
) -> Iterator[Columns]:
    """Results of `work` in the order of `items`, at most `ahead` of them waiting in memory."""
    waiting: deque[Future[Columns]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _as_table(block: Columns, models: Sequence[str], keys: Sequence[str], constants: Mapping[str, str]) -> pa.Table:
    """A block as arrow columns, names and constants dictionary-encoded."""
    import pyarrow as pa

    rows = len(block["teacher"])
    columns: dict[str, Any] = {
        name: pa.DictionaryArray.from_arrays(np.zeros(rows, dtype=np.int32), [value])
        for name, value in constants.items()
    }
    for name, values in block.items():
        names_model = name in ("teacher", "student")
        columns[name] = pa.DictionaryArray.from_arrays(values, list(models)) if names_model else pa.array(values)
        if names_model and keys:
            columns[f"{name}_key"] = pa.DictionaryArray.from_arrays(values, list(keys))
    return pa.table(columns)
