"""Tables 4 and 9: several teachers against one."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from orchestrator.results.report.missing import complete
from orchestrator.results.report.parts import Table
from orchestrator.results.report.plot import OBJECTIVES
from orchestrator.results.report.study_results import StudyResults
from orchestrator.results.report.tables.per_student import beside_printed

SETTING = "ImageNet, 3 students x 3 teachers"
MODES = ("sequential", "parallel", "soup")


def with_kl_dp(study: StudyResults) -> pd.DataFrame:
    """Table 4."""
    return _several_teachers(study, "kl_dp", "table4_multi_teacher_kl_dp", MODES)


def with_kl(study: StudyResults) -> pd.DataFrame:
    """Table 9."""
    return _several_teachers(study, "kl", "table9_multi_teacher_kl", ("sequential", "soup"))


def _several_teachers(study: StudyResults, objective: str, table: str, modes: Sequence[str]) -> pd.DataFrame:
    """A row per student and set of teachers, beside the paper's row of that student."""
    ours = complete(
        against_single(study, objective, modes), f"transfers from several teachers with {OBJECTIVES[objective]}"
    )
    columns = {f"single_{name}": f"paper single {name}" for name in ("mean", "min", "max")}
    columns |= {mode: f"paper {mode}" for mode in modes}
    return beside_printed(ours.set_index("student"), table, columns).reset_index()


def against_single(study: StudyResults, objective: str, modes: Sequence[str]) -> pd.DataFrame:
    """A row per student and set of teachers that it had: its single transfers from these teachers, and each mode.

    Returns:
        student, teachers (how many), single mean, min and max, a column per mode (points, the mean of its runs with this
        set), which (the teachers' names).
    """
    label = OBJECTIVES[objective]
    runs = study.several[study.several["objective"] == label]
    single = study.single[study.single["objective"] == label]
    rows = []
    for (student, teachers), of_set in runs.groupby(["student", "teacher_set"], sort=True):
        keys = str(teachers).split("+")
        alone = single[(single["student"] == student) & single["teacher_key"].isin(keys)]["delta_transf"]
        by_mode = of_set.groupby("multi_teacher")["delta_transf"].mean()
        rows.append(
            {
                "student": str(student),
                "teachers": len(keys),
                "single mean": alone.mean(),
                "single min": alone.min(),
                "single max": alone.max(),
                **{mode: by_mode.get(mode, float("nan")) for mode in modes},
                "which": ", ".join(sorted(str(of_set["teacher"].iloc[0]).split("+"))),
            }
        )
    return pd.DataFrame(rows)


TABLE_4 = Table(
    key="4",
    title="Several teachers, KL+DP",
    caption="delta_transf in points of a student's single transfers from these teachers, and of transfers from all of "
    "them: sequential, parallel, and as a soup of the single ones.",
    section="multi-teacher",
    plan="kt-study plan --preset paper-multi",
    build=with_kl_dp,
    published=SETTING,
)
TABLE_9 = Table(
    key="9",
    title="Several teachers, KL",
    caption="As Table 4, without the partition. The paper has no parallel mode here.",
    section="multi-teacher",
    plan="kt-study plan --preset paper-multi",
    build=with_kl,
    published=SETTING,
)
