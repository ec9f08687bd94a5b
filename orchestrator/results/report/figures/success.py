"""Figures 4a and 6: success rates over students."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from kt_study.objectives import OBJECTIVES as FACTS
from orchestrator.results.report.missing import SINGLE, Missing
from orchestrator.results.report.parts import Figure
from orchestrator.results.report.plot import OBJECTIVES, Layer, Panel, Plot, published_points
from orchestrator.results.report.published import SETTING, claim, success_medians
from orchestrator.results.report.statistics import bootstrap, by_student
from orchestrator.results.report.study_results import StudyResults, order_of
from orchestrator.terminal.plural import counted

CONTRASTIVE = [facts.label for facts in FACTS.values() if facts.contrastive]
SMOOTHED = OBJECTIVES["kl_label_smoothing"]


def all_objectives(study: StudyResults) -> Plot:
    """Figure 4a: every objective that is not contrastive."""
    return _boxes(study, [label for label in OBJECTIVES.values() if label not in CONTRASTIVE])


def contrastive_objectives(study: StudyResults) -> Plot:
    """Figure 6: contrastive objectives, where there are any, beside XE-KL and KL+DP."""
    if not study.single["objective"].isin(CONTRASTIVE).any():
        raise Missing(f"No {SINGLE} with {' or '.join(CONTRASTIVE)} yet")
    return _boxes(study, [OBJECTIVES["xe_kl"], *CONTRASTIVE, OBJECTIVES["kl_dp"]])


def _boxes(study: StudyResults, objectives: Sequence[str]) -> Plot:
    """A box for each of these objectives, by label, that has rows, and the paper's medians beside it."""
    students = by_student(study.single[study.single["objective"].isin(objectives)])
    if students.empty:
        raise Missing(f"No {SINGLE} with {' or '.join(objectives)} yet")
    equal = students.groupby(["objective", "success_rate"], sort=False)["student"]
    students = students.assign(shift=(equal.cumcount() + 0.5) / equal.transform("size") - 0.5)
    order = order_of(students["objective"])
    medians = {label: rate for label, rate in success_medians().items() if label in objectives}
    paper = pd.DataFrame(
        [(label, rate, "paper, median of 20 students") for label, rate in medians.items() if label in order],
        columns=["objective", "success_rate", "source"],
    )
    layers = (
        Layer(mark="box", data=students, x="objective", y="success_rate"),
        Layer(mark="points", data=students, x="objective", y="success_rate", colour="family", size=34, offset="shift",
              tooltip=("student", "success_rate", "teachers", "mean_delta", "min_delta", "max_delta")),
        *published_points(paper, "objective", "success_rate", "source", "success_rate"),
    )  # fmt: skip
    panel = Panel(
        x_label="", y_label="teachers that raise the student, %", layers=layers, x_kind="category", x_order=order
    )
    printed = ", ".join(f"{label} {medians[label]:g} %" for label in objectives if label in medians)
    smoothed = f" For label smoothing the text has {claim('success_label_smoothing'):g} %." * (SMOOTHED in objectives)
    return Plot(
        panels=(panel,),
        sample=_sample(students, order),
        published=f"Medians over the paper's students ({SETTING}): {printed}.{smoothed}",
    )


def _sample(students: pd.DataFrame, order: Sequence[str]) -> str:
    parts = []
    for objective in order:
        rows = students[students["objective"] == objective]
        rates, teachers = bootstrap(rows["success_rate"].to_list(), np.median), rows["teachers"].median()
        parts.append(
            f"{objective}: median {rates.text(' %')} of {counted(len(rows), 'student')} x {counted(teachers, 'teacher')}"
        )
    brackets = ". In brackets: 95 % bootstrap interval over students" if any("[" in part for part in parts) else ""
    return "; ".join(parts) + brackets


FIGURE_4A = Figure(
    key="4a",
    title="Teachers that raise a student",
    caption="Success rate: share of a student's teachers whose transfer has delta_transf > 0. A point per student, a "
    "box over students; diamonds: the paper's median.",
    section="transfer",
    plan="kt-study plan --preset paper-10pct",
    build=all_objectives,
)
FIGURE_6 = Figure(
    key="6",
    title="Contrastive distillation compared",
    caption="Success rate of XE-KL, of the contrastive objectives CD and CRD, and of KL+DP. Diamonds: the paper's "
    "median.",
    section="transfer",
    plan="kt-study plan --preset paper-contrastive",
    build=contrastive_objectives,
)
