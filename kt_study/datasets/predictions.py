"""kind = "predictions": predictions made elsewhere, one CSV or parquet file a model, named after the model.

Columns: `sample_index` (an index or a file name), `predicted`, `label`. Classes are integers, or names that are
numbered in sorted order. Samples and labels must agree over the files; the order of the rows may differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kt_study.datasets.kind import Found, Listing, section_folder
from kt_study.errors import DataError
from kt_study.files import file_digest
from kt_study.study import DatasetSection
from kt_study.words import DatasetRecord

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

COLUMNS = ("sample_index", "predicted", "label")


def scan(section: DatasetSection, *, seed: int, folder: Path, progress: Callable[[int], None]) -> Found:  # noqa: ARG001
    """Read every file under `path` and check that all are about the same labelled samples.

    Raises:
        DataError: no files, a missing column, empty cells, a sample twice, or samples or labels that differ.
    """
    import numpy as np

    root = section_folder(section, "path", folder)
    files = _files(root)
    tables = {}
    for count, file in enumerate(files, 1):
        tables[file.stem] = _read(file)
        _check_same(files[0], tables[files[0].stem], file, tables[file.stem])
        progress(count)
    first = tables[files[0].stem]
    class_names = _class_names(tables)
    number = {name: i for i, name in enumerate(class_names)}
    labels = np.array([number[_class(value)] for value in first["label"]], np.int32)
    names = [str(value) for value in first.index]
    return Found(
        listings={"val": Listing(names=names, labels=labels, sizes=np.full(len(names), -1, np.int64))},
        class_names=class_names,
        location={"path": str(root)},
        options={"files": {file.name: file_digest(file) for file in files}},
    )


def pictures(record: DatasetRecord, split: str, names: Sequence[str]) -> NoPictures:  # noqa: ARG001
    """There are none: the models were forwarded elsewhere."""
    return NoPictures(dataset=record.name)


def model_names(record: DatasetRecord) -> list[str]:
    """The models of a `predictions` data set, sorted: the file names without suffix."""
    return sorted(Path(name).stem for name in record.options["files"])


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
    import numpy as np

    file = Path(record.location["path"]) / _file_of(record, model)
    if not file.is_file() or file_digest(file) != model_digest(record, model):
        raise DataError(f"{file}: missing or changed since the study was planned; plan again")
    number = {name: i for i, name in enumerate(class_names)}
    table = _read(file)
    return np.array([number[_class(value)] for value in table["predicted"].loc[list(names)]], np.int32)


class NoPictures:
    """Stands where pictures would be, and says why there are none."""

    def __init__(self, dataset: str) -> None:
        self._dataset = dataset

    def image(self, i: int) -> Any:  # noqa: ARG002
        """Raises DataError."""
        raise DataError(f"data set {self._dataset!r} holds predictions made elsewhere and no images")

    def file(self, i: int) -> None:
        """No sample has a file."""


def _file_of(record: DatasetRecord, model: str) -> str:
    for name in record.options["files"]:
        if Path(name).stem == model:
            return str(name)
    raise DataError(f"data set {record.name!r} has no predictions of model {model!r}")


def _files(root: Path) -> list[Path]:
    files = sorted(file for file in root.iterdir() if file.suffix in (".csv", ".parquet"))
    if not files:
        raise DataError(f"{root}: no .csv or .parquet file in it; put one there for each model")
    stems = [file.stem for file in files]
    if twice := [stem for stem in stems if stems.count(stem) > 1]:
        raise DataError(f"{root}: {twice[0]}.csv and {twice[0]}.parquet are both there; keep one file a model")
    return files


def _read(file: Path) -> pd.DataFrame:
    """The file with `sample_index` as text for its index, sorted by it."""
    import pandas as pd

    try:
        table = pd.read_csv(file) if file.suffix == ".csv" else pd.read_parquet(file)
    except (OSError, ValueError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{file}: cannot be read as {file.suffix[1:]}: {reason}") from error
    if missing := [column for column in COLUMNS if column not in table.columns]:
        raise DataError(f"{file}: column {missing[0]!r} is missing; it has {', '.join(map(str, table.columns))}")
    if table.empty:
        raise DataError(f"{file}: no rows in it")
    empty = table[list(COLUMNS)].isna().any()
    if empty.any():
        raise DataError(f"{file}: empty cells in column {empty.idxmax()!r}")
    table = table.set_index(table["sample_index"].map(_class))
    if table.index.has_duplicates:
        raise DataError(f"{file}: sample {table.index[table.index.duplicated()][0]!r} stands twice")
    return _sorted(table)


def _sorted(table: pd.DataFrame) -> pd.DataFrame:
    """By number where all samples are numbers, else by name."""
    numeric = table.index.str.fullmatch(r"\d+").all()
    order = sorted(table.index, key=int) if numeric else sorted(table.index)
    return table.loc[order]


def _class(value: Any) -> str:
    """A class or sample as text: 3, 3.0 and "3" are the same."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def _check_same(first: Path, reference: pd.DataFrame, file: Path, table: pd.DataFrame) -> None:
    if len(only := table.index.symmetric_difference(reference.index)):
        where = file if only[0] in table.index else first
        raise DataError(
            f"{file}: not the samples of {first.name}: {only[0]!r} is only in {where.name} ({len(only)} differ)"
        )
    unequal = table["label"].map(_class).to_numpy() != reference["label"].map(_class).to_numpy()
    if unequal.any():
        sample = table.index[unequal.argmax()]
        raise DataError(f"{file}: sample {sample!r} has another label than in {first.name} ({unequal.sum()} differ)")


def _class_names(tables: dict[str, pd.DataFrame]) -> list[str]:
    """Every class that occurs: 0..max where all are whole numbers, else the sorted names."""
    columns = [table[name] for table in tables.values() for name in ("label", "predicted")]
    seen = {_class(value) for column in columns for value in column.unique()}
    if all(name.isdecimal() for name in seen):
        return [str(i) for i in range(1 + max(map(int, seen)))]
    return sorted(seen)
