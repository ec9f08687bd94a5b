"""kind = "predictions": predictions of other programs, one CSV or parquet file per model, named after the model.

Columns: `sample_index` (an index or a file name), `predicted`, `label`. Classes are integers, or names that are
numbered in sorted order; `class_names` lists them if some may not occur. Samples and labels must agree between the
files; the order of the rows may differ. CSV may be compressed, and endings may be in upper case.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from numbers import Number
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kt_study.datasets.image_files import HIDDEN, LeftOut
from kt_study.datasets.kind import Found, Listing, section_folder
from kt_study.errors import DataError
from kt_study.files import file_digest, read_text
from kt_study.records import DatasetRecord
from kt_study.study import DatasetSection

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

COLUMNS = ("sample_index", "predicted", "label")

_FILE = re.compile(
    r"(?P<model>.+)\.(?P<format>csv|parquet)(?P<compression>(?<=csv)\.(gz|bz2|xz|zst|zip))?", re.IGNORECASE
)
_COMPRESSION = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd", ".zip": "zip"}

_FAR_BETTER, _AT_LEAST = 2, 3
"""Another numbering is pointed out where it makes so many times as many predictions right as the file's own, and as chance, and
at least so many more, and more by a twentieth of the samples."""

MOSTLY_THERE = 1_000
"""Classes by whole numbers are taken for 0..max below this maximum, and wherever at least half of them occur."""


def scan(section: DatasetSection, *, seed: int, folder: Path, progress: Callable[[int], None]) -> Found:  # noqa: ARG001
    """Read every file under `path` and check that all are about the same labelled samples.

    Raises:
        DataError: no files, a missing column, empty cells, a sample twice, samples or labels that differ, or a class
            that `class_names` does not list, values that are no classes, a file none of whose predictions is a label.
    """
    import numpy as np

    root = section_folder(section, "path", folder)
    left_out = LeftOut()
    files = _files(root, left_out)
    tables: dict[Path, pd.DataFrame] = {}
    for count, file in enumerate(files, 1):
        tables[file] = _read(file)
        _check_same(files[0], tables[files[0]], file, tables[file])
        progress(count)
    first = tables[files[0]]
    seen = _classes_seen(tables)
    class_names = _listed_classes(section, folder, seen) if section.class_names else _class_names(seen)
    names = [str(value) for value in first.index]
    notes = [note for file, table in tables.items() for note in _check_predictions(file, table, class_names)]
    return Found(
        listings={
            "val": Listing(
                names=names, labels=_numbered(first["label"], class_names), sizes=np.full(len(names), -1, np.int64)
            )
        },
        class_names=class_names,
        location={"path": str(root)},
        options={"files": {file.name: file_digest(file) for file in files}},
        left_out={"val": left_out},
        notes=notes,
    )


def images(record: DatasetRecord, split: str, names: Sequence[str]) -> NoImages:  # noqa: ARG001
    """There are none: the models were forwarded elsewhere."""
    return NoImages(dataset=record.name)


def model_names(record: DatasetRecord) -> list[str]:
    """The models of a `predictions` data set, sorted: the file names without their ending."""
    return sorted(map(_model_of, record.options["files"]))


def model_digest(record: DatasetRecord, model: str) -> str:
    """Digest of one model's file as it was when the study was planned."""
    return str(record.options["files"][_file_of(record, model)])


def predicted_classes(
    record: DatasetRecord, model: str, names: Sequence[str], class_names: list[str]
) -> NDArray[np.int32]:
    """What a model predicted for the named samples, int32 [n].

    Raises:
        DataError: no file for this model, or the file changed since the study was planned.
    """
    file = Path(record.location["path"]) / _file_of(record, model)
    if not file.is_file() or file_digest(file) != model_digest(record, model):
        raise DataError(f"{file}: missing or changed since the study was planned; plan again")
    return _numbered(_read(file)["predicted"].loc[list(names)], class_names)


class NoImages:
    """Stands where images would be, and says why there are none."""

    def __init__(self, dataset: str) -> None:
        self._dataset = dataset

    def image(self, i: int) -> Any:  # noqa: ARG002
        """Raises DataError."""
        raise DataError(f"data set {self._dataset!r} holds predictions made elsewhere and no images")

    def file(self, i: int) -> None:
        """No sample has a file."""


def _file_of(record: DatasetRecord, model: str) -> str:
    for name in record.options["files"]:
        if _model_of(name) == model:
            return str(name)
    raise DataError(f"data set {record.name!r} has no predictions of model {model!r}")


def _model_of(name: str) -> str:
    found = _FILE.fullmatch(name)
    assert found is not None, name
    return found["model"]


