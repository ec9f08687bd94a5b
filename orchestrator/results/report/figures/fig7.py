"""Figure 7: knowledge gain against knowledge loss."""

from __future__ import annotations

import pandas as pd

from orchestrator.results.report.figures.figure import Figure
from orchestrator.results.report.material import Material, order_of
from orchestrator.results.report.missing import Missing, missing
from orchestrator.results.report.plot import FAMILIES, OBJECTIVES, PUBLISHED, Drawing, Layer, Panel
from orchestrator.results.report.published import SETTING, students

PREFERRED = (OBJECTIVES["kl"], OBJECTIVES["kl_dp"])


def build(material: Material) -> Drawing | Missing:
    """A panel for KL and one for KL+DP, or for the first two objectives that there are."""
    rows = material.single.dropna(subset=["knowledge_gain", "knowledge_loss"])
    if rows.empty:
        return missing(material.single, "single-teacher transfers", "knowledge_gain", "knowledge_loss")
    there = order_of(rows["objective"])
    chosen = [name for name in PREFERRED if name in there] or list(there[:2])
    rows = rows[rows["objective"].isin(chosen)]
    top = float(rows[["knowledge_gain", "knowledge_loss"]].max().max())
    means = ", ".join(f"{name}: {_means(rows[rows['objective'] == name])}" for name in chosen)
    parts = {name: rows[rows["objective"] == name] for name in chosen}
    paper = {name: _paper(part, name) for name, part in parts.items()}
    return Drawing(
        panels=tuple(_panel(part, paper[name], name, top) for name, part in parts.items()),
        sample=f"means of gain and loss, % of validation samples: {means}",
        published=f"Diamonds: means over the teachers of each of the paper's students ({SETTING}), from the authors' "
        "released figures."
        if any(map(len, paper.values()))
        else "",
    )


def _means(rows: pd.DataFrame) -> str:
    return f"{rows['knowledge_gain'].mean():.2f} and {rows['knowledge_loss'].mean():.2f} ({len(rows)} transfers)"


def _paper(rows: pd.DataFrame, objective: str) -> pd.DataFrame:
    """The paper's figures for those of its students that are here."""
    here = set(rows["student"])
    return pd.DataFrame(
        [
            {
                "student": row["student"],
                "knowledge_gain": row["gain_mean"],
                "knowledge_loss": row["loss_mean"],
                "family": FAMILIES[str(row["family"])],
                "objective": objective,
            }
            for row in students()
            if OBJECTIVES[str(row["objective"])] == objective and row["student"] in here
        ]
    )


def _panel(rows: pd.DataFrame, paper: pd.DataFrame, objective: str, top: float) -> Panel:
    diagonal = pd.DataFrame({"knowledge_loss": [0.0, top], "knowledge_gain": [0.0, top]})
    tips = ("student", "teacher", "knowledge_gain", "knowledge_loss", "delta_transf")
    layers = [
        Layer(mark="line", data=diagonal, x="knowledge_loss", y="knowledge_gain", fixed="grey"),
        Layer(mark="points", data=rows, x="knowledge_loss", y="knowledge_gain", colour="family", tooltip=tips, size=24),
    ]
    if len(paper):
        layers.append(Layer(mark="points", data=paper, x="knowledge_loss", y="knowledge_gain", fixed=PUBLISHED,
                            tooltip=("student", "knowledge_gain", "knowledge_loss")))  # fmt: skip
    return Panel(x_label="knowledge loss, %", y_label="knowledge gain, %", layers=tuple(layers), title=objective)


FIGURE = Figure(
    key="7",
    title="Gain against loss",
    caption="Validation samples newly right against newly wrong, each in %; above the line the student has improved.",
    section="transfer",
    plan="kt-study plan --preset paper-10pct",
    build=build,
)
