"""Table 9: several teachers with plain KL."""

from __future__ import annotations

import pandas as pd

from orchestrator.results.report.material import Material
from orchestrator.results.report.missing import Missing
from orchestrator.results.report.tables.several import SETTING, several_teachers
from orchestrator.results.report.tables.table import Table


def build(material: Material) -> pd.DataFrame | Missing:
    """A row a student and set of teachers."""
    return several_teachers(material, "kl", "table9_multi_teacher_kl", ("sequential", "soup"))


TABLE = Table(
    key="9",
    title="Several teachers, KL",
    caption="As Table 4, without the partition. The paper has no parallel mode here.",
    section="multi-teacher",
    plan="kt-study plan --preset paper-multi",
    build=build,
    published=SETTING,
)
