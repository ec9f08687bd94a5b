"""The paper's printed numbers under the names used in result rows: timm's tags for models, kt-study's objectives."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING

from kt_study.published import read_table
from orchestrator.results.report.plot import FAMILIES, OBJECTIVES

if TYPE_CHECKING:
    import pandas as pd

OLD_NAMES = {
    "ig_resnext101_32x16d": "resnext101_32x16d.fb_wsl_ig1b_ft_in1k",
    "gluon_senet154": "senet154.gluon_in1k",
    "gluon_resnet101_v1c": "resnet101c.gluon_in1k",
    "resnetv2_50x1_bit_distilled": "resnetv2_50x1_bit.goog_distilled_in1k",
    "gluon_resnet34_v1b": "resnet34.gluon_in1k",
    "mixer_b16_224_miil": "mixer_b16_224.miil_in21k_ft_in1k",
    "mixer_b16_224": "mixer_b16_224.goog_in21k_ft_in1k",
    "resmlp_24_224": "resmlp_24_224.fb_in1k",
    "resmlp_24_distilled_224": "resmlp_24_224.fb_distilled_in1k",
}
"""Names of students_20x7.csv that are the beginning of no tag of Table 5, or of two."""

SETTING = "ImageNet, 10 % of it for training, 20 students x 20 teachers"
"""Data and models of the paper's success rates, deltas and gains: those of Table 5, as in students_20x7.csv."""

Row = Mapping[str, str]


def claim(name: str) -> float:
    """A single number of the text, by its id in claims.csv."""
    return next(float(row["value"]) for row in read_table("claims") if row["id"] == name)


@functools.cache
def models() -> tuple[Row, ...]:
    """Rows of Tables 5 and 6; a model in both appears twice."""
    return (*read_table("table6_models"), *read_table("table5_models"))


def student_of(row: Row) -> str:
    """The timm tag of a printed table's student, found by its accuracy; the printed name where none fits."""
    return next((model["timm_name"] for model in models() if model["acc"] == row["acc"]), row["student"])


@functools.cache
def tags() -> dict[str, str]:
    """Names printed in Tables 1, 2, 3, 4, 7, 8 and 9, in lower case -> timm tag."""
    found = {row["paper_name"].lower(): row["timm_name"] for row in models()}
    for table in ("table1_full_imagenet", "table4_multi_teacher_kl_dp"):
        found |= {row["student"].lower(): student_of(row) for row in read_table(table)}
    return found


def tag(printed: str) -> str:
    """The timm tag of a printed model name, or the name itself."""
    return tags().get(printed.lower(), printed)


def old_tag(name: str) -> str:
    """The timm tag of a name of students_20x7.csv."""
    if name in OLD_NAMES:
        return OLD_NAMES[name]
    return next(row["timm_name"] for row in models() if row["timm_name"].split(".")[0] == name)


@functools.cache
def students() -> pd.DataFrame:
    """students_20x7.csv: objective and family by label, student (timm tag), and its figures over 20 teachers."""
    import pandas as pd

    families = {"Trafo": "transformer", "CNN": "cnn", "MLP": "mlp"}
    texts = ("objective", "student", "type")
    return pd.DataFrame(
        [
            {
                "objective": OBJECTIVES[row["objective"]],
                "student": old_tag(row["student"]),
                "family": FAMILIES[families[row["type"]]],
                **{name: float(value) for name, value in row.items() if name not in texts},
            }
            for row in read_table("students_20x7")
        ]
    )


@functools.cache
def success_medians() -> dict[str, float]:
    """Label of an objective -> median over the paper's 20 students of the success rate, %."""
    return {
        str(name): rate for name, rate in students().groupby("objective", sort=False)["success_rate"].median().items()
    }
