"""The pairs with most complementary knowledge."""

from __future__ import annotations

import pandas as pd

from orchestrator.results.report.material import Material
from orchestrator.results.report.missing import Missing, missing
from orchestrator.results.report.tables.table import Table

TOP = 200
COLUMNS = ["teacher", "student", "family", "delta_acc", "rho_pos", "rho_neg", "error_overlap", "kappa", "entropy",
           "entropy_null"]  # fmt: skip


def build(material: Material) -> pd.DataFrame | Missing:
    """The first pairs by rho_pos."""
    pairs = material.pairs.dropna(subset=["rho_pos"])
    if pairs.empty:
        return missing(material.pairs, "measured pairs", "rho_pos")
    ordered = pairs.sort_values(["rho_pos", "teacher", "student"], ascending=[False, True, True])
    return ordered.head(TOP)[COLUMNS]


TABLE = Table(
    key="pairs",
    title="Most complementary pairs",
    caption=f"The first {TOP} ordered pairs by rho_pos, in % of validation samples; delta_acc in points, entropies in "
    f"nats.",
    section="complementarity",
    plan="kt-study plan --complementarity-pairs 466",
    build=build,
)
