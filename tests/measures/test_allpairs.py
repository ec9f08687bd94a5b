"""Every ordered pair in one pass, equal to single pairs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from kt_study.errors import DataError
from kt_study.schema import COMPLEMENTARITY
from tests.measures.draws import draw_models, labelled_predictions
from worker.measures import allpairs
from worker.measures.allpairs import Columns, iter_all_pairs, write_all_pairs
from worker.measures.arrays import Counts, Floats, Ints
from worker.measures.pair import measure_pair
from worker.measures.similarity import on_grid, top_similarity


def joined(blocks: Iterator[Columns]) -> Columns:
    parts = list(blocks)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def assert_equal_to_single_pairs(columns: Columns, labels: Ints, predictions: Ints, n_classes: int) -> None:
    """Every measure of every row is that of `measure_pair`: integers exactly, floats to the last bit."""
    for i, (teacher, student) in enumerate(zip(columns["teacher"], columns["student"], strict=True)):
        row = measure_pair(labels, predictions[teacher], predictions[student], n_classes).row()
        np.testing.assert_array_equal([columns[name][i] for name in row], list(row.values()))


def some_similarity(n_classes: int) -> Floats:
    half = np.random.default_rng(7).random((n_classes, n_classes))
    return half + half.T


@given(labelled_predictions(3))
@settings(max_examples=60, deadline=None)
def test_small_and_odd_sets_equal_single_pairs(drawn: tuple[Ints, Ints, int]) -> None:
    labels, predictions, n_classes = drawn
    columns = joined(iter_all_pairs(labels, predictions, n_classes))
    assert_equal_to_single_pairs(columns, labels, predictions, n_classes)


@pytest.mark.parametrize(
    ("n", "n_classes"),
    [(3000, 40), (5000, 1000), (4000, 3), (700, 1)],
    ids=["classes of unequal size", "many classes without images", "large classes", "one class"],
)
def test_larger_sets_equal_single_pairs(n: int, n_classes: int) -> None:
    labels, predictions = draw_models(8, n, n_classes, seed=n)
    columns = joined(iter_all_pairs(labels, predictions, n_classes))
    assert_equal_to_single_pairs(columns, labels, predictions, n_classes)


@pytest.mark.parametrize("size", [63, 64, 65, 128, 129])
def test_classes_at_the_edge_of_a_word(size: int) -> None:
    labels = np.random.default_rng(size).permutation(np.repeat(np.arange(5), size))
    _, predictions = draw_models(4, labels.size, 5, seed=size)
    predictions[0] = labels
    columns = joined(iter_all_pairs(labels, predictions, 5))
    assert_equal_to_single_pairs(columns, labels, predictions, 5)


def test_every_ordered_pair_comes_once_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, predictions = draw_models(9, 400, 6, seed=2)
    whole = joined(iter_all_pairs(labels, predictions, 6))
    pairs = list(zip(whole["student"].tolist(), whole["teacher"].tolist(), strict=True))
    assert pairs == [(s, t) for s in range(9) for t in range(9) if s != t]
    monkeypatch.setattr(allpairs, "_BLOCK_PAIRS", 9)  # one student a block
    monkeypatch.setattr(allpairs, "_MODELS_PER_RUN", 4)
    blocks = list(iter_all_pairs(labels, predictions, 6, threads=3))
    assert [len(block["student"]) for block in blocks] == [8] * 9
    for name, values in joined(iter(blocks)).items():
        np.testing.assert_array_equal(values, whole[name])


def test_equally_alike_classes_have_no_relative_similarity() -> None:
    labels, predictions = draw_models(3, 400, 10, seed=5)
    columns = joined(iter_all_pairs(labels, predictions, 10, similarity=np.full((10, 10), 1 / 3)))
    assert np.isnan([columns[f"top{percent}_similarity"] for percent in (2, 5, 20, 50)]).all()


@pytest.mark.parametrize(
    ("n", "classes"),
    [(900, 25), (90, 6), (6_000, 3), (9_000, 300)],
    ids=["ties", "few flips", "many flips", "several blocks of columns"],
)
def test_similarity_is_that_of_single_pairs_to_the_last_bit(n: int, classes: int) -> None:
    labels, predictions = draw_models(6, n, classes, seed=5)
    known = classes + 10  # the other classes have no images
    similarity = some_similarity(known) - 0.3
    assert_similarity_of_single_pairs(labels, predictions, known, similarity)


def test_similarities_of_very_many_tied_classes_do_not_overflow() -> None:
    labels = np.arange(1_200)
    predictions = np.stack([labels, (labels + 1) % 1_200, np.where(labels % 3, labels, 0)])
    alike = 1.0 - some_similarity(1_200) / 1_000  # 1,200 such in a row, as steps, are more than an int32 holds
    assert_similarity_of_single_pairs(labels, predictions, 1_200, alike)


def assert_similarity_of_single_pairs(labels: Ints, predictions: Ints, known: int, similarity: Floats) -> None:
    """To the last bit: similarities on their grid have exact sums."""
    columns = joined(iter_all_pairs(labels, predictions, known, similarity=similarity))
    for i, (teacher, student) in enumerate(zip(columns["teacher"], columns["student"], strict=True)):
        flips = measure_pair(labels, predictions[teacher], predictions[student], known).positive_flips
        for name, value in top_similarity(flips, on_grid(similarity)).items():
            np.testing.assert_array_equal(columns[name][i], value)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.int64])
def test_any_integer_type_gives_the_same(dtype: type[np.signedinteger[np.int64]]) -> None:
    labels, predictions = draw_models(3, 20_000, 10, seed=4)
    expected = joined(iter_all_pairs(labels, predictions, 10))
    for name, values in joined(iter_all_pairs(labels.astype(dtype), predictions.astype(dtype), 10)).items():
        np.testing.assert_array_equal(values, expected[name])


def test_the_file_has_a_row_a_pair_and_names(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    labels, predictions = draw_models(5, 300, 7, seed=1)
    names = [f"model {i}" for i in range(5)]
    path = tmp_path / "pairs.parquet"
    constants = {"dataset": "drawn", "similarity": "mine"}
    rows = write_all_pairs(
        path, labels, predictions, 7, models=names, constants=constants, similarity=some_similarity(7)
    )
    table = pq.read_table(path)
    assert rows == table.num_rows == 20
    assert set(table.column_names) <= {column.name for column in COMPLEMENTARITY.columns}
    assert set(table["dataset"].to_pylist()) == {"drawn"}
    first = table.slice(0, 1).to_pylist()[0]
    assert (first["teacher"], first["student"]) == ("model 1", "model 0")
    measured = measure_pair(labels, predictions[1], predictions[0], 7).row()
    assert {name: first[name] for name in measured} == pytest.approx(measured, nan_ok=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["pairs.parquet"]


def test_a_failing_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels, predictions = draw_models(3, 50, 4, seed=1)
    path = tmp_path / "pairs.parquet"
    path.write_text("before")
    with pytest.raises(DataError, match="2 model names for 3 rows"):
        write_all_pairs(path, labels, predictions, 4, models=["a", "b"])
    with pytest.raises(DataError, match="classes"):
        write_all_pairs(path, labels, predictions + 4, 4, models=["a", "b", "c"])
    monkeypatch.setattr(allpairs, "_BLOCK_PAIRS", 3)  # one student a block
    measure = allpairs._measure_block

    def fail_later(task: allpairs._Task, students: Counts) -> Columns:
        if students[0] == 2:
            raise MemoryError
        return measure(task, students)

    monkeypatch.setattr(allpairs, "_measure_block", fail_later)
    with pytest.raises(MemoryError):
        write_all_pairs(path, labels, predictions, 4, models=["a", "b", "c"])
    assert path.read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 1


def test_input_that_does_not_fit_is_refused() -> None:
    labels, predictions = draw_models(3, 50, 4, seed=1)
    with pytest.raises(DataError, match="one row per model"):
        list(iter_all_pairs(labels, predictions[0], 4))
    with pytest.raises(DataError, match=r"shape \(5, 5\) for 4 classes"):
        list(iter_all_pairs(labels, predictions, 4, similarity=np.ones((5, 5))))
    with pytest.raises(DataError, match="symmetric"):
        list(iter_all_pairs(labels, predictions, 4, similarity=np.arange(16.0).reshape(4, 4)))
