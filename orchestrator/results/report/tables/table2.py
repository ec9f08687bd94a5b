"""Table 2: examples of transfers from a stronger and from a weaker teacher."""

from __future__ import annotations

import pandas as pd

from kt_study.published import read_table
from orchestrator.results.report.figures.fig5a import main_objective
from orchestrator.results.report.material import Material
from orchestrator.results.report.missing import Missing, missing
from orchestrator.results.report.published import tag
from orchestrator.results.report.tables.table import Table

STUDENTS = 8
COLUMNS = ["student", "teacher"]


def build(material: Material) -> pd.DataFrame | Missing:
    """For the students with most teachers, the best teacher among the stronger and the best among the weaker."""
    rows = material.single.dropna(subset=["acc_teacher", "acc_before"])
    if rows.empty:
        return missing(material.single, "single-teacher transfers", "acc_teacher", "acc_before")
    rows = rows[rows["objective"] == main_objective(rows)]
    rows = rows.assign(delta_acc=rows["acc_teacher"] - rows["acc_before"])
    paper = _printed()
    chosen = rows.merge(paper[COLUMNS], on=COLUMNS) if len(paper) else rows.head(0)
    if chosen.empty:
        chosen = _examples(rows)
    table = chosen[[*COLUMNS, "objective", "delta_acc", "delta_transf", "delta_transf_low", "delta_transf_high"]]
    table = table.rename(columns={"delta_transf_low": "95 % low", "delta_transf_high": "95 % high"})
    theirs = paper[paper["student"].isin(table["student"])]
    return table.merge(theirs, on=COLUMNS, how="left") if len(theirs) else table


def _examples(rows: pd.DataFrame) -> pd.DataFrame:
    counts = rows["student"].value_counts()
    students = sorted(counts.index, key=lambda name: (-counts[name], name))[:STUDENTS]
    best = [
        side.nlargest(1, "delta_transf")
        for student in students
        for side in _sides(rows[rows["student"] == student])
        if len(side)
    ]
    return pd.concat(best)


def _sides(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    return rows[rows["delta_acc"] >= 0], rows[rows["delta_acc"] < 0]


def _printed() -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "student": tag(row["student"]),
                "teacher": tag(row["teacher"]),
                "paper delta_acc": float(row["delta_acc"]),
                "paper delta_transf": float(row["delta_transf"]),
            }
            for row in read_table("table2_examples")
        ]
    )


TABLE = Table(
    key="2",
    title="Best transfer from a stronger and from a weaker teacher",
    caption="The best transfer from a stronger and from a weaker teacher for each student; the paper's own examples "
    "where "
    "the study has them. Points; interval by paired bootstrap over validation samples.",
    section="transfer",
    plan="kt-study plan --preset paper-full",
    build=build,
    published="ImageNet in full, 8 students x 4 teachers",
)
