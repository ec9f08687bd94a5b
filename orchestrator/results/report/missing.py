"""Reasons for missing figures and tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

_SAID = {"student_params": "the size of its student", "rho_pos": "rho_pos, which needs labels"}


@dataclass(frozen=True, kw_only=True)
class Missing:
    """What the page shows in the place of a figure or table."""

    reason: str  # a sentence without its full stop
    planned: bool = True  # whether another plan brings the rows


def missing(rows: pd.DataFrame, what: str, *columns: str) -> Missing:
    """There are none of these rows, or they lack what is drawn.

    Args:
        rows: all there are, before those with missing values were left out.
        what: their name, in the plural.
        columns: what each must have.
    """
    if rows.empty:
        return Missing(reason=f"No {what} yet")
    lacking = [name for name in columns if rows[name].isna().all()] or columns
    said = " and ".join(_SAID.get(name, name) for name in lacking)
    return Missing(reason=f"There are {what} ({len(rows):,}), but none has {said}", planned=False)