def _files(root: Path, left_out: LeftOut) -> list[Path]:
    files = []
    for file in sorted(root.iterdir()):
        if file.name.startswith("."):
            left_out.add(HIDDEN, file.name)
        elif _FILE.fullmatch(file.name) and file.is_file():
            files.append(file)
        else:
            left_out.add("not .csv, .csv.gz (.bz2, .xz, .zst, .zip) or .parquet files", file.name)
    if not files:
        raise DataError(f"{root}: no .csv or .parquet file in it; put one there for each model")
    by_model: dict[str, Path] = {}
    for file in files:
        if (other := by_model.setdefault(_model_of(file.name), file)) is not file:
            raise DataError(f"{root}: {other.name} and {file.name} are both there; keep one file per model")
    return files


def _read(file: Path) -> pd.DataFrame:
    """The file with `sample_index` as text for its index, sorted by it."""
    import pandas as pd

    found = _FILE.fullmatch(file.name)
    assert found is not None, file
    try:
        if found["format"].lower() == "csv":
            table = _read_csv(file, _COMPRESSION.get((found["compression"] or "").lower()))
        else:
            table = pd.read_parquet(file)
    except Exception as error:  # pandas, pyarrow and the libraries of compression raise many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{file}: cannot be read as {found['format'].lower()}: {reason}") from error
    if missing := [column for column in COLUMNS if column not in table.columns]:
        raise DataError(f"{file}: column {missing[0]!r} is missing; it has {', '.join(map(str, table.columns))}")
    if twice := [column for column in COLUMNS if list(table.columns).count(column) > 1]:
        raise DataError(f"{file}: column {twice[0]!r} is in it twice; keep one")
    if table.empty:
        raise DataError(f"{file}: no rows in it")
    empty = table[list(COLUMNS)].isna().any()
    if empty.any():
        raise DataError(f"{file}: empty cells in column {empty.idxmax()!r}")
    for column in COLUMNS:
        _check_single_values(file, table[column])
    table = table.set_index(table["sample_index"].map(_class))
    if table.index.has_duplicates:
        raise DataError(f"{file}: sample {table.index[table.index.duplicated()][0]!r} is in it twice")
    _check_whole(file, table)
    return _sorted(table)


def _read_csv(file: Path, compression: Any) -> pd.DataFrame:
    """Only nothing is nothing: a class may be called None, NA or nan. Rows that are longer than the header are an error."""
    import pandas as pd

    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        return pd.read_csv(file, compression=compression, keep_default_na=False, na_values=[""], index_col=False)


def _check_single_values(file: Path, column: pd.Series[Any]) -> None:
    """Refuse lists and the like in a column."""
    if column.dtype != object:
        return
    for row, value in enumerate(column):
        if not isinstance(value, str | bytes | Number):
            raise DataError(
                f"{file}: column {column.name!r} holds {type(value).__name__} values (row {row}: {str(value)[:40]!r}); "
                "give one class or sample per row, as a name or a number"
            )


def _check_whole(file: Path, table: pd.DataFrame) -> None:
    """Refuse numbers with a fraction that are not among the labels, such as probabilities."""
    labels = set(map(_class, table["label"].unique()))
    for value in table["predicted"].unique():
        if isinstance(value, float) and not value.is_integer() and _class(value) not in labels:
            raise DataError(
                f"{file}: column 'predicted' holds {value:g}, which is none of the labels; give the predicted class of "
                "each sample, not its probability or score"
            )


def _sorted(table: pd.DataFrame) -> pd.DataFrame:
    """By number where all samples are numbers, else by name."""
    numeric = table.index.str.fullmatch(r"\d+").all()
    order = sorted(table.index, key=int) if numeric else sorted(table.index)
    return table.loc[order]


