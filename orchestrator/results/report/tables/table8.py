"""Table 8: how rho changes under KL+DP."""

from __future__ import annotations

import pandas as pd

from orchestrator.results.report.material import Material
from orchestrator.results.report.missing import Missing, missing
from orchestrator.results.report.plot import OBJECTIVES
from orchestrator.results.report.tables.common import beside, per_student, printed
from orchestrator.results.report.tables.table import Table

COLUMNS = {"delta_transf": "delta_transf", "delta_rho_pos": "Δ rho_pos", "delta_rho_neg": "Δ rho_neg"}
PRINTED = {
    f"{column}_{short}": f"paper {head} {sign}"
    for column, head in COLUMNS.items()
    for short, sign in (("mean", "mean"), ("std", "±"))
}


def build(material: Material) -> pd.DataFrame | Missing:
    """A row a student."""
    rows = per_student(_WithChanges(material), "kl_dp", COLUMNS)
    if rows.empty or rows["Δ rho_pos mean"].isna().all():
        with_partition = material.single[material.single["objective"] == OBJECTIVES["kl_dp"]]
        return missing(with_partition, "single-teacher transfers with KL+DP", "rho_pos_after", "rho_neg_after")
    return beside(rows, printed("table8_flip_deltas_kl_dp", PRINTED)).reset_index()


class _WithChanges(Material):
    """The study with the changes of rho beside each transfer."""

    def __init__(self, material: Material) -> None:
        rows = material.single
        changes = {
            f"delta_rho_{side}": rows[f"rho_{side}_after"] - rows[f"rho_{side}_before"] for side in ("pos", "neg")
        }
        super().__init__(material.results, material.study)
        self.__dict__["single"] = rows.assign(**changes)


TABLE = Table(
    key="8",
    title="What changes in the flips, KL+DP",
    caption="Change of rho_pos and rho_neg by the transfer, in points: mean and population standard deviation over "
    "teachers. "
    "delta_transf is the change of rho_neg minus that of rho_pos.",
    section="transfer",
    plan="kt-study plan --preset paper-full",
    build=build,
    published="ImageNet in full, 8 students x 4 teachers",
)
