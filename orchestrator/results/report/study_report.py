"""The report of one study."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.results.report.figures.figure import Figure
from orchestrator.results.report.findings import Finding
from orchestrator.results.report.missing import Missing
from orchestrator.results.report.plot import Drawing
from orchestrator.results.report.settings import Failed
from orchestrator.results.report.tables.table import Table

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class StudyReport:
    """One study, ready for the page."""

    study: str
    findings: list[Finding]
    failures: list[Failed]
    figures: list[tuple[Figure, Drawing | Missing]]
    tables: list[tuple[Table, pd.DataFrame | Missing]]
    facts: dict[str, str]
    settings: dict[str, str]
    choices: list[str]
    commands: list[str]
    is_imagenet: bool  # the paper's own plans fit it
