"""Figure 8: which students learn most."""

from __future__ import annotations

import pandas as pd

from orchestrator.results.report.figures.fig5a import main_objective
from orchestrator.results.report.figures.figure import Figure
from orchestrator.results.report.material import Material
from orchestrator.results.report.missing import Missing, missing
from orchestrator.results.report.plot import FAMILIES, OBJECTIVES, PUBLISHED, Drawing, Layer, Panel
from orchestrator.results.report.published import students as published_students
from orchestrator.results.report.statistics import by_student, counted

PANELS = {
    "acc_before": ("accuracy of the student before, %", "a) accuracy"),
    "student_params": ("parameters of the student, millions", "b) size"),
}


def build(material: Material) -> Drawing | Missing:
    """Mean delta over its teachers for each student, against accuracy, size and family."""
    rows = material.single
    if rows.empty:
        return missing(rows, "single-teacher transfers")
    main = main_objective(rows)
    students = by_student(rows)
    panels = [_panel(students, x, main) for x in PANELS if students[x].notna().any()]
    shown = students[students["objective"] == main]
    return Drawing(
        panels=(*panels, _families(students, main)),
        sample=f"{counted(len(shown), 'student')} with {main}, shown while no objective is chosen; each is a mean over "
        f"{counted(shown['teachers'].median(), 'teacher')} (median)",
        notes=(
            "Students differ in more than one of these at a time; with few of them no cause can be read off.",
            *_left_out(students),
        ),
    )


def _left_out(students: pd.DataFrame) -> list[str]:
    """The panels that are not there, since the rows do not have what they are drawn against."""
    return [f"No panel {title}: unknown here." for x, (_, title) in PANELS.items() if students[x].isna().all()]


def _panel(students: pd.DataFrame, x: str, main: str) -> Panel:
    tips = ("objective", "student", "mean_delta", "low", "high", "teachers", x)
    layer = Layer(mark="points", data=students, x=x, y="mean_delta", colour="family", defaults={"objective": main},
                  tooltip=tips, size=44)  # fmt: skip
    zero = Layer(mark="rule", data=pd.DataFrame({"y": [0.0]}), y="y")
    label, title = PANELS[x]
    return Panel(
        x_label=label, y_label="mean delta_transf, points", layers=(layer, zero), title=title,
        x_kind="log" if x == "student_params" else "number",
    )  # fmt: skip


def _families(students: pd.DataFrame, main: str) -> Panel:
    there = set(students["family"])
    order = (*(name for name in FAMILIES.values() if name in there), *sorted(there - set(FAMILIES.values())))
    paper = pd.DataFrame(
        [
            {
                "student": row["student"],
                "family": FAMILIES[str(row["family"])],
                "objective": OBJECTIVES[str(row["objective"])],
                "mean_delta": row["delta_mean"],
            }
            for row in published_students()
            if row["student"] in set(students["student"])
        ]
    )
    layers = [
        Layer(mark="box", data=students, x="family", y="mean_delta", defaults={"objective": main}),
        Layer(mark="points", data=students, x="family", y="mean_delta", colour="family", defaults={"objective": main},
              tooltip=("student", "mean_delta"), size=34),
    ]  # fmt: skip
    if len(paper):
        layers.append(Layer(mark="points", data=paper, x="family", y="mean_delta", fixed=PUBLISHED,
                            defaults={"objective": main}, tooltip=("student", "objective", "mean_delta")))  # fmt: skip
    return Panel(
        x_label="", y_label="mean delta_transf, points", layers=tuple(layers), title="c) family",
        x_kind="category", x_order=order,
    )  # fmt: skip


FIGURE = Figure(
    key="8",
    title="Transfer delta by accuracy, size and family of the student",
    caption="Mean transfer delta of each student over its teachers, by its accuracy, size and family.",
    section="transfer",
    plan="kt-study plan --preset paper-10pct",
    build=build,
)
