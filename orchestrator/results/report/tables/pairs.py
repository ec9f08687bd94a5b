"""The pairs with most complementary knowledge."""

from __future__ import annotations

import pandas as pd

from orchestrator.results.report.missing import PAIRS, complete
from orchestrator.results.report.parts import Table
from orchestrator.results.report.study_results import StudyResults

TOP = 200
COLUMNS = ["teacher", "student", "family", "delta_acc", "rho_pos", "rho_neg", "error_overlap", "kappa", "entropy",
           "entropy_null"]  # fmt: skip


def build(study: StudyResults) -> pd.DataFrame:
    """The first pairs by rho_pos."""
    pairs = complete(study.pairs, PAIRS, "rho_pos")
    ordered = pairs.sort_values(["rho_pos", "teacher", "student"], ascending=[False, True, True])
    return ordered.head(TOP)[COLUMNS]


TABLE_PAIRS = Table(
    key="pairs",
    title="Most complementary pairs",
    caption=f"The first {TOP} ordered pairs by rho_pos, in % of validation samples; delta_acc in points, entropies in "
    f"nats.",
    section="complementarity",
    plan="kt-study plan --complementarity-pairs 466",
    build=build,
)
