"""Parquet that holds the paper's printed and released figures as if a study had measured them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kt_study.parquet import arrow_schema
from kt_study.published import read_table
from kt_study.words import Settings
from orchestrator.results.report.published import old_tag, tag

FAMILIES = {"Trafo": "transformer", "CNN": "cnn", "MLP": "mlp"}
TEACHERS = 20


def write_table(out: Path, table: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Rows as `collect` lays them out; columns that a row does not have are missing values."""
    rows = list(rows)
    for study in dict.fromkeys(row["study"] for row in rows):
        folder = out / table / study
        folder.mkdir(parents=True, exist_ok=True)
        schema = arrow_schema(table)
        filled = [{name: row.get(name) for name in schema.names} for row in rows if row["study"] == study]
        pq.write_table(pa.Table.from_pylist(filled, schema), folder / "part-00000.parquet")


def transfer(
    study: str, job: int, student: str, teacher: str, objective: str, delta: float, **more: Any
) -> dict[str, Any]:
    settings = {name: getattr(Settings(), name) for name in Settings.__struct_fields__}
    return {
        **settings, "study": study, "job_id": job, "dataset": "imagenet", "student": student, "student_key": student,
        "teacher": teacher, "teacher_key": teacher, "objective": objective, "delta_transf": delta, "seed": 0, **more,
    }  # fmt: skip


def models(study: str) -> list[dict[str, Any]]:
    """The models of Tables 5 and 6, by timm tag."""
    rows = {
        row["timm_name"]: {
            "study": study, "dataset": "imagenet", "model": row["timm_name"], "model_key": row["timm_name"],
            "family": FAMILIES[row["type"]], "params": float(row["params_m"]), "acc": float(row["acc"]),
        }
        for table in ("table6_models", "table5_models") for row in read_table(table)
    }  # fmt: skip
    return list(rows.values())


def write_pairs(out: Path, study: str = "paper-full") -> None:
    """Table 7: 32 pairs, three objectives."""
    accuracy = {row["model"]: row["acc"] for row in models(study)}
    rows = []
    for job, row in enumerate(read_table("table7_pairs")):
        student, teacher = tag(row["student"]), tag(row["teacher"])
        more = {"acc_teacher": accuracy[teacher], "acc_before": accuracy[student]}
        rows.append(transfer(study, job, student, teacher, row["objective"], float(row["delta_transf"]), **more))
    write_table(out, "transfers", rows)
    write_table(out, "models", models(study))


def write_students(out: Path, study: str = "paper-10pct") -> None:
    """students_20x7.csv: for each student 20 deltas that have its success rate and mean; gain and loss as released."""
    rows = []
    for row in read_table("students_20x7"):
        winners = round(TEACHERS * float(row["success_rate"]) / 100)
        for at, delta in enumerate(deltas(winners, float(row["delta_mean"]))):
            more = {"knowledge_gain": float(row["gain_mean"]), "knowledge_loss": float(row["loss_mean"])}
            student = old_tag(row["student"])
            rows.append(transfer(study, len(rows), student, f"teacher {at}", row["objective"], delta, **more))
    write_table(out, "transfers", rows)
    write_table(out, "models", models(study))


def deltas(winners: int, mean: float) -> list[float]:
    """20 numbers with this mean, of which this many are above zero."""
    losers = TEACHERS - winners
    total = TEACHERS * mean
    if not winners or not losers:
        return [mean] * TEACHERS
    above = max(total / winners, 0.01)
    return [above] * winners + [(total - winners * above) / losers] * losers
