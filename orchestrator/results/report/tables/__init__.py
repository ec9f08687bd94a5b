"""The tables of the paper and of kt-study. A new one is one new module and one name here."""

from __future__ import annotations

from importlib import import_module

from orchestrator.results.report.tables.table import Table

_MODULES = (
    "pairs",
    "success",
    "table1",
    "table2",
    "table3",
    "table7",
    "table8",
    "students",
    "table4",
    "table9",
    "settings",
)

TABLES: tuple[Table, ...] = tuple(import_module(f"{__name__}.{name}").TABLE for name in _MODULES)