def _class(value: Any) -> str:
    """A class or sample as text: 3, 3.0 and "3" are the same."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bytes):  # text of other writers of parquet
        value = value.decode("utf-8", "replace")
    return str(value).strip()


def _check_same(first: Path, reference: pd.DataFrame, file: Path, table: pd.DataFrame) -> None:
    if len(only := table.index.symmetric_difference(reference.index)):
        where = file if only[0] in table.index else first
        raise DataError(
            f"{file}: not the samples of {first.name}: {only[0]!r} is only in {where.name} ({len(only)} differ)"
        )
    unequal = _mapped(table["label"], _class).to_numpy() != _mapped(reference["label"], _class).to_numpy()
    if unequal.any():
        sample = table.index[unequal.argmax()]
        raise DataError(f"{file}: sample {sample!r} has another label than in {first.name} ({unequal.sum()} differ)")


def _check_predictions(file: Path, table: pd.DataFrame, class_names: list[str]) -> Iterator[str]:
    """Notes on classes that may be meant otherwise. Raises DataError where no prediction is among the labels."""
    predicted, labels = _mapped(table["predicted"], _class), _mapped(table["label"], _class)
    here, there = _numbered(predicted, class_names), _numbered(labels, class_names)
    if not set(here.tolist()) & set(there.tolist()):
        raise DataError(
            f"{file}: none of its predictions is one of the labels: predicted are {_some(predicted)}, labels {_some(labels)}; "
            f"{_advice(predicted, labels)}"
        )
    yield from _misread(_model_of(file.name), predicted, labels, right=int((here == there).sum()))


def _some(values: pd.Series[Any]) -> str:
    some = sorted(values.unique(), key=lambda value: (len(value), value) if value.isdecimal() else (0, value))
    return ", ".join(map(repr, some[:3])) + (", .." if len(some) > 3 else "")


def _advice(predicted: pd.Series[Any], labels: pd.Series[Any]) -> str:
    """What to do about a file none of whose predictions is a label."""
    if predicted.str.contains(r"[\[({]", regex=True).any():
        return "give one class per row, as a name or a number"
    if _are_numbers(predicted) != _are_numbers(labels):
        return "list the names in the order of these numbers in [dataset] class_names"
    same = 100 * float((_mapped(predicted, _loosely) == _mapped(labels, _loosely)).mean())
    if same:
        return f"without regard to case, spaces and underscores {same:.1f} % would be right: spell both alike"
    return "give the classes in both columns in the same way"


def _misread(model: str, predicted: pd.Series[Any], labels: pd.Series[Any], *, right: int) -> Iterator[str]:
    """A note for each other reading of the classes that is plainly meant, or makes far more predictions right."""
    readings = {}
    spelled = (_mapped(predicted, _loosely) == _mapped(labels, _loosely)) & ~predicted.isin(labels.unique())
    if spelled.any():
        readings["case, spaces and underscores made no difference"] = right + int(spelled.sum())
    if _are_numbers(predicted) and _are_numbers(labels) and len({*predicted, *labels}) > 2:
        shift = _mapped(labels, int) - _mapped(predicted, int)
        shifted = {
            "the predicted numbers were one higher": shift == 1,
            "the predicted numbers were one lower": shift == -1,
        }
        for reading, fits in shifted.items():
            would = int(fits.sum())
            chance = len(labels) / labels.nunique()
            if would >= _FAR_BETTER * max(right, chance) and would - right >= max(_AT_LEAST, len(labels) / 20):
                readings[reading] = would
    for reading, would in readings.items():
        yield (
            f"model {model!r}: {100 * right / len(labels):.1f} % of its predictions are right, and "
            f"{100 * would / len(labels):.1f} % would be if {reading}; correct its file if that is meant"
        )


def _are_numbers(classes: pd.Series[Any]) -> bool:
    return all(name.isdecimal() for name in classes.unique())


def _mapped(values: pd.Series[Any], function: Callable[[Any], Any]) -> pd.Series[Any]:
    """`values.map(function)`, calling it once per different value."""
    return values.map({value: function(value) for value in values.unique()})


def _loosely(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _classes_seen(tables: dict[Path, pd.DataFrame]) -> set[str]:
    """Every class that is a label or was predicted."""
    columns = [table[name] for table in tables.values() for name in ("label", "predicted")]
    return {_class(value) for column in columns for value in column.unique()}


def _class_names(seen: set[str]) -> list[str]:
    """0..max where all are whole numbers and few of those are missing, else what is there, in order."""
    if not all(name.isdecimal() and name == str(int(name)) for name in seen):
        return sorted(seen)
    highest = max(map(int, seen))
    if highest < max(2 * len(seen), MOSTLY_THERE):
        return [str(i) for i in range(1 + highest)]
    return sorted(seen, key=int)


def _listed_classes(section: DatasetSection, folder: Path, seen: set[str]) -> list[str]:
    """The lines of the user's own list. Raises DataError where it is missing, or leaves open which class is meant."""
    file = (folder / Path(section.class_names).expanduser()).resolve()
    try:
        listed = [line.strip() for line in read_text(file).strip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read; fix [dataset] class_names in the study file") from error
    if unknown := sorted(seen - _numbers(listed).keys()):
        raise DataError(f"{file}: lists {len(listed)} classes, and {unknown[0]!r} is none of them by name or by number")
    if twice := sorted(name for name, count in Counter(listed).items() if count > 1 and name in seen):
        raise DataError(f"{file}: {twice[0]!r} is in it twice; give the classes in the prediction files by number")
    return listed


def _numbers(class_names: list[str]) -> dict[str, int]:
    """Class -> its index, by name or else by number."""
    by_number = {str(i): i for i in range(len(class_names))}
    return by_number | {name: i for i, name in enumerate(class_names)}


def _numbered(values: pd.Series[Any], class_names: list[str]) -> NDArray[np.int32]:
    """Indices of classes, int32 [n]."""
    import numpy as np
    import pandas as pd

    number = _numbers(class_names)
    codes, different = pd.factorize(values)
    return np.array([number[_class(value)] for value in different], np.int32)[codes]
