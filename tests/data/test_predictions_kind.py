"""kind = "predictions": files of predictions made elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kt_study.datasets import open_split, predictions, prepare
from kt_study.errors import DataError
from kt_study.paths import StudyPaths
from kt_study.study import DatasetSection
from kt_study.words import DatasetRecord, LogitsSpec, ModelRecord, as_spec
from tests.data.support import job_context
from worker.kinds import logits
from worker.logits import LogitsCache

LABELS = [0, 1, 2, 2, 1]
PREDICTED = {"good": [0, 1, 2, 2, 0], "poor": [2, 1, 0, 0, 4]}


def _write(root: Path) -> Path:
    root.mkdir()
    frames = {
        name: pd.DataFrame({"sample_index": range(5), "predicted": values, "label": LABELS})
        for name, values in PREDICTED.items()
    }
    frames["good"].to_csv(root / "good.csv", index=False)
    frames["poor"].iloc[::-1].to_parquet(root / "poor.parquet")
    return root


def _prepare(root: Path, paths: StudyPaths) -> DatasetRecord:
    return prepare(DatasetSection(kind="predictions", path=str(root)), seed=0, folder=root, paths=paths)


def test_files_of_both_kinds_in_any_row_order(tmp_path: Path, paths: StudyPaths) -> None:
    record = _prepare(_write(tmp_path / "p"), paths)
    split = open_split(record, "val", paths)
    assert predictions.model_names(record) == ["good", "poor"]
    assert (split.labels.tolist(), record.n_classes) == (LABELS, 5)
    for name, expected in PREDICTED.items():
        got = predictions.predicted_classes(record, name, split.listing.names, split.class_names)
        assert got.tolist() == expected


def test_names_of_classes_and_of_samples(tmp_path: Path, paths: StudyPaths) -> None:
    root = tmp_path / "p"
    root.mkdir()
    frame = pd.DataFrame({"sample_index": ["b.jpg", "a.jpg"], "predicted": ["dog", "cat"], "label": ["cat", "cat"]})
    frame.to_csv(root / "m.v1.csv", index=False)
    record = _prepare(root, paths)
    split = open_split(record, "val", paths)
    assert split.class_names == ["cat", "dog"]
    assert [split.name(i) for i in range(2)] == ["a.jpg", "b.jpg"]
    assert predictions.predicted_classes(record, "m.v1", split.listing.names, split.class_names).tolist() == [0, 1]
    with pytest.raises(DataError, match="no images"):
        split.image(0)


def test_the_logits_job_gives_the_same_kind_of_row(tmp_path: Path, paths: StudyPaths) -> None:
    record = _prepare(_write(tmp_path / "p"), paths)
    model = ModelRecord(
        key="good", name="good", family="cnn", weights="predictions:x", input_size=(0, 0, 0), mean=(), std=()
    )
    spec = LogitsSpec(dataset=record.key, model="good", split="val")
    (row,) = logits.run(as_spec(spec), job_context(paths, record, model))["evaluations"]
    assert row["acc"] == 80.0
    assert (row["loss"], row["source"]) == (None, "predictions made elsewhere")
    entry = LogitsCache(paths).open(spec)
    assert entry is not None
    assert entry.argmax.tolist() == PREDICTED["good"]
    assert entry.right.tolist() == [True, True, True, True, False]


def test_changed_files_are_noticed(tmp_path: Path, paths: StudyPaths) -> None:
    root = _write(tmp_path / "p")
    record = _prepare(root, paths)
    split = open_split(record, "val", paths)
    (root / "good.csv").write_text((root / "good.csv").read_text().replace("4,0,1", "4,1,1"))
    with pytest.raises(DataError, match="changed since the study was planned"):
        predictions.predicted_classes(record, "good", split.listing.names, split.class_names)
    assert _prepare(root, paths).key != record.key


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("sample_index,predicted\n0,1\n", "column 'label' is missing; it has sample_index, predicted"),
        ("sample_index,predicted,label\n", "no rows"),
        ("sample_index,predicted,label\n0,1,0\n0,1,0\n", "sample '0' stands twice"),
        ("sample_index,predicted,label\n0,,0\n", "empty cells in column 'predicted'"),
        ("sample_index,predicted,label\n0,0,0\n1,1,1\n2,2,2\n3,2,2\n", "not the samples of good.csv: '4' is only in"),
        ("sample_index,predicted,label\n0,0,0\n1,1,1\n2,2,2\n3,2,2\n4,1,2\n", "sample '4' has another label"),
        ("", "cannot be read as csv"),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path: Path, paths: StudyPaths, content: str, told: str) -> None:
    root = _write(tmp_path / "p")
    (root / "third.csv").write_text(content)
    with pytest.raises(DataError, match=r"third\.csv") as caught:
        _prepare(root, paths)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_file_a_model(tmp_path: Path, paths: StudyPaths) -> None:
    root = _write(tmp_path / "p")
    (root / "poor.csv").write_text((root / "good.csv").read_text())
    with pytest.raises(DataError, match=r"poor.csv and poor.parquet are both there"):
        _prepare(root, paths)
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"no .csv or .parquet"):
        _prepare(tmp_path / "none", paths)


def test_whole_numbers_written_as_reals(tmp_path: Path, paths: StudyPaths) -> None:
    root = _write(tmp_path / "p")
    frame = pd.DataFrame({"sample_index": np.arange(5.0), "predicted": np.zeros(5), "label": np.array(LABELS, float)})
    frame.to_csv(root / "real.csv", index=False)
    assert _prepare(root, paths).n_classes == 5
