"""What a table is. One module per table; `orchestrator.results.report.tables.TABLES` lists them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.results.report.material import Material
from orchestrator.results.report.missing import Missing

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of the paper, or one of ours (`key` without a number).

    `build` gives its rows, numbers as numbers and columns headed as they are shown, or says why there are none; a column
    whose head begins with "paper" holds what the paper prints. `plan` is as in `Figure`.
    """

    key: str
    title: str
    caption: str
    section: str
    plan: str
    build: Callable[[Material], pd.DataFrame | Missing]
    published: str = ""  # of what data and models the paper's columns are
    notes: tuple[str, ...] = ()
    digits: int = 2
