"""Figure 7: knowledge gain against knowledge loss."""

from __future__ import annotations

import pandas as pd

from orchestrator.results.report.missing import SINGLE, complete
from orchestrator.results.report.parts import Figure
from orchestrator.results.report.plot import OBJECTIVES, Layer, Panel, Plot, published_points
from orchestrator.results.report.published import SETTING, students
from orchestrator.results.report.study_results import StudyResults, order_of

PREFERRED = (OBJECTIVES["kl"], OBJECTIVES["kl_dp"])


def build(study: StudyResults) -> Plot:
    """A panel for KL and one for KL+DP, or for the first two objectives that there are."""
    rows = complete(study.single, SINGLE, "knowledge_gain", "knowledge_loss")
    there = order_of(rows["objective"])
    chosen = [name for name in PREFERRED if name in there] or list(there[:2])
    parts = {name: rows[rows["objective"] == name] for name in chosen}
    top = float(pd.concat(list(parts.values()))[["knowledge_gain", "knowledge_loss"]].max().max())
    paper = students().rename(columns={"gain_mean": "knowledge_gain", "loss_mean": "knowledge_loss"})
    printed = {
        name: paper[(paper["objective"] == name) & paper["student"].isin(part["student"])]
        for name, part in parts.items()
    }
    means = ", ".join(
        f"{name}: {part['knowledge_gain'].mean():.2f} and {part['knowledge_loss'].mean():.2f} ({len(part)} transfers)"
        for name, part in parts.items()
    )
    return Plot(
        panels=tuple(_panel(part, printed[name], name, top) for name, part in parts.items()),
        sample=f"means of gain and loss, % of validation samples: {means}",
        published=f"Diamonds: means over the teachers of each of the paper's students ({SETTING}), from the authors' "
        "released figures."
        if any(map(len, printed.values()))
        else "",
    )


def _panel(rows: pd.DataFrame, paper: pd.DataFrame, objective: str, top: float) -> Panel:
    x, y = "knowledge_loss", "knowledge_gain"
    diagonal = pd.DataFrame({x: [0.0, top], y: [0.0, top]})
    layers = (
        Layer(mark="line", data=diagonal, x=x, y=y, fixed="grey"),
        Layer(mark="points", data=rows, x=x, y=y, colour="family", size=24,
              tooltip=("student", "teacher", y, x, "delta_transf")),
        *published_points(paper, x, y, "student", y, x),
    )  # fmt: skip
    return Panel(x_label="knowledge loss, %", y_label="knowledge gain, %", layers=layers, title=objective)


FIGURE_7 = Figure(
    key="7",
    title="Gain against loss",
    caption="Validation samples newly right against newly wrong, each in %; above the line the student has improved.",
    section="transfer",
    plan="kt-study plan --preset paper-10pct",
    build=build,
)
