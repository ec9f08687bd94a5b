"""The evaluated models of a study, their data set, and the student among them."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import sqlalchemy as sa

from kt_study.errors import UsageError
from kt_study.multi_teacher import TRANSFERRED
from kt_study.nearest import nearest
from kt_study.records import DatasetRecord, ModelRecord
from kt_study.tables import datasets, models, results
from orchestrator.results.rows import Study, of_study, read_studies
from orchestrator.results.streaming import Reader, Select


@dataclass(frozen=True, kw_only=True)
class EvaluatedStudent:
    """A student, the data set on which it was measured, and every model that was evaluated there, by key."""

    study: Study
    dataset: DatasetRecord
    student: ModelRecord
    models: dict[str, ModelRecord]
    notes: list[str] = field(default_factory=list)


def find_student(reader: Reader, study_name: str, student: str) -> EvaluatedStudent:
    """Look up the student among the study's evaluated models, on the data set of its last evaluation.

    If several models have one name, since its weights were replaced, the last one evaluated counts.

    Raises:
        UsageError: no such study, nothing evaluated yet, an unknown student, or a data set without labels.
    """
    study = _study(reader, study_name)
    last_jobs = _last_evaluations(reader, study)
    records = _records(reader, {key for key, _ in last_jobs})
    of_student = {
        (dataset, key): job
        for (key, dataset), job in last_jobs.items()
        if key in records and records[key].name == student
    }
    if not of_student:
        raise UsageError(_not_evaluated(reader, study, student, {record.name for record in records.values()}))
    dataset_key, student_key = max(of_student, key=lambda pair: of_student[pair])
    on_dataset = {key: job for (key, dataset), job in last_jobs.items() if dataset == dataset_key and key in records}
    newest = {records[key].name: key for key in sorted(on_dataset, key=lambda key: on_dataset[key])}
    n_datasets = len({dataset for dataset, _ in of_student})
    return EvaluatedStudent(
        study=study,
        dataset=_dataset(reader, dataset_key),
        student=records[student_key],
        models={key: records[key] for key in sorted(newest.values())},
        notes=[f"{student} was evaluated on {n_datasets} data sets; the last one counts"] if n_datasets > 1 else [],
    )


def _study(reader: Reader, name: str) -> Study:
    found = {study.name: study for study in read_studies(reader)}
    if name not in found:
        hint = nearest(name, found) or "; `kt-study plan` adds it"
        raise UsageError(f"no study {name!r} in this database{hint}")
    return found[name]


def _last_evaluations(reader: Reader, study: Study) -> dict[tuple[str, str], int]:
    """(model key, data set key) -> last job that evaluated it."""
    rows = results["evaluations"]
    select: Select = sa.select(rows.c.model_key, rows.c.dataset_key, sa.func.max(rows.c.job_id))
    select = of_study(select, study, rows.c.job_id).where(rows.c.split == "val")
    found = reader.rows(select.group_by(rows.c.model_key, rows.c.dataset_key))
    return {(model, dataset): job for model, dataset, job in found}


def _records(reader: Reader, keys: set[str]) -> dict[str, ModelRecord]:
    """Models by key, without the students between the stages of a sequence."""
    rows = reader.rows(sa.select(models.c.record).where(models.c.key.in_(sorted(keys))))
    records = [msgspec.json.decode(text, type=ModelRecord) for (text,) in rows]
    return {record.key: record for record in records if not record.weights.startswith(TRANSFERRED)}


def _not_evaluated(reader: Reader, study: Study, student: str, evaluated: set[str]) -> str:
    if not evaluated:
        return f"no model of study {study.name!r} has been evaluated yet; run `kt-study launch` first"
    planned = {name for (name,) in reader.rows(sa.select(models.c.name))}
    if student in planned:
        return f"student {student!r} has not been evaluated in study {study.name!r} yet; run `kt-study launch` first"
    hint = nearest(student, sorted(evaluated)) or "; `kt-study query models` lists them"
    return f"no model {student!r} in study {study.name!r}{hint}"


def _dataset(reader: Reader, key: str) -> DatasetRecord:
    (text,) = reader.rows(sa.select(datasets.c.record).where(datasets.c.key == key))[0]
    dataset = msgspec.json.decode(text, type=DatasetRecord)
    if not dataset.has_labels("val"):
        raise UsageError(f"data set {dataset.name!r} has no labels, which teachers are ranked by")
    return dataset
