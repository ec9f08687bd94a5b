"""The published tables: complete, documented, and consistent with each other."""

from __future__ import annotations

import re
from importlib.resources import files
from statistics import mean, pstdev

import pytest

from kt_study.errors import DataError
from kt_study.published import read_table, tables


def test_the_readme_names_every_table_and_no_other() -> None:
    readme = files("kt_study.published").joinpath("README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(\w+)\.csv`", readme)) == set(tables())
    assert "2310.17653" in readme and "ebcf12d" in readme


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("claims", 28),
        ("students_20x7", 20 * 7),
        ("table1_full_imagenet", 8),
        ("table2_examples", 4),
        ("table3_supervised_vs_unsupervised", 8),
        ("table4_multi_teacher_kl_dp", 3),
        ("table5_models", 20 + 20),
        ("table6_models", 8 + 4),
        ("table7_pairs", 8 * 4 * 3),
        ("table8_flip_deltas_kl_dp", 8),
        ("table9_multi_teacher_kl", 3),
    ],
)
def test_every_table_is_whole(name: str, rows: int) -> None:
    table = read_table(name)
    assert len(table) == rows
    assert all(None not in row and None not in row.values() for row in table)


def test_table_1_is_the_mean_of_table_7_under_kl_dp() -> None:
    for row in read_table("table1_full_imagenet"):
        deltas = [
            float(pair["delta_transf"])
            for pair in read_table("table7_pairs")
            if (pair["student"], pair["objective"]) == (row["student"], "kl_dp")
        ]
        assert mean(deltas) == pytest.approx(float(row["delta_kl_dp_mean"]), abs=0.011)
        assert pstdev(deltas) == pytest.approx(float(row["delta_kl_dp_std"]), abs=0.011)


def test_an_unknown_table_is_refused() -> None:
    with pytest.raises(DataError, match="table99: no such published table; there are claims"):
        read_table("table99")
