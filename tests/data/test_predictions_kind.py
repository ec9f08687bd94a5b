"""kind = "predictions": files of predictions made elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kt_study.datasets import open_split, predictions, prepare
from kt_study.errors import DataError
from kt_study.paths import StudyPaths
from kt_study.records import AllPairsSpec, ComplementaritySpec, DatasetRecord, LogitsSpec, ModelRecord, as_spec
from kt_study.study import DatasetSection
from tests.data.support import job_context
from worker.kinds import all_pairs, complementarity, logits
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


def _prepare(root: Path, paths: StudyPaths, **more: str) -> DatasetRecord:
    return prepare(DatasetSection(kind="predictions", path=str(root), **more), seed=0, folder=root, paths=paths)


def _write_csv(root: Path, name: str, predicted: Sequence[object], labels: Sequence[object]) -> Path:
    root.mkdir(exist_ok=True)
    frame = pd.DataFrame({"sample_index": range(len(labels)), "predicted": predicted, "label": labels})
    frame.to_csv(root / f"{name}.csv", index=False)
    return root


def _model(name: str) -> ModelRecord:
    return ModelRecord(
        key=name, name=name, family="cnn", weights="predictions:x", input_size=(0, 0, 0), mean=(), std=()
    )


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
    spec = LogitsSpec(dataset=record.key, model="good", split="val")
    (row,) = logits.run(as_spec(spec), job_context(paths, record, _model("good")))["evaluations"]
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
        ("sample_index,predicted,label\n0,1,0\n0,1,0\n", "sample '0' is in it twice"),
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


def test_scattered_numbers_are_names_and_not_the_ends_of_a_range(tmp_path: Path, paths: StudyPaths) -> None:
    """Numbers as some data sets have them: 2,084,072 classes, of which three occur, would fill the memory."""
    few = _prepare(_write_csv(tmp_path / "few", "m", [90, 2084071, 2084070], [2084070, 2084071, 90]), paths)
    split = open_split(few, "val", paths)
    assert split.class_names == ["90", "2084070", "2084071"]
    assert split.labels is not None and split.labels.tolist() == [1, 2, 0]
    assert predictions.predicted_classes(few, "m", split.listing.names, split.class_names).tolist() == [0, 2, 1]
    assert _prepare(_write_csv(tmp_path / "below", "m", [3, 999], [3, 3]), paths).n_classes == 1000
    half = [2 * i for i in range(2000)]  # of 0..3998, a little more than half
    assert _prepare(_write_csv(tmp_path / "half", "m", half, half), paths).n_classes == 3999
    less = [*half[:-1], 4000]
    assert _prepare(_write_csv(tmp_path / "less", "m", less, less), paths).n_classes == 2000


def test_a_list_of_classes_counts_those_that_do_not_occur(tmp_path: Path, paths: StudyPaths) -> None:
    (tmp_path / "classes.txt").write_text("crane\ncat\ndog\nowl\ncrane\n")
    listed = {"class_names": str(tmp_path / "classes.txt")}
    for name, predicted, labels in (("numbers", [2, 4], [2, 0]), ("names", ["dog", "cat"], ["dog", "owl"])):
        record = _prepare(_write_csv(tmp_path / name, "m", predicted, labels), paths, **listed)
        split = open_split(record, "val", paths)
        assert split.class_names == ["crane", "cat", "dog", "owl", "crane"]
        got = predictions.predicted_classes(record, "m", split.listing.names, split.class_names)
        assert split.labels is not None
        assert (split.labels.tolist(), got.tolist()) == (([2, 0], [2, 4]) if name == "numbers" else ([2, 3], [2, 1]))
    for predicted, told in (([5], "'5' is none of them"), (["crane"], "'crane' is in it twice"), (["emu"], "'emu' is")):
        with pytest.raises(DataError, match=rf"classes\.txt: .*{told}"):
            _prepare(_write_csv(tmp_path / "p", "m", predicted, ["dog"]), paths, **listed)
    with pytest.raises(DataError, match=r"gone\.txt: cannot be read; fix \[dataset\] class_names"):
        _prepare(tmp_path / "numbers", paths, class_names="gone.txt")
    with pytest.raises(DataError, match="class_names is for kind = 'predictions'"):
        prepare(DatasetSection(kind="digits", **listed), seed=0, folder=tmp_path, paths=paths)


def test_classes_may_be_called_like_missing_values(tmp_path: Path, paths: StudyPaths) -> None:
    names = ["None", "NA", "null", "nan"]
    record = _prepare(_write_csv(tmp_path / "p", "m", names[::-1], names), paths)
    assert open_split(record, "val", paths).class_names == sorted(names)


def test_all_pairs_of_more_classes_than_int16_counts(tmp_path: Path, paths: StudyPaths) -> None:
    labels = np.arange(40_000)
    for name, wrong in {"a": 0, "b": 10_000}.items():
        _write_csv(tmp_path / "p", name, np.where(labels < wrong, labels + 1, labels).tolist(), labels.tolist())
    record = _prepare(tmp_path / "p", paths)
    context = job_context(paths, record, _model("a"), _model("b"))
    (at_once,) = all_pairs.run(as_spec(AllPairsSpec(dataset=record.key, models=("a", "b"))), context)["all_pairs"]
    assert (at_once["n_classes"], at_once["n_pairs"]) == (40_000, 2)
    rows = pd.read_parquet(paths.root / at_once["file"]).set_index("teacher")
    assert rows["acc_teacher"].to_dict() == {"a": 100.0, "b": 75.0}
    spec = ComplementaritySpec(dataset=record.key, teacher="a", student="b")
    (single,) = complementarity.run(as_spec(spec), context)["complementarity"]
    assert single["rho_pos"] == rows["rho_pos"]["a"] == 25.0
    assert single["n_classes"] == rows["n_classes"]["a"] == 40_000
