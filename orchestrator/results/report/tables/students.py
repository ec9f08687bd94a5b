"""Success by student, next to the numbers that the authors released for each."""

from __future__ import annotations

import pandas as pd

from orchestrator.results.report.material import Material
from orchestrator.results.report.missing import Missing, missing
from orchestrator.results.report.plot import OBJECTIVES
from orchestrator.results.report.published import SETTING
from orchestrator.results.report.published import students as published_students
from orchestrator.results.report.statistics import by_student
from orchestrator.results.report.tables.table import Table

KEYS = ["objective", "student"]
HEADS = {
    "success_rate": "success %",
    "mean_delta": "mean delta",
    "min_delta": "min",
    "max_delta": "max",
    "gain": "gain %",
    "loss": "loss %",
}
PRINTED = {"success_rate": "paper success %", "delta_mean": "paper mean delta", "gain_mean": "paper gain %",
           "loss_mean": "paper loss %"}  # fmt: skip


def build(material: Material) -> pd.DataFrame | Missing:
    """A row an objective and student."""
    rows = by_student(material.single)
    if rows.empty:
        return missing(rows, "single-teacher transfers")
    ours = rows[[*KEYS, "family", "teachers", *HEADS]].rename(columns=HEADS)
    theirs = pd.DataFrame(
        [{"objective": OBJECTIVES[str(row["objective"])], "student": row["student"]}
         | {head: row[name] for name, head in PRINTED.items()} for row in published_students()]
    )  # fmt: skip
    there = theirs["student"].isin(ours["student"]).any()
    return ours.merge(theirs, on=KEYS, how="left") if there else ours


TABLE = Table(
    key="students",
    title="Success by student",
    caption="Over the teachers of each student: success rate, delta_transf in points, knowledge gain and loss in % of "
    "validation samples.",
    section="transfer",
    plan="kt-study plan --preset paper-10pct",
    build=build,
    published=SETTING,
)
