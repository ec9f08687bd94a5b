"""Every combination of settings with its success: the fixed settings, and the results of a search."""

from __future__ import annotations

import pandas as pd

from orchestrator.results.report.missing import SINGLE, complete
from orchestrator.results.report.parts import Table
from orchestrator.results.report.study_results import SETTINGS, StudyResults


def build(study: StudyResults) -> pd.DataFrame:
    """A row per data set, objective and combination of the settings that vary."""
    rows = complete(study.all_single, SINGLE)
    varying = [name for name in (*SETTINGS, "seed") if rows[name].astype(str).nunique() > 1]
    keys = ["dataset", "objective", *varying]
    grouped = rows.assign(**{name: rows[name].astype(str) for name in varying}).groupby(keys, sort=False)
    table = grouped.agg(
        transfers=("delta_transf", "size"),
        students=("student", "nunique"),
        success=("delta_transf", lambda values: 100.0 * float((values > 0).mean())),
        delta=("delta_transf", "mean"),
        shown=("shown", "any"),
    ).reset_index()
    table["shown"] = ["yes" if shown else "" for shown in table["shown"]]
    return table.rename(columns={"success": "success %", "delta": "mean delta"})


TABLE_SETTINGS = Table(
    key="settings",
    title="By setting",
    caption="Single-teacher transfers under each combination of the settings that vary in this study. Figures and tables "
    "above show the one marked for each objective.",
    section="settings",
    plan="kt-study plan --grid lr=1e-3,1e-4",
    build=build,
)
