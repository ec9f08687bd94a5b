"""Several teachers against one, shared by Tables 4 and 9 and by the finding."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from orchestrator.results.report.material import Material
from orchestrator.results.report.missing import Missing, missing
from orchestrator.results.report.plot import OBJECTIVES
from orchestrator.results.report.tables.common import beside, printed

SETTING = "ImageNet, 3 students x 3 teachers"


def several_teachers(material: Material, objective: str, table: str, modes: Sequence[str]) -> pd.DataFrame | Missing:
    """A row a student and set of teachers, beside the paper's row of that student."""
    ours = against_single(material, objective, modes)
    if ours.empty:
        return missing(ours, f"transfers from several teachers with {OBJECTIVES[objective]}")
    columns = {f"single_{name}": f"paper single {name}" for name in ("mean", "min", "max")}
    theirs = printed(table, columns | {mode: f"paper {mode}" for mode in modes})
    return beside(ours.set_index("student"), theirs).reset_index()


def against_single(material: Material, objective: str, modes: Sequence[str]) -> pd.DataFrame:
    """Each set of teachers that a student had: its single transfers from these very teachers, and each mode.

    Returns:
        student, teachers (how many), single mean, min and max, a column a mode (points, the mean of its runs with this
        set), which (the teachers' names).
    """
    label = OBJECTIVES[objective]
    runs = material.several[material.several["objective"] == label]
    single = material.single[material.single["objective"] == label]
    rows = [
        _row(str(student), str(teachers), of_them, single, modes)
        for (student, teachers), of_them in runs.groupby(["student", "teacher_set"], sort=True)
    ]
    return pd.DataFrame(rows)


def _row(
    student: str, teachers: str, runs: pd.DataFrame, single: pd.DataFrame, modes: Sequence[str]
) -> dict[str, object]:
    keys = teachers.split("+")
    alone = single[(single["student"] == student) & single["teacher_key"].isin(keys)]["delta_transf"]
    by_mode = runs.groupby("multi_teacher")["delta_transf"].mean()
    return {
        "student": student,
        "teachers": len(keys),
        "single mean": alone.mean(),
        "single min": alone.min(),
        "single max": alone.max(),
        **{mode: by_mode.get(mode, float("nan")) for mode in modes},
        "which": ", ".join(sorted(str(runs["teacher"].iloc[0]).split("+"))),
    }
