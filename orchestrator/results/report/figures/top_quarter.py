"""Transfer delta by difference in accuracy, shared by Figures 4b, 9 and 10."""

from __future__ import annotations

import numpy as np
import pandas as pd

from orchestrator.results.report.plot import Layer, Panel
from orchestrator.results.report.statistics import ALL, top_quarter_mean, with_everyone

BINS = 10


def delta_panel(transfers: pd.DataFrame, title: str = "") -> Panel:
    """Every transfer as a point; lines: mean of the deltas above the 75th percentile of each bin (paper, Figure 4b)."""
    rows = transfers.assign(difference=transfers["acc_teacher"] - transfers["acc_before"])
    rows = rows.dropna(subset=["difference", "delta_transf"])
    zero = pd.DataFrame({"y": [0.0], "label": [""]})
    tips = ("objective", "teacher", "student", "delta_transf", "difference")
    layers = (
        Layer(mark="points", data=rows, x="difference", y="delta_transf", colour="objective", tooltip=tips, size=14),
        Layer(mark="line", data=_lines(rows), x="difference", y="top", colour="objective", defaults={"family": ALL},
              tooltip=("objective", "top", "n")),
        Layer(mark="rule", data=zero, y="y"),
    )  # fmt: skip
    return Panel(
        x_label="teacher minus student accuracy, points", y_label="delta_transf, points", layers=layers, title=title
    )


def _lines(rows: pd.DataFrame) -> pd.DataFrame:
    if rows.empty:
        return pd.DataFrame(columns=["family", "objective", "difference", "top", "n"])
    edges = np.linspace(rows["difference"].min(), rows["difference"].max(), BINS + 1)
    place = np.clip(np.searchsorted(edges, rows["difference"].to_numpy(dtype=float), side="right") - 1, 0, BINS - 1)
    everyone = with_everyone(rows.assign(difference=((edges[:-1] + edges[1:]) / 2)[place]))
    grouped = everyone.groupby(["family", "objective", "difference"], sort=True)["delta_transf"]
    return grouped.agg(top=top_quarter_mean, n="size").reset_index()
