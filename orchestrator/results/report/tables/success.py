"""Success by objective, which is the numbers behind Figure 4a, and by student."""

from __future__ import annotations

import numpy as np
import pandas as pd

from orchestrator.results.report import published
from orchestrator.results.report.missing import SINGLE, complete
from orchestrator.results.report.parts import Table
from orchestrator.results.report.statistics import bootstrap, bootstrap_mean, by_student, wilson
from orchestrator.results.report.study_results import StudyResults, order_of

HEADS = {
    "success_rate": "success %",
    "mean_delta": "mean delta",
    "min_delta": "min",
    "max_delta": "max",
    "gain": "gain %",
    "loss": "loss %",
}
PAPER_HEADS = {"success_rate": "paper success %", "delta_mean": "paper mean delta", "gain_mean": "paper gain %",
               "loss_mean": "paper loss %"}  # fmt: skip


def success_by_objective(study: StudyResults) -> pd.DataFrame:
    """A row per objective."""
    rows = complete(study.single, SINGLE)
    students = by_student(rows)
    return pd.DataFrame([_row(objective, rows, students) for objective in order_of(rows["objective"])])


def _row(objective: str, rows: pd.DataFrame, students: pd.DataFrame) -> dict[str, object]:
    rows, students = (frame[frame["objective"] == objective] for frame in (rows, students))
    rates = bootstrap(students["success_rate"].to_list(), np.median)
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
        "paper median %": published.success_medians().get(objective),
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


def success_by_student(study: StudyResults) -> pd.DataFrame:
    """A row per objective and student, beside the numbers that the authors released for each."""
    keys = ["objective", "student"]
    rows = by_student(complete(study.single, SINGLE))
    ours = rows[[*keys, "family", "teachers", *HEADS]].rename(columns=HEADS)
    paper = published.students()[[*keys, *PAPER_HEADS]].rename(columns=PAPER_HEADS)
    return ours.merge(paper, on=keys, how="left") if paper["student"].isin(ours["student"]).any() else ours


TABLE_SUCCESS = Table(
    key="success",
    title="Success by objective",
    caption="Success rate: teachers that raise a student, %; its median over students with a bootstrap interval if "
    "there are at least three, and pooled over all transfers with Wilson's. Mean delta_transf in points, students resampled. "
    "p: McNemar's test, two-sided, of either direction.",
    section="transfer",
    plan="kt-study plan --preset paper-10pct",
    build=success_by_objective,
    published=published.SETTING,
    digits=1,
)
TABLE_STUDENTS = Table(
    key="students",
    title="Success by student",
    caption="Over the teachers of each student: success rate, delta_transf in points, knowledge gain and loss in % of "
    "validation samples.",
    section="transfer",
    plan="kt-study plan --preset paper-10pct",
    build=success_by_student,
    published=published.SETTING,
)
