"""What a table is. One module a table; `orchestrator.report.tables.TABLES` lists them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.report.material import Material

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of the paper, or one of ours (`key` without a number).

    `build` gives its rows, numbers as numbers and columns headed as they are shown, or None where a study has none; a
    column whose head begins with "paper" holds what the paper prints.
    """

    key: str
    title: str
    caption: str
    section: str
    plan: str
    build: Callable[[Material], pd.DataFrame | None]
    notes: tuple[str, ...] = ()
    digits: int = 2
