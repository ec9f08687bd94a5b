"""Boxes of success rates over students, shared by Figures 4a and 6."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from orchestrator.report.material import Material, order_of
from orchestrator.report.plot import OBJECTIVES, PUBLISHED, Drawing, Layer, Panel
from orchestrator.report.published import success_medians
from orchestrator.report.statistics import bootstrap, by_student, median


def success_boxes(material: Material, objectives: Sequence[str]) -> Drawing | None:
    """One box for each of these objectives (our names) that has rows, and the paper's medians beside it."""
    wanted = [OBJECTIVES[name] for name in objectives]
    students = by_student(material.single[material.single["objective"].isin(wanted)])
    if students.empty:
        return None
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
        Layer(mark="points", data=students, x="objective", y="success_rate", colour="family", tooltip=tips, size=34),
        Layer(mark="points", data=paper, x="objective", y="success_rate", fixed=PUBLISHED,
              tooltip=("source", "success_rate")),
    )  # fmt: skip
    panel = Panel(
        x_label="", y_label="teachers that raise the student, %", layers=layers, x_kind="category", x_order=order
    )
    return Drawing(
        panels=(panel,),
        sample=_sample(students, order),
        published="Medians over the paper's 20 students: "
        + ", ".join(
            f"{OBJECTIVES[name]} {success_medians()[name]:g} %" for name in objectives if name in success_medians()
        )
        + ".",
    )


def _sample(students: pd.DataFrame, order: Sequence[str]) -> str:
    parts = []
    for objective in order:
        rows = students[students["objective"] == objective]
        rates = bootstrap(rows["success_rate"].to_list(), median)
        parts.append(
            f"{objective}: median {rates.text(' %')} of {len(rows)} students x {rows['teachers'].median():g} teachers"
        )
    return "; ".join(parts) + ". In brackets: 95 % bootstrap interval over students"
