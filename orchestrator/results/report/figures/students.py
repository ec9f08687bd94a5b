"""Figure 8: which students learn most."""

from __future__ import annotations

import pandas as pd

from orchestrator.results.report import published
from orchestrator.results.report.figures.transfer_rates import main_objective
from orchestrator.results.report.missing import SINGLE, complete
from orchestrator.results.report.parts import Figure
from orchestrator.results.report.plot import FAMILIES, Layer, Panel, Plot, horizontal, published_points
from orchestrator.results.report.statistics import by_student
from orchestrator.results.report.study_results import StudyResults
from orchestrator.terminal.plural import counted

PANELS = {
    "acc_before": ("accuracy of the student before, %", "a) accuracy"),
    "student_params": ("parameters of the student, millions", "b) size"),
}
MEAN_DELTA = "mean delta_transf, points"


def build(study: StudyResults) -> Plot:
    """Mean delta of each student over its teachers, against accuracy, size and family."""
    rows = complete(study.single, SINGLE)
    main = main_objective(rows)
    students = by_student(rows)
    panels = [_panel(students, x, main) for x in PANELS if students[x].notna().any()]
    unknown = [f"No panel {title}: unknown here." for x, (_, title) in PANELS.items() if students[x].isna().all()]
    shown = students[students["objective"] == main]
    return Plot(
        panels=(*panels, _families(students, main)),
        sample=f"{counted(len(shown), 'student')} with {main}, shown while no objective is chosen; each is a mean over "
        f"{counted(shown['teachers'].median(), 'teacher')} (median)",
        notes=("Students differ in several of these at once; a few students cannot show the cause.", *unknown),
    )


def _panel(students: pd.DataFrame, x: str, main: str) -> Panel:
    label, title = PANELS[x]
    points = Layer(mark="points", data=students, x=x, y="mean_delta", colour="family", defaults={"objective": main},
                   tooltip=("objective", "student", "mean_delta", "low", "high", "teachers", x), size=44)  # fmt: skip
    return Panel(
        x_label=label, y_label=MEAN_DELTA, layers=(points, horizontal(0.0)), title=title,
        x_kind="log" if x == "student_params" else "number",
    )  # fmt: skip


def _families(students: pd.DataFrame, main: str) -> Panel:
    there = set(students["family"])
    order = (*(name for name in FAMILIES.values() if name in there), *sorted(there - set(FAMILIES.values())))
    paper = published.students().rename(columns={"delta_mean": "mean_delta"})
    paper = paper[paper["student"].isin(students["student"])]
    shown = {"objective": main}
    layers = (
        Layer(mark="box", data=students, x="family", y="mean_delta", defaults=shown),
        Layer(mark="points", data=students, x="family", y="mean_delta", colour="family", defaults=shown,
              tooltip=("student", "mean_delta"), size=34),
        *published_points(paper, "family", "mean_delta", "student", "objective", "mean_delta", defaults=shown),
    )  # fmt: skip
    return Panel(x_label="", y_label=MEAN_DELTA, layers=layers, title="c) family", x_kind="category", x_order=order)


FIGURE_8 = Figure(
    key="8",
    title="Transfer delta by accuracy, size and family of the student",
    caption="Mean transfer delta of each student over its teachers, by its accuracy, size and family.",
    section="transfer",
    plan="kt-study plan --preset paper-10pct",
    build=build,
)
