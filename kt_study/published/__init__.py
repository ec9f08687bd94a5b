"""The paper's printed numbers as tables, shipped as data. README.md describes the contents and source of each file."""

from __future__ import annotations

import csv
from importlib.resources import files

from kt_study.errors import DataError


def tables() -> tuple[str, ...]:
    """Names of the tables, sorted: the file names without `.csv`."""
    names = (entry.name for entry in files(__package__).iterdir())
    return tuple(sorted(name.removesuffix(".csv") for name in names if name.endswith(".csv")))


def read_table(name: str) -> tuple[dict[str, str], ...]:
    """The rows of one table as printed, column name to text.

    Args:
        name: such as "table5_models"; see `tables`.

    Raises:
        DataError: no such table.
    """
    if name not in tables():
        raise DataError(f"{name}: no such published table; there are {', '.join(tables())}")
    text = files(__package__).joinpath(f"{name}.csv").read_text(encoding="utf-8")
    return tuple(csv.DictReader(text.splitlines()))
