"""Table 7: every transfer."""

from __future__ import annotations

import pandas as pd

from kt_study.published import read_table
from orchestrator.results.report.material import Material, order_of
from orchestrator.results.report.missing import Missing, missing
from orchestrator.results.report.plot import OBJECTIVES
from orchestrator.results.report.published import tag
from orchestrator.results.report.tables.table import Table

PAIR = ["student", "teacher"]


def build(material: Material) -> pd.DataFrame | Missing:
    """A row a pair, a column an objective."""
    rows = material.single
    if rows.empty:
        return missing(rows, "single-teacher transfers")
    order = list(order_of(rows["objective"]))
    deltas = rows.pivot_table(index=PAIR, columns="objective", values="delta_transf", sort=True)[order]
    facts = rows.drop_duplicates(PAIR).set_index(PAIR)
    ours = facts[["family"]].join((facts["acc_teacher"] - facts["acc_before"]).rename("delta_acc"))
    ours = ours.join(deltas, how="right").reset_index()
    theirs = _printed()
    if theirs.merge(ours[PAIR], on=PAIR).empty:
        return ours
    return ours.merge(theirs, on=PAIR, how="left")


def _printed() -> pd.DataFrame:
    rows = [
        {
            "student": tag(row["student"]),
            "teacher": tag(row["teacher"]),
            "objective": f"paper {OBJECTIVES[row['objective']]}",
            "delta": float(row["delta_transf"]),
        }
        for row in read_table("table7_pairs")
    ]
    return pd.DataFrame(rows).pivot_table(index=PAIR, columns="objective", values="delta", sort=False).reset_index()


TABLE = Table(
    key="7",
    title="Every transfer",
    caption="delta_transf in points for each pair and objective; delta_acc is teacher minus student before.",
    section="transfer",
    plan="kt-study plan --preset paper-full",
    build=build,
    published="ImageNet in full, 8 students x 4 teachers",
)
