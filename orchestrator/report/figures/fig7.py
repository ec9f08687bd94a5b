"""Figure 7: knowledge gain against knowledge loss."""

from __future__ import annotations

import pandas as pd

from orchestrator.report.figures.figure import Figure
from orchestrator.report.material import Material, order_of
from orchestrator.report.plot import OBJECTIVES, PUBLISHED, Drawing, Layer, Panel
from orchestrator.report.published import students

PREFERRED = (OBJECTIVES["kl"], OBJECTIVES["kl_dp"])


def build(material: Material) -> Drawing | None:
    """A panel for KL and one for KL+DP, or for the first two objectives that there are."""
    rows = material.single.dropna(subset=["knowledge_gain", "knowledge_loss"])
    if rows.empty:
        return None
    there = order_of(rows["objective"])
    chosen = [name for name in PREFERRED if name in there] or list(there[:2])
    rows = rows[rows["objective"].isin(chosen)]
    top = float(rows[["knowledge_gain", "knowledge_loss"]].max().max())
    means = ", ".join(f"{name}: {_means(rows[rows['objective'] == name])}" for name in chosen)
    return Drawing(
        panels=tuple(_panel(rows[rows["objective"] == name], name, top) for name in chosen),
        sample=f"means of gain and loss, % of validation samples: {means}",
        published="Diamonds: means over 20 teachers of each of the paper's students, from the authors' released "
        "figures.",
    )


def _means(rows: pd.DataFrame) -> str:
    return f"{rows['knowledge_gain'].mean():.2f} and {rows['knowledge_loss'].mean():.2f} ({len(rows)} transfers)"


def _panel(rows: pd.DataFrame, objective: str, top: float) -> Panel:

    names = {label: name for name, label in OBJECTIVES.items()}
    paper = pd.DataFrame(
        [
            {"student": row["student"], "knowledge_gain": row["gain_mean"], "knowledge_loss": row["loss_mean"]}
            for row in students()
            if row["objective"] == names.get(objective) and row["student"] in set(rows["student"])
        ],
        columns=["student", "knowledge_gain", "knowledge_loss"],
    )
    diagonal = pd.DataFrame({"knowledge_loss": [0.0, top], "knowledge_gain": [0.0, top]})
    tips = ("student", "teacher", "knowledge_gain", "knowledge_loss", "delta_transf")
    layers = [
        Layer(mark="line", data=diagonal, x="knowledge_loss", y="knowledge_gain", fixed="grey"),
        Layer(mark="points", data=rows, x="knowledge_loss", y="knowledge_gain", colour="family", tooltip=tips, size=24),
    ]
    if len(paper):
        layers.append(Layer(mark="points", data=paper, x="knowledge_loss", y="knowledge_gain", fixed=PUBLISHED,
                            tooltip=tuple(paper.columns)))  # fmt: skip

    return Panel(x_label="knowledge loss, %", y_label="knowledge gain, %", layers=tuple(layers), title=objective)


FIGURE = Figure(
    key="7",
    title="Gain against loss",
    caption="Validation samples newly right against newly wrong, each in %; above the line the student has improved.",
    section="transfer",
    plan="kt-study plan --preset paper-10pct",
    build=build,
)
