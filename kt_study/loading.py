"""Reading results back: `kt_study.load("results/").transfers` is a typed pandas frame."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kt_study.errors import UsageError
from kt_study.nearest import nearest
from kt_study.parquet import PARQUET_TABLES, arrow_schema

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


class Results:
    """The parquet of `kt-study collect` as pandas frames, each read at its first use and kept.

    `results.transfers`, `results.complementarity` and so on: one attribute for each table of docs/schema.md. Counts are
    `Int64`, flags `boolean`, text pandas' own strings, everything else float64; a missing value is missing in each. A
    table of which nothing was collected is an empty frame with its columns.
    """

    def __init__(self, root: Path, study: str | None = None) -> None:
        self.root = root
        self.study = study

    def table(self, name: str) -> pd.DataFrame:
        """One table as a frame, read again. Raises UsageError for a name that is not a table."""
        import pandas as pd
        import pyarrow as pa

        types = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
        frame: pd.DataFrame = self.arrow(name).to_pandas(types_mapper=types.get)
        return frame

    def arrow(self, name: str) -> pa.Table:
        """One table as it is stored, read again. Raises UsageError for a name that is not a table."""
        import pyarrow as pa
        import pyarrow.dataset as ds

        if name not in PARQUET_TABLES:
            raise UsageError(_unknown(name))
        folder = self.root / name
        if not folder.is_dir():
            return arrow_schema(name).empty_table()
        chosen = None if self.study is None else ds.field("study") == self.study
        try:
            return ds.dataset(folder, schema=arrow_schema(name), format="parquet").to_table(filter=chosen)
        except pa.ArrowInvalid as error:
            raise UsageError(
                f"{folder}: a file in it is damaged, or not one of kt-study's ({str(error).splitlines()[0]}); move the folder "
                "away and run `kt-study collect` again"
            ) from error

    def __getattr__(self, name: str) -> pd.DataFrame:
        if name not in PARQUET_TABLES:
            raise AttributeError(_unknown(name))
        frame = self.__dict__[name] = self.table(name)
        return frame

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *PARQUET_TABLES]

    def __repr__(self) -> str:
        return f"Results({str(self.root)!r}, study={self.study!r})"


def load(results: str | Path = "results", study: str | None = None) -> Results:
    """The results in a folder that `kt-study collect` wrote.

    Args:
        results: the folder.
        study: keep the rows of this study only.

    Raises:
        UsageError: nothing was collected into that folder.
    """
    root = Path(results)
    if not any((root / name).is_dir() for name in PARQUET_TABLES):
        raise UsageError(f"{root}: no collected results here; `kt-study collect --out {root}` writes them")
    return Results(root, study)


def _unknown(name: str) -> str:
    hint = nearest(name, PARQUET_TABLES)
    return f"no table {name!r} among the results{hint} (there are {', '.join(PARQUET_TABLES)})"
