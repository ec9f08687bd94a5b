"""kind = "predictions": files of predictions made elsewhere."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kt_study.datasets import Contents, open_split, predictions, prepare
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


NAMES = ["tabby cat", "Golden Retriever", "ox", "emu"]
RIGHT = [0, 1, 2, 3] * 5  # 20 samples
MOSTLY = [0, 1, 2, 3] * 4 + [1, 2, 3, 0]  # 16 of them right


def _named(numbers: Sequence[int]) -> list[str]:
    return [NAMES[number] for number in numbers]


@pytest.mark.parametrize(
    ("predicted", "labels", "told"),
    [
        (
            _named(MOSTLY),
            RIGHT,
            r"none of its predictions is one of the labels: .*'ox', .*; list the names in the order",
        ),
        (MOSTLY, _named(RIGHT), r"predicted are '0', '1', '2', \.\., labels .*\[dataset\] class_names"),
        ([f"[{n}]" for n in MOSTLY], RIGHT, r"predicted are '\[0\]', .*; give one class per row"),
        ([f"tensor({n})" for n in MOSTLY], RIGHT, r"predicted are 'tensor\(0\)', .*; give one class per row"),
        (
            [name.upper() for name in _named(MOSTLY)],
            [name.lower() for name in _named(RIGHT)],
            r"80\.0 % would be right",
        ),
        ([0.1, 0.9] * 10, [0, 1] * 10, r"column 'predicted' holds 0\.1, which is none of the labels; .*probability"),
        ([0.0, 1.0, 0.93, 0.2] * 5, [0, 1, 1, 0] * 5, r"column 'predicted' holds 0\.93"),
    ],
)
def test_predictions_that_cannot_be_right_are_refused(
    tmp_path: Path, paths: StudyPaths, predicted: Sequence[object], labels: Sequence[object], told: str
) -> None:
    with pytest.raises(DataError, match=rf"m\.csv: .*{told}") as caught:
        _prepare(_write_csv(tmp_path / "p", "m", predicted, labels), paths)
    assert "\n" not in str(caught.value)


def test_the_advice_about_names_and_numbers_works(tmp_path: Path, paths: StudyPaths) -> None:
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    for folder, predicted, labels in (("a", MOSTLY, _named(RIGHT)), ("b", _named(MOSTLY), RIGHT)):
        root = _write_csv(tmp_path / folder, "m", predicted, labels)
        record = _prepare(root, paths, class_names=str(tmp_path / "classes.txt"))
        split = open_split(record, "val", paths)
        got = predictions.predicted_classes(record, "m", split.listing.names, split.class_names)
        assert (got == split.labels).sum() == 16


@pytest.mark.parametrize(
    ("predicted", "labels", "told"),
    [
        (
            [n + 1 for n in MOSTLY],
            RIGHT,
            r"'m': \d+\.\d % .* and 80\.0 % would be if the predicted numbers were one lower;",
        ),
        (MOSTLY, [n + 1 for n in RIGHT], r"80\.0 % would be if the predicted numbers were one higher;"),
        (
            [NAMES[n].replace(" ", "_") for n in MOSTLY],
            _named(RIGHT),
            r"'m': 40\.0 % .* 80\.0 % would be if case, spaces",
        ),
        ([NAMES[n].lower() for n in MOSTLY], _named(RIGHT), r"'m': 60\.0 % .* 80\.0 % would be if case, spaces"),
    ],
)
def test_a_shift_or_a_spelling_that_fits_far_better_is_pointed_out(
    tmp_path: Path, paths: StudyPaths, predicted: Sequence[object], labels: Sequence[object], told: str
) -> None:
    found: list[Contents] = []
    root = _write_csv(tmp_path / "p", "m", predicted, labels)
    section = DatasetSection(kind="predictions", path=str(root))
    prepare(section, seed=0, folder=root, paths=paths, contents=found.append)
    (note,) = found[0].notes
    assert re.search(told, note)


@pytest.mark.parametrize("predicted", [MOSTLY, RIGHT, [3, 0, 1, 2] * 4 + RIGHT[:4], RIGHT[::-1], [0] * 20])
def test_what_is_plainly_meant_is_not_questioned(tmp_path: Path, paths: StudyPaths, predicted: Sequence[int]) -> None:
    found: list[Contents] = []
    for name, labels, values in (("n", RIGHT, predicted), ("t", _named(RIGHT), _named(predicted))):
        root = _write_csv(tmp_path / name, "m", values, labels)
        section = DatasetSection(kind="predictions", path=str(root))
        prepare(section, seed=0, folder=root, paths=paths, contents=found.append)
    shifted = predicted[:4] == [3, 0, 1, 2]  # by one, and no two readings are right of it
    assert [bool(contents.notes) for contents in found] == [shifted, False]


@pytest.mark.parametrize("column", ["sample_index", "predicted", "label"])
@pytest.mark.parametrize("value", [[[0], [1]], [{"c": 0}, {"c": 1}]], ids=["lists", "dicts"])
def test_columns_of_lists_are_refused_in_one_line(
    tmp_path: Path, paths: StudyPaths, column: str, value: list[object]
) -> None:
    (tmp_path / "p").mkdir()
    frame = pd.DataFrame({"sample_index": [0, 1], "predicted": [0, 1], "label": [0, 1], column: value})
    frame.to_parquet(tmp_path / "p" / "m.parquet")
    with pytest.raises(
        DataError, match=rf"m\.parquet: column '{column}' holds \w+ values \(row 0: .*; give one"
    ) as caught:
        _prepare(tmp_path / "p", paths)
    assert "\n" not in str(caught.value)


def test_a_column_with_a_null_is_refused_in_one_line(tmp_path: Path, paths: StudyPaths) -> None:
    (tmp_path / "p").mkdir()
    frame = pd.DataFrame({"sample_index": [0, 1], "predicted": ["a", None], "label": ["a", "b"]})
    frame.to_parquet(tmp_path / "p" / "m.parquet")
    with pytest.raises(DataError, match=r"m\.parquet: empty cells in column 'predicted'"):
        _prepare(tmp_path / "p", paths)


def test_compressed_files_and_endings_in_upper_case(tmp_path: Path, paths: StudyPaths) -> None:
    root = _write(tmp_path / "p")
    plain = (root / "good.csv").read_bytes()
    (root / "A.CSV").write_bytes(plain)
    (root / "b.v2.csv.gz").write_bytes(gzip.compress(plain))
    (root / "c.Csv.BZ2").write_bytes(bz2.compress(plain))
    (root / "d.csv.xz").write_bytes(lzma.compress(plain))
    (root / "E.PARQUET").write_bytes((root / "poor.parquet").read_bytes())
    (root / "notes.txt").write_text("x")
    (root / "._A.CSV").write_bytes(b"\0\5")
    (root / "f.parquet").mkdir()
    found: list[Contents] = []
    section = DatasetSection(kind="predictions", path=str(root))
    record = prepare(section, seed=0, folder=root, paths=paths, contents=found.append)
    assert predictions.model_names(record) == ["A", "E", "b.v2", "c", "d", "good", "poor"]
    split = open_split(record, "val", paths)
    for name in predictions.model_names(record):
        got = predictions.predicted_classes(record, name, split.listing.names, split.class_names)
        assert got.tolist() == PREDICTED["poor" if name in ("E", "poor") else "good"]
    assert {(each.count, each.first) for each in found[0].splits[0].left_out} == {(2, "f.parquet"), (1, "._A.CSV")}
    (root / "A.csv").write_bytes(plain)
    with pytest.raises(DataError, match=r"A\.CSV and A\.csv are both there; keep one file per model"):
        _prepare(root, paths)
    (root / "A.csv").unlink()
    (root / "d.csv.xz").write_bytes(lzma.compress(plain)[:-20])
    with pytest.raises(DataError, match=r"d\.csv\.xz: cannot be read as csv"):
        _prepare(root, paths)


def test_rows_longer_than_the_header_do_not_shift_the_columns(tmp_path: Path, paths: StudyPaths) -> None:
    (tmp_path / "p").mkdir()
    rows = "".join(f"{i},{i % 2},{i % 2},{100 + i}\n" for i in range(4))
    (tmp_path / "p" / "m.csv").write_text(f"sample_index,predicted,label\n{rows}")
    with pytest.raises(DataError, match=r"m\.csv: cannot be read as csv: Length of header"):
        _prepare(tmp_path / "p", paths)
