"""The parts of a report: figures and tables, listed in `report.figures` and `report.tables`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.results.report.missing import Missing
from orchestrator.results.report.plot import Plot
from orchestrator.results.report.study_results import StudyResults

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Part:
    """What figures and tables have in common."""

    key: str  # its number in the paper, such as 4a, or a name
    title: str
    caption: str  # what is shown, with units
    section: str  # of the page
    plan: str  # the command that brings the rows in a study of ImageNet
    build: Callable[[StudyResults], Any]

    def built(self, study: StudyResults) -> Any:
        """What `build` makes, or the `Missing` that it raises."""
        try:
            return self.build(study)
        except Missing as missing:
            return missing


@dataclass(frozen=True, kw_only=True)
class Figure(Part):
    """A figure of the paper. `build` raises `Missing` where the study lacks its rows."""

    build: Callable[[StudyResults], Plot]


@dataclass(frozen=True, kw_only=True)
class Table(Part):
    """A table of the paper, or one of ours (`key` without a number).

    `build` gives its rows, numbers as numbers and columns headed as they are shown, or raises `Missing`. A column whose
    head begins with "paper" has the paper's values.
    """

    build: Callable[[StudyResults], pd.DataFrame]
    published: str = ""  # data and models of the paper's columns
    notes: tuple[str, ...] = ()
    digits: int = 2
