"""Figure 10: teachers from another domain."""

from __future__ import annotations

from orchestrator.results.report.figures.figure import Figure
from orchestrator.results.report.figures.top_quarter import delta_panel
from orchestrator.results.report.material import Material
from orchestrator.results.report.missing import Missing
from orchestrator.results.report.plot import Drawing


def build(material: Material) -> Drawing | Missing:
    """Transfers whose teacher was trained here on another data set than the one of the transfer."""
    trained = material.results.trainings[["model_key", "dataset"]].dropna()
    home = dict(zip(trained["model_key"], trained["dataset"], strict=True))
    rows = material.all_single[material.all_single["shown"]].dropna(subset=["acc_teacher", "acc_before"])
    rows = rows[[home.get(key, name) != name for key, name in zip(rows["teacher_key"], rows["dataset"], strict=True)]]
    if rows.empty:
        return Missing(reason="No transfers from teachers that the study fine-tuned on another data set")
    domains = ", ".join(sorted({str(home[key]) for key in rows["teacher_key"]}))
    return Drawing(
        panels=(delta_panel(rows),),
        sample=f"{len(rows)} transfers from teachers trained on {domains}",
        published="The paper's teachers are fine-tuned on DomainNet Infograph and teach on 10 % of ImageNet.",
    )


FIGURE = Figure(
    key="10",
    title="Teachers from another domain",
    caption="As Figure 4b, for teachers that were fine-tuned on another data set.",
    section="transfer",
    plan="kt-study plan --preset paper-domain-shift",
    build=build,
)
