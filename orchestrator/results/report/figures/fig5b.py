"""Figure 5b: transfer rate by size of the student."""

from __future__ import annotations

from orchestrator.results.report.figures.fig5a import main_objective
from orchestrator.results.report.figures.figure import Figure
from orchestrator.results.report.material import Material
from orchestrator.results.report.missing import Missing, missing
from orchestrator.results.report.plot import Drawing, Layer, Panel
from orchestrator.results.report.statistics import counted


def build(material: Material) -> Drawing | Missing:
    """A point a student with its quartiles, joined by family."""
    rows = material.single.dropna(subset=["transfer_rate_top100", "student_params"])
    if rows.empty:
        return missing(material.single, "single-teacher transfers", "transfer_rate_top100", "student_params")
    main = main_objective(rows)
    groups = rows.groupby(["objective", "family", "student", "student_params"], sort=True)["transfer_rate_top100"]
    students = groups.agg(
        mean="mean", low=lambda v: v.quantile(0.25), high=lambda v: v.quantile(0.75), teachers="size"
    ).reset_index()
    students = students.sort_values("student_params")
    layer = Layer(
        mark="line", data=students, x="student_params", y="mean", low="low", high="high", colour="family",
        defaults={"objective": main}, tooltip=("student", "student_params", "mean", "low", "high", "teachers"),
    )  # fmt: skip
    panel = Panel(
        x_label="parameters of the student, millions", y_label="transfer rate, %", layers=(layer,), x_kind="log"
    )
    shown = students[students["objective"] == main]
    return Drawing(
        panels=(panel,), sample=f"{counted(len(shown), 'student')} with {main}, shown while no objective is chosen"
    )


FIGURE = Figure(
    key="5b",
    title="Transfer rate by size of the student",
    caption="Samples gained, of all positive flips before the transfer: mean over the teachers of each student, and "
    "quartiles.",
    section="transfer",
    plan="kt-study plan --preset paper-10pct",
    build=build,
)
