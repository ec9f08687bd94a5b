"""Figure 9: transfer on other data sets."""

from __future__ import annotations

from orchestrator.results.report.figures.figure import Figure
from orchestrator.results.report.figures.top_quarter import delta_panel
from orchestrator.results.report.material import Material
from orchestrator.results.report.missing import Missing
from orchestrator.results.report.plot import Drawing


def build(material: Material) -> Drawing | Missing:
    """A panel for each data set, where a study has more than one."""
    rows = material.all_single
    rows = rows[rows["shown"]].dropna(subset=["acc_teacher", "acc_before"])
    names = sorted(set(rows["dataset"].astype(str)))
    if len(names) < 2:
        return Missing(reason=f"Transfers on one data set only ({names[0]})" if names else "No transfers yet")
    parts = {name: rows[rows["dataset"] == name] for name in names}
    counts = ", ".join(f"{name} {len(part)}" for name, part in parts.items())
    return Drawing(
        panels=tuple(delta_panel(part, name) for name, part in parts.items()),
        sample=f"transfers: {counts}",
        published="The paper draws CUB-200, Caltech-256 and Stanford Cars: 9 students x 4 teachers for KL, XE-KL+MCL "
        "and "
        "KL+DP.",
    )


FIGURE = Figure(
    key="9",
    title="Other data sets",
    caption="As Figure 4b, for each data set of the study.",
    section="transfer",
    plan="kt-study plan --preset paper-datasets",
    build=build,
)
