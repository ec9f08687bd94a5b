"""Table 3: the partition with labels against the one without."""

from __future__ import annotations

import pandas as pd

from orchestrator.results.report.material import Material
from orchestrator.results.report.missing import Missing
from orchestrator.results.report.tables.common import beside, per_student, printed
from orchestrator.results.report.tables.table import Table

KINDS = {"kl_dp": "supervised", "kl_dp_unsupervised": "unsupervised"}
PRINTED = {f"{kind}_{short}": f"paper {kind} {sign}" for kind in KINDS.values() for short, sign in
           (("mean", "mean"), ("std", "±"))}  # fmt: skip


def build(material: Material) -> pd.DataFrame | Missing:
    """Students that have both."""
    supervised, unsupervised = (per_student(material, name, {"delta_transf": label}) for name, label in KINDS.items())
    both = supervised.join(unsupervised.drop(columns="teachers", errors="ignore"), how="inner")
    if both.empty or unsupervised.empty:
        return Missing(reason="No student has transfers with KL+DP both with labels and without")
    return beside(both, printed("table3_supervised_vs_unsupervised", PRINTED)).reset_index()


TABLE = Table(
    key="3",
    title="With and without labels",
    caption="delta_transf of KL+DP in points, the partition made with labels and by confidence alone: mean and "
    "population "
    "standard deviation over teachers.",
    section="transfer",
    plan="kt-study plan --preset paper-full",
    build=build,
    published="ImageNet in full, 8 students x 4 teachers",
)
