"""Figure 11: one teacher after the other."""

from __future__ import annotations

import pandas as pd

from orchestrator.results.report.figures.figure import Figure
from orchestrator.results.report.material import Material
from orchestrator.results.report.missing import Missing, missing
from orchestrator.results.report.plot import Drawing, Layer, Panel

STUDENTS = 6  # with a line of their own


def build(material: Material) -> Drawing | Missing:
    """The curve over all epochs of all stages, for each student and objective."""
    runs = material.several[material.several["multi_teacher"] == "sequential"]
    if runs.empty:
        return missing(runs, "sequential transfers from several teachers")
    longest = runs["teacher"].astype(str).str.count(r"\+")
    runs = runs.assign(teachers=longest).sort_values(["student", "teachers", "teacher"], ascending=[True, False, True])
    students = list(dict.fromkeys(runs["student"].astype(str)))[:STUDENTS]
    runs = runs[runs["student"].isin(students)].drop_duplicates(["student", "objective"])
    curves = material.results.transfer_epochs.merge(
        runs[["job_id", "family", "objective"]].rename(columns={"objective": "label"}), on="job_id"
    ).dropna(subset=["delta_transf"])
    curves = curves.assign(objective=curves["label"], epoch=curves["epoch"].astype(int))
    panels = tuple(
        _panel(rows, str(objective)) for objective, rows in curves.groupby("objective", sort=False) if len(rows)
    )
    if not panels:
        return Missing(reason=f"There are sequential transfers ({len(runs):,}), but no curve of any", planned=False)
    teachers = "; ".join(f"{run['student']}: {str(run['teacher']).replace('+', ', ')}" for _, run in
                         runs.drop_duplicates("student").iterrows())  # fmt: skip
    return Drawing(
        panels=panels,
        sample=f"{len(runs)} sequences, the longest of each student and objective. Teachers in order: {teachers}",
        published="The paper (ImageNet) draws PiT-B with KL+DP, 20 epochs for each of ResMLP-36, SWSL-ResNext101 and VOLO-D2.",
    )


def _panel(curves: pd.DataFrame, objective: str) -> Panel:
    ends = curves.groupby(["student", "stage"])["epoch"].max().reset_index()
    first = ends[ends["student"] == ends["student"].iloc[0]]
    borders = first.iloc[:-1][["epoch"]].assign(label=[f"teacher {at + 2}" for at in range(len(first) - 1)])
    layers = (
        Layer(mark="line", data=curves, x="epoch", y="delta_transf", colour="student",
              tooltip=("student", "stage", "epoch", "delta_transf")),
        Layer(mark="rule", data=borders, x="epoch", label="label"),
    )  # fmt: skip
    return Panel(x_label="epoch", y_label="delta_transf, points", layers=layers, title=objective)


FIGURE = Figure(
    key="11",
    title="One teacher after the other",
    caption="Transfer delta over the epochs of a sequential transfer. Dashed: the next teacher begins.",
    section="multi-teacher",
    plan="kt-study plan --preset paper-multi",
    build=build,
)
