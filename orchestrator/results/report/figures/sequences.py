"""Figure 11: sequential transfers."""

from __future__ import annotations

import pandas as pd

from orchestrator.results.report.missing import Missing, complete
from orchestrator.results.report.parts import Figure
from orchestrator.results.report.plot import Layer, Panel, Plot
from orchestrator.results.report.study_results import StudyResults

STUDENTS = 6  # drawn, each as a line


def build(study: StudyResults) -> Plot:
    """The curve over all epochs of all stages, for each student and objective."""
    sequential = study.several[study.several["multi_teacher"] == "sequential"]
    runs = complete(sequential, "sequential transfers from several teachers")
    runs = runs.assign(teachers=runs["teacher"].astype(str).str.count(r"\+"))
    runs = runs.sort_values(["student", "teachers", "teacher"], ascending=[True, False, True])
    students = list(dict.fromkeys(runs["student"].astype(str)))[:STUDENTS]
    runs = runs[runs["student"].isin(students)].drop_duplicates(["student", "objective"])
    curves = study.results.transfer_epochs.merge(
        runs[["job_id", "family", "objective"]].rename(columns={"objective": "label"}), on="job_id"
    ).dropna(subset=["delta_transf"])
    curves = curves.assign(objective=curves["label"], epoch=curves["epoch"].astype(int))
    panels = tuple(
        _panel(rows, str(objective)) for objective, rows in curves.groupby("objective", sort=False) if len(rows)
    )
    if not panels:
        raise Missing(f"There are sequential transfers ({len(runs):,}), but none has a curve", planned=False)
    teachers = "; ".join(f"{run['student']}: {str(run['teacher']).replace('+', ', ')}" for _, run in
                         runs.drop_duplicates("student").iterrows())  # fmt: skip
    return Plot(
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


FIGURE_11 = Figure(
    key="11",
    title="One teacher after the other",
    caption="Transfer delta over the epochs of a sequential transfer. Dashed: the next teacher begins.",
    section="multi-teacher",
    plan="kt-study plan --preset paper-multi",
    build=build,
)
