"""The tables of the paper and of kt-study. A new one is a module of this package and its place in `TABLES`."""

from __future__ import annotations

from orchestrator.results.report.parts import Table
from orchestrator.results.report.tables import pairs, per_student, settings, several, success, transfers

TABLES: tuple[Table, ...] = (
    pairs.TABLE_PAIRS,
    success.TABLE_SUCCESS,
    per_student.TABLE_1,
    transfers.TABLE_2,
    per_student.TABLE_3,
    transfers.TABLE_7,
    per_student.TABLE_8,
    success.TABLE_STUDENTS,
    several.TABLE_4,
    several.TABLE_9,
    settings.TABLE_SETTINGS,
)
