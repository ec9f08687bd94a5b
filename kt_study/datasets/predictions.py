"""kind = "predictions": predictions of other programs, one CSV or parquet file per model, named after the model.

Columns: `sample_index` (an index or a file name), `predicted`, `label`. Classes are integers, or names that are
numbered in sorted order; `class_names` lists them if some may not occur. Samples and labels must agree between the
files; the order of the rows may differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kt_study.datasets.folders import file_bytes
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

MOSTLY_THERE = 1_000
"""Classes by whole numbers are taken for 0..max below this maximum, and wherever at least half of them occur."""


def scan(section: DatasetSection, *, seed: int, folder: Path, progress: Callable[[int], None]) -> Found:  # noqa: ARG001
    """Read every file under `path` and check that all are about the same labelled samples.

    Raises:
        DataError: no files, a missing column, empty cells, a sample twice, samples or labels that differ, or a class
            that `class_names` does not list.
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
    seen = _classes_seen(tables)
    class_names = _listed_classes(section, folder, seen) if section.class_names else _class_names(seen)
    names = [str(value) for value in first.index]
    return Found(
        listings={
            "val": Listing(
                names=names, labels=_numbered(first["label"], class_names), sizes=np.full(len(names), -1, np.int64)
            )
        },
        class_names=class_names,
        location={"path": str(root)},
        options={"files": {file.name: file_digest(file) for file in files}},
    )


def images(record: DatasetRecord, split: str, names: Sequence[str]) -> NoImages:  # noqa: ARG001
    """There are none: the models were forwarded elsewhere."""
    return NoImages(dataset=record.name)


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
        file_bytes(file)
        table = _read_csv(file) if file.suffix == ".csv" else pd.read_parquet(file)
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


def _read_csv(file: Path) -> pd.DataFrame:
    """Only nothing is nothing: a class may be called None, NA or nan."""
    import pandas as pd

    return pd.read_csv(file, keep_default_na=False, na_values=[""])


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


def _classes_seen(tables: dict[str, pd.DataFrame]) -> set[str]:
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
        raise DataError(f"{file}: cannot be read; mend [dataset] class_names in the study file") from error
    if unknown := sorted(seen - _numbers(listed).keys()):
        raise DataError(f"{file}: lists {len(listed)} classes, and {unknown[0]!r} is none of them by name or by number")
    if twice := sorted(name for name, count in Counter(listed).items() if count > 1 and name in seen):
        raise DataError(f"{file}: {twice[0]!r} stands twice in it; give the classes in the prediction files by number")
    return listed


def _numbers(class_names: list[str]) -> dict[str, int]:
    """Class -> its index, by name or else by number."""
    by_number = {str(i): i for i in range(len(class_names))}
    return by_number | {name: i for i, name in enumerate(class_names)}


def _numbered(values: pd.Series[Any], class_names: list[str]) -> NDArray[np.int32]:
    """Indices of classes, int32 [n]."""
    import numpy as np

    number = _numbers(class_names)
    return np.array([number[_class(value)] for value in values], np.int32)
