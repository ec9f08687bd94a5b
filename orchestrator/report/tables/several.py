"""Several teachers against one, shared by Tables 4 and 9."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from orchestrator.report.material import Material
from orchestrator.report.plot import OBJECTIVES
from orchestrator.report.tables.common import beside, printed


def several_teachers(material: Material, objective: str, table: str, modes: Sequence[str]) -> pd.DataFrame | None:
    """A row a student: its single transfers from the very teachers of the mode, and each mode."""
    label = OBJECTIVES[objective]
    rows = material.several[material.several["objective"] == label]
    found = {}
    for student, runs in rows.groupby("student", sort=True):
        teachers = {key for keys in runs["teacher_key"].astype(str) for key in keys.split("+")}
        single = material.single[
            (material.single["objective"] == label)
            & (material.single["student"] == student)
            & material.single["teacher_key"].isin(teachers)
        ]["delta_transf"]
        by_mode = runs.groupby("multi_teacher")["delta_transf"].mean()
        found[student] = {
            "teachers": len(teachers),
            "single mean": single.mean(),
            "single min": single.min(),
            "single max": single.max(),
            **{mode: by_mode.get(mode) for mode in modes},
        }
    if not found:
        return None
    ours = pd.DataFrame.from_dict(found, orient="index").rename_axis("student")
    columns = {f"single_{name}": f"paper single {name}" for name in ("mean", "min", "max")}
    return beside(ours, printed(table, columns | {mode: f"paper {mode}" for mode in modes})).reset_index()
