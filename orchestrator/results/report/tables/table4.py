"""Table 4: several teachers with KL+DP."""

from __future__ import annotations

import pandas as pd

from orchestrator.results.report.material import Material
from orchestrator.results.report.missing import Missing
from orchestrator.results.report.tables.several import SETTING, several_teachers
from orchestrator.results.report.tables.table import Table


def build(material: Material) -> pd.DataFrame | Missing:
    """A row a student and set of teachers."""
    modes = ("sequential", "parallel", "soup")
    return several_teachers(material, "kl_dp", "table4_multi_teacher_kl_dp", modes)


TABLE = Table(
    key="4",
    title="Several teachers, KL+DP",
    caption="delta_transf in points of a student's single transfers from these teachers, and of all of them one after "
    "the other, at once, and as a soup of the single ones.",
    section="multi-teacher",
    plan="kt-study plan --preset paper-multi",
    build=build,
    published=SETTING,
)
