"""The whole chain from parquet to printed tables, on the paper's own numbers."""

from __future__ import annotations

import statistics
from pathlib import Path

import pandas as pd
import pytest

from kt_study.published import read_table
from orchestrator.results.report import write_report
from orchestrator.results.report.published import student_of, tag
from tests.results.published_parquet import write_pairs, write_students


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report's CSV tables of two studies that hold the paper's numbers."""
    folder = tmp_path_factory.mktemp("published")
    write_pairs(folder / "results")
    write_students(folder / "results")
    return write_report(folder / "results", folder / "report").parent / "tables"


def table(tables: Path, study: str, key: str) -> pd.DataFrame:
    return pd.read_csv(tables / study / f"table-{key}.csv")


def test_success_medians_are_the_printed_ones(tables: Path) -> None:
    success = table(tables, "paper-10pct", "success").set_index("objective")
    expected = {"KL": 32.5, "XE-KL": 42.5, "XE-KL+MCL": 80.0, "KL+DP": 92.5}
    assert success["median success %"][list(expected)].to_dict() == expected
    assert success["paper median %"][list(expected)].to_dict() == expected
    assert (success["95 % low"] <= success["median success %"]).all()
    assert (success["95 % high"] >= success["median success %"]).all()


def test_students_have_their_released_figures_beside_them(tables: Path) -> None:
    rows = table(tables, "paper-10pct", "students")
    assert len(rows) == 140
    for ours, theirs in {"success %": "paper success %", "mean delta": "paper mean delta", "gain %": "paper gain %",
                         "loss %": "paper loss %"}.items():  # fmt: skip
        assert rows[ours].tolist() == pytest.approx(rows[theirs].tolist(), abs=1e-4), ours


def printed(name: str, column: str) -> dict[str, float]:
    return {student_of(row): float(row[column]) for row in read_table(name)}


def test_table_1_comes_out_but_for_the_two_rows_that_the_page_names(tables: Path) -> None:
    rows = table(tables, "paper-full", "1").set_index("student")
    assert len(rows) == 8
    off = set()
    for column, head in {"delta_kl_mean": "KL mean", "delta_kl_std": "KL ±", "delta_kl_dp_mean": "KL+DP mean",
                         "delta_kl_dp_std": "KL+DP ±"}.items():  # fmt: skip
        for student, value in printed("table1_full_imagenet", column).items():
            assert rows.loc[student, f"paper {head}"] == value
            if abs(rows.loc[student, head] - value) > 0.0151:
                off.add((column, student))
    assert {student for column, student in off if column == "delta_kl_mean"} == {tag("XCiT-P16"), tag("PiT-B")}
    assert not [column for column, _ in off if column.startswith("delta_kl_dp")]
    note = (tables.parent / "index.html").read_text(encoding="utf-8")
    assert "XCiT-P16 0.13 against 0.23" in note
    assert "PiT-B 0.33 against 0.40" in note


def test_the_note_on_table_1_is_true() -> None:
    pairs = [row for row in read_table("table7_pairs") if row["objective"] == "kl"]
    means = {
        name: statistics.mean(float(row["delta_transf"]) for row in pairs if row["student"] == name)
        for name in ("XCiT-P16", "PiT-B")
    }
    assert {name: round(mean, 2) for name, mean in means.items()} == {"XCiT-P16": 0.23, "PiT-B": 0.40}


def test_table_3_comes_out(tables: Path) -> None:
    rows = table(tables, "paper-full", "3").set_index("student")
    for student, row in rows.iterrows():
        name = next(r for r in read_table("table1_full_imagenet") if student_of(r) == student)["student"]
        paper = next(r for r in read_table("table3_supervised_vs_unsupervised") if r["student"] == name)
        for kind in ("supervised", "unsupervised"):
            assert row[f"{kind} mean"] == pytest.approx(float(paper[f"{kind}_mean"]), abs=0.0101)
            assert row[f"paper {kind} mean"] == float(paper[f"{kind}_mean"])
    assert len(rows) == 8


def test_table_2_shows_the_papers_examples(tables: Path) -> None:
    rows = table(tables, "paper-full", "2").set_index(["student", "teacher"])
    for row in read_table("table2_examples"):
        found = rows.loc[(tag(row["student"]), tag(row["teacher"]))]
        assert found["delta_transf"] == float(row["delta_transf"])
        assert found["delta_acc"] == pytest.approx(float(row["delta_acc"]), abs=0.011)


def test_table_7_is_table_7(tables: Path) -> None:
    rows = table(tables, "paper-full", "7").set_index(["student", "teacher"])
    heads = {"kl": "KL", "kl_dp": "KL+DP", "kl_dp_unsupervised": "KL+DP unsup."}
    assert len(rows) == 32
    for row in read_table("table7_pairs"):
        ours = rows.loc[(tag(row["student"]), tag(row["teacher"]))]
        assert ours[heads[row["objective"]]] == ours[f"paper {heads[row['objective']]}"] == float(row["delta_transf"])
