"""Success by objective: the numbers behind Figure 4a."""

from __future__ import annotations

import pandas as pd

from orchestrator.results.report.material import Material, order_of
from orchestrator.results.report.missing import Missing, missing
from orchestrator.results.report.plot import OBJECTIVES
from orchestrator.results.report.published import SETTING, success_medians
from orchestrator.results.report.statistics import bootstrap, bootstrap_mean, by_student, median, wilson
from orchestrator.results.report.tables.table import Table


def build(material: Material) -> pd.DataFrame | Missing:
    """A row an objective."""
    rows = material.single
    if rows.empty:
        return missing(rows, "single-teacher transfers")
    students = by_student(rows)
    paper = {OBJECTIVES[name]: value for name, value in success_medians().items()}
    table = [_row(objective, rows, students, paper) for objective in order_of(rows["objective"])]
    return pd.DataFrame(table)


def _row(objective: str, rows: pd.DataFrame, students: pd.DataFrame, paper: dict[str, float]) -> dict[str, object]:
    rows, students = (frame[frame["objective"] == objective] for frame in (rows, students))
    rates = bootstrap(students["success_rate"].to_list(), median)
    groups = [group.to_numpy(dtype=float) for _, group in rows.groupby("student")["delta_transf"]]
    deltas = bootstrap_mean(groups)
    pooled = wilson(int((rows["delta_transf"] > 0).sum()), len(rows))
    return {
        "objective": objective,
        "transfers": len(rows),
        "students": len(students),
        "median success %": rates.value,
        "95 % low": rates.low,
        "95 % high": rates.high,
        "paper median %": paper.get(objective),
        "pooled success %": pooled.value,
        "pooled low": pooled.low,
        "pooled high": pooled.high,
        "mean delta": deltas.value,
        "delta low": deltas.low,
        "delta high": deltas.high,
        "worst": rows["delta_transf"].min(),
        "best": rows["delta_transf"].max(),
        "p < 0.05": int((rows["mcnemar_p"] < 0.05).sum()),
        "diverged": int(rows["diverged"].fillna(False).sum()),
    }


TABLE = Table(
    key="success",
    title="Success by objective",
    caption="Success rate: teachers that raise a student, %; its median over students with a bootstrap interval from three on, and "
    "pooled over all transfers with Wilson's. Mean delta_transf in points, students drawn whole. p: McNemar's test, "
    "two-sided, of either direction.",
    section="transfer",
    plan="kt-study plan --preset paper-10pct",
    build=build,
    published=SETTING,
    digits=1,
)
