"""Columns that several tables share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from kt_study.published import read_table
from orchestrator.results.report.material import Material
from orchestrator.results.report.plot import OBJECTIVES
from orchestrator.results.report.published import student_of


def per_student(material: Material, objective: str, columns: Mapping[str, str]) -> pd.DataFrame:
    """Mean and population standard deviation over the teachers of each student, for one objective.

    Args:
        material: the study.
        objective: our name for it.
        columns: of the transfers -> how their heads begin; each becomes `<head> mean` and `<head> ±`.
    """
    rows = material.single[material.single["objective"] == OBJECTIVES[objective]]
    found = {}
    for student, group in rows.groupby("student", sort=True):
        values: dict[str, float] = {"teachers": len(group)}
        for column, head in columns.items():
            values |= {f"{head} mean": group[column].mean(), f"{head} ±": group[column].std(ddof=0)}
        found[student] = values
    return pd.DataFrame.from_dict(found, orient="index").rename_axis("student")


def student_facts(material: Material, students: Sequence[str]) -> pd.DataFrame:
    """Family, accuracy before and parameters of each student, in this order."""
    rows = material.single.drop_duplicates("student").set_index("student").reindex(list(students))
    facts = rows[["family", "acc_before", "student_params"]]
    return facts.rename(columns={"acc_before": "acc %", "student_params": "params M"}).rename_axis("student")


def printed(table: str, columns: Mapping[str, str]) -> pd.DataFrame:
    """A published table by timm tag: `columns` of the file -> heads."""
    rows = {student_of(row): {head: float(row[name]) for name, head in columns.items()} for row in _with_acc(table)}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("student")


def _with_acc(table: str) -> list[dict[str, str]]:
    """Rows of a printed table; those that print no accuracy get the one of Table 1's row of the same name."""
    known = {row["student"]: row["acc"] for row in read_table("table1_full_imagenet")}
    return [{"acc": known.get(row["student"], ""), **row} for row in read_table(table)]


def beside(ours: pd.DataFrame, theirs: pd.DataFrame) -> pd.DataFrame:
    """Ours with the paper's columns where any of our students is among the paper's."""
    there = theirs[theirs.index.isin(ours.index)]
    return ours if there.empty else ours.join(there)
