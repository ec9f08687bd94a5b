"""Figures 4b, 9 and 10: transfer delta by difference in accuracy."""

from __future__ import annotations

import pandas as pd

from orchestrator.results.report.missing import SINGLE, Missing, complete
from orchestrator.results.report.parts import Figure
from orchestrator.results.report.plot import Layer, Panel, Plot, horizontal
from orchestrator.results.report.published import SETTING
from orchestrator.results.report.statistics import ALL, bin_middles, top_quarter_mean, with_all_families
from orchestrator.results.report.study_results import StudyResults

BINS = 10


def by_objective(study: StudyResults) -> Plot:
    """Figure 4b: points and lines for each objective."""
    rows = complete(study.single, SINGLE, "acc_teacher", "acc_before")
    counts = ", ".join(f"{objective} {n}" for objective, n in rows["objective"].value_counts(sort=False).items())
    return Plot(
        panels=(_panel(rows),),
        sample=f"transfers: {counts}",
        notes=(
            "The lines are of the best quarter of each bin, as in the paper, and are above what a typical teacher brings.",
        ),
        published=f"The paper ({SETTING}) draws KL, XE-KL+MCL and KL+DP, from about -10 to +13 points.",
    )


def by_dataset(study: StudyResults) -> Plot:
    """Figure 9: a panel for each data set, where a study has several."""
    rows = _on_all_datasets(study)
    parts = {str(name): part for name, part in rows.groupby("dataset", sort=True)}
    if len(parts) < 2:
        raise Missing(f"Transfers on one data set only ({', '.join(parts)})" if parts else "No transfers yet")
    return Plot(
        panels=tuple(_panel(part, name) for name, part in parts.items()),
        sample="transfers: " + ", ".join(f"{name} {len(part)}" for name, part in parts.items()),
        published="The paper draws CUB-200, Caltech-256 and Stanford Cars: 9 students x 4 teachers for KL, XE-KL+MCL "
        "and KL+DP.",
    )


def from_another_domain(study: StudyResults) -> Plot:
    """Figure 10: transfers whose teacher the study trained on another data set than that of the transfer."""
    trained = study.results.trainings[["model_key", "dataset"]].dropna()
    home = dict(zip(trained["model_key"], trained["dataset"], strict=True))
    rows = _on_all_datasets(study)
    rows = rows[[home.get(key, name) != name for key, name in zip(rows["teacher_key"], rows["dataset"], strict=True)]]
    if rows.empty:
        raise Missing("No transfers from teachers that the study fine-tuned on another data set")
    domains = ", ".join(sorted({str(home[key]) for key in rows["teacher_key"]}))
    return Plot(
        panels=(_panel(rows),),
        sample=f"{len(rows)} transfers from teachers trained on {domains}",
        published="The paper's teachers are fine-tuned on DomainNet Infograph and teach on 10 % of ImageNet.",
    )


def _on_all_datasets(study: StudyResults) -> pd.DataFrame:
    rows = study.all_single
    return rows[rows["shown"]].dropna(subset=["acc_teacher", "acc_before"])


def _panel(transfers: pd.DataFrame, title: str = "") -> Panel:
    """Every transfer as a point; lines: mean of the deltas above the 75th percentile of each bin (paper, Figure 4b)."""
    rows = transfers.assign(difference=transfers["acc_teacher"] - transfers["acc_before"])
    rows = rows.dropna(subset=["difference", "delta_transf"])
    in_bins = with_all_families(rows.assign(difference=bin_middles(rows["difference"], BINS)))
    grouped = in_bins.groupby(["family", "objective", "difference"], sort=True)["delta_transf"]
    lines = grouped.agg(top=top_quarter_mean, n="size").reset_index()
    layers = (
        Layer(mark="points", data=rows, x="difference", y="delta_transf", colour="objective", size=14,
              tooltip=("objective", "teacher", "student", "delta_transf", "difference")),
        Layer(mark="line", data=lines, x="difference", y="top", colour="objective", defaults={"family": ALL},
              tooltip=("objective", "top", "n")),
        horizontal(0.0),
    )  # fmt: skip
    return Panel(
        x_label="teacher minus student accuracy, points", y_label="delta_transf, points", layers=layers, title=title
    )


FIGURE_4B = Figure(
    key="4b",
    title="Transfer delta by difference in accuracy",
    caption="Transfer delta against the difference in accuracy. Lines: mean of the deltas above the 75th percentile "
    "in each of ten equal bins.",
    section="transfer",
    plan="kt-study plan --preset paper-10pct",
    build=by_objective,
)
FIGURE_9 = Figure(
    key="9",
    title="Other data sets",
    caption="As Figure 4b, for each data set of the study.",
    section="transfer",
    plan="kt-study plan --preset paper-datasets",
    build=by_dataset,
)
FIGURE_10 = Figure(
    key="10",
    title="Teachers from another domain",
    caption="As Figure 4b, for teachers that were fine-tuned on another data set.",
    section="transfer",
    plan="kt-study plan --preset paper-domain-shift",
    build=from_another_domain,
)
