"""Figure 4b: what is gained from weaker and from stronger teachers."""

from __future__ import annotations

from orchestrator.results.report.figures.figure import Figure
from orchestrator.results.report.figures.top_quarter import delta_panel
from orchestrator.results.report.material import Material
from orchestrator.results.report.missing import Missing, missing
from orchestrator.results.report.plot import Drawing
from orchestrator.results.report.published import SETTING


def build(material: Material) -> Drawing | Missing:
    """Points and lines for each objective."""
    rows = material.single.dropna(subset=["acc_teacher", "acc_before"])
    if rows.empty:
        return missing(material.single, "single-teacher transfers", "acc_teacher", "acc_before")
    counts = ", ".join(f"{objective} {n}" for objective, n in rows["objective"].value_counts(sort=False).items())
    return Drawing(
        panels=(delta_panel(rows),),
        sample=f"transfers: {counts}",
        notes=(
            "The lines are of the best quarter of each bin, as in the paper, and lie above what a typical teacher "
            "brings.",
        ),
        published=f"The paper ({SETTING}) draws KL, XE-KL+MCL and KL+DP, from about -10 to +13 points.",
    )


FIGURE = Figure(
    key="4b",
    title="Transfer delta by difference in accuracy",
    caption="Transfer delta against the difference in accuracy. Lines: mean of the deltas above the 75th percentile "
    "in each of ten equal bins.",
    section="transfer",
    plan="kt-study plan --preset paper-10pct",
    build=build,
)
