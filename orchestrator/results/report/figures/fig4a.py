"""Figure 4a: how often a transfer succeeds."""

from __future__ import annotations

from kt_study.objectives import OBJECTIVES
from orchestrator.results.report.figures.figure import Figure
from orchestrator.results.report.figures.success import success_boxes
from orchestrator.results.report.material import Material
from orchestrator.results.report.missing import Missing
from orchestrator.results.report.plot import Drawing


def build(material: Material) -> Drawing | Missing:
    """Success rate of each student over its teachers, for each objective that is not contrastive."""
    return success_boxes(material, [name for name, facts in OBJECTIVES.items() if not facts.contrastive])


FIGURE = Figure(
    key="4a",
    title="Teachers that raise a student",
    caption="Success rate: share of a student's teachers whose transfer has delta_transf > 0. A point a student, a "
    "box over students; diamonds: the paper's median.",
    section="transfer",
    plan="kt-study plan --preset paper-10pct",
    build=build,
)
