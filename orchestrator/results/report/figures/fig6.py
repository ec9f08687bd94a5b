"""Figure 6: success rates of contrastive objectives."""

from __future__ import annotations

from kt_study.objectives import OBJECTIVES
from orchestrator.results.report.figures.figure import Figure
from orchestrator.results.report.figures.success import success_boxes
from orchestrator.results.report.material import Material
from orchestrator.results.report.missing import Missing, missing
from orchestrator.results.report.plot import Drawing


def build(material: Material) -> Drawing | Missing:
    """As Figure 4a, where there is a contrastive objective to compare."""
    contrastive = {name: facts.label for name, facts in OBJECTIVES.items() if facts.contrastive}
    rows = material.single[material.single["objective"].isin(contrastive.values())]
    if rows.empty:
        return missing(rows, f"single-teacher transfers with {' or '.join(contrastive.values())}")
    return success_boxes(material, ("xe_kl", *contrastive, "kl_dp"))


FIGURE = Figure(
    key="6",
    title="Contrastive distillation compared",
    caption="Success rate of XE-KL, of the contrastive objectives CD and CRD, and of KL+DP. Diamonds: the paper's "
    "median.",
    section="transfer",
    plan="kt-study plan --preset paper-contrastive",
    build=build,
)
