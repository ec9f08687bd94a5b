"""Boxes of success rates over students, shared by Figures 4a and 6."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from orchestrator.results.report.material import Material, order_of
from orchestrator.results.report.missing import Missing, missing
from orchestrator.results.report.plot import OBJECTIVES, PUBLISHED, Drawing, Layer, Panel
from orchestrator.results.report.published import SETTING, claim, success_medians
from orchestrator.results.report.statistics import bootstrap, by_student, counted, median


def success_boxes(material: Material, objectives: Sequence[str]) -> Drawing | Missing:
    """One box for each of these objectives (our names) that has rows, and the paper's medians beside it."""
    wanted = [OBJECTIVES[name] for name in objectives]
    students = by_student(material.single[material.single["objective"].isin(wanted)])
    if students.empty:
        return missing(students, f"single-teacher transfers with {' or '.join(wanted)}")
    students = students.assign(aside=_aside(students))
    order = order_of(students["objective"])
    paper = pd.DataFrame(
        [
            {"objective": OBJECTIVES[name], "success_rate": rate, "source": "paper, median of 20 students"}
            for name, rate in success_medians().items()
            if OBJECTIVES[name] in order
        ],
        columns=["objective", "success_rate", "source"],
    )
    tips = ("student", "success_rate", "teachers", "mean_delta", "min_delta", "max_delta")
    layers = (
        Layer(mark="box", data=students, x="objective", y="success_rate"),
        Layer(mark="points", data=students, x="objective", y="success_rate", colour="family", tooltip=tips, size=34,
              offset="aside"),
        Layer(mark="points", data=paper, x="objective", y="success_rate", fixed=PUBLISHED,
              tooltip=("source", "success_rate")),
    )  # fmt: skip
    panel = Panel(
        x_label="", y_label="teachers that raise the student, %", layers=layers, x_kind="category", x_order=order
    )
    return Drawing(
        panels=(panel,),
        sample=_sample(students, order),
        published=_published(objectives),
    )


def _published(objectives: Sequence[str]) -> str:
    medians = ", ".join(
        f"{OBJECTIVES[name]} {success_medians()[name]:g} %" for name in objectives if name in success_medians()
    )
    smoothed = f" With label smoothing its text says {claim('success_label_smoothing'):g} %."
    return f"Medians over the paper's students ({SETTING}): {medians}." + smoothed * (
        "kl_label_smoothing" in objectives
    )


def _aside(students: pd.DataFrame) -> pd.Series[float]:
    """Where each student stands beside those with the same rate, -0.5 to 0.5; 0 for one alone."""
    alike = students.groupby(["objective", "success_rate"], sort=False)["student"]
    return (alike.cumcount() + 0.5) / alike.transform("size") - 0.5


def _sample(students: pd.DataFrame, order: Sequence[str]) -> str:
    parts = []
    for objective in order:
        rows = students[students["objective"] == objective]
        rates = bootstrap(rows["success_rate"].to_list(), median)
        teachers = rows["teachers"].median()
        parts.append(
            f"{objective}: median {rates.text(' %')} of {counted(len(rows), 'student')} x {counted(teachers, 'teacher')}"
        )
    brackets = ". In brackets: 95 % bootstrap interval over students" if any("[" in part for part in parts) else ""
    return "; ".join(parts) + brackets
