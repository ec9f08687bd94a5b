"""Reasons for missing figures and tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

PAIRS = "measured pairs"
SINGLE = "single-teacher transfers"

_COLUMN_NAMES = {"student_params": "the size of its student", "rho_pos": "rho_pos, which needs labels"}


class Missing(Exception):
    """A figure or table has no rows. The page shows the reason in its place.

    Args:
        reason: a sentence without its full stop.
        planned: whether another plan brings the rows.
    """

    def __init__(self, reason: str, *, planned: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.planned = planned


def complete(rows: pd.DataFrame, what: str, *columns: str) -> pd.DataFrame:
    """The rows that have a value in each of these columns.

    Args:
        rows: all there are.
        what: their name, in the plural.

    Raises:
        Missing: there is no such row.
    """
    found = rows.dropna(subset=list(columns))
    if found.empty:
        raise incomplete(rows, what, *columns)
    return found


def incomplete(rows: pd.DataFrame, what: str, *columns: str) -> Missing:
    """Why no row is complete: there are no rows, or none has a value in one of the columns."""
    if rows.empty:
        return Missing(f"No {what} yet")
    lacking = [name for name in columns if rows[name].isna().all()] or columns
    names = " and ".join(_COLUMN_NAMES.get(name, name) for name in lacking)
    return Missing(f"There are {what} ({len(rows):,}), but none has {names}", planned=False)
