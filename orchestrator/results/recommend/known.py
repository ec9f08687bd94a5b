"""The evaluated models of a study, their data set, and the student among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
import sqlalchemy as sa

from kt_study.errors import UsageError
from kt_study.multi_teacher import TRANSFERRED
from kt_study.nearest import nearest
from kt_study.records import DatasetRecord, ModelRecord
from kt_study.tables import datasets, models, results, study_jobs
from orchestrator.results.rows import Study, read_studies
from orchestrator.results.streaming import Reader, Select


@dataclass(frozen=True, kw_only=True)
class Known:
    """A student, the data set it was measured on, and every model that was evaluated there, by key."""

    study: Study
    dataset: DatasetRecord
    student: ModelRecord
    models: dict[str, ModelRecord]
    notes: list[str] = field(default_factory=list)

    def of_study(self, select: Select, job_id: sa.ColumnElement[int]) -> Select:
        """Keep the rows whose job the study has."""
        return select.join(study_jobs, study_jobs.c.job_id == job_id).where(study_jobs.c.study_id == self.study.id)


def find_known(reader: Reader, study_name: str, student: str) -> Known:
    """Look the student up among the study's evaluated models, on the data set that it was evaluated on last.

    Of several models of one name, which is what other weights under an old name make, the last one evaluated counts.

    Raises:
        UsageError: no such study, nothing evaluated yet, an unknown student, or a data set without labels.
    """
    study = _study(reader, study_name)
    evaluated = _evaluated(reader, study)
    records = _records(reader, {key for key, _ in evaluated})
    mine = {(dataset, key): job for (key, dataset), job in evaluated.items() if _is(records, key, student)}
    if not mine:
        raise UsageError(_unknown(reader, study, student, {record.name for record in records.values()}))
    dataset_key, student_key = max(mine, key=lambda one: mine[one])
    here = {key: job for (key, dataset), job in evaluated.items() if dataset == dataset_key and key in records}
    newest: dict[str, str] = {}
    for key in sorted(here, key=lambda key: here[key]):
        newest[records[key].name] = key
    dataset = _dataset(reader, dataset_key)
    others = len({dataset for dataset, _ in mine}) - 1
    return Known(
        study=study,
        dataset=dataset,
        student=records[student_key],
        models={key: records[key] for key in sorted(newest.values())},
        notes=[f"{student} was evaluated on {others + 1} data sets; the last one counts"] if others else [],
    )


def _study(reader: Reader, name: str) -> Study:
    found = {study.name: study for study in read_studies(reader)}
    if name not in found:
        hint = nearest(name, found) or "; `kt-study plan` adds it"
        raise UsageError(f"no study {name!r} in this database{hint}")
    return found[name]


def _evaluated(reader: Reader, study: Study) -> dict[tuple[str, str], int]:
    """(model key, data set key) -> last job that evaluated it."""
    rows = results["evaluations"]
    select: Select = sa.select(rows.c.model_key, rows.c.dataset_key, sa.func.max(rows.c.job_id))
    select = select.join(study_jobs, study_jobs.c.job_id == rows.c.job_id)
    select = select.where(study_jobs.c.study_id == study.id, rows.c.split == "val")
    found = reader.rows(select.group_by(rows.c.model_key, rows.c.dataset_key))
    return {(model, dataset): job for model, dataset, job in found}


def _records(reader: Reader, keys: set[str]) -> dict[str, ModelRecord]:
    """Models by key, but for the students in between the stages of a sequence."""
    rows = reader.rows(sa.select(models.c.record).where(models.c.key.in_(sorted(keys))))
    records = [msgspec.json.decode(text, type=ModelRecord) for (text,) in rows]
    return {record.key: record for record in records if not record.weights.startswith(TRANSFERRED)}


def _is(records: Mapping[str, ModelRecord], key: str, name: str) -> bool:
    return key in records and records[key].name == name


def _unknown(reader: Reader, study: Study, student: str, evaluated: set[str]) -> str:
    if not evaluated:
        return f"study {study.name!r} has evaluated no model yet; kt-study launch, then ask again"
    planned = {name for (name,) in reader.rows(sa.select(models.c.name))}
    if student in planned:
        return (
            f"student {student!r} has not been evaluated in study {study.name!r} yet; kt-study launch, then ask again"
        )
    hint = nearest(student, sorted(evaluated)) or "; `kt-study query models` lists them"
    return f"no model {student!r} in study {study.name!r}{hint}"


def _dataset(reader: Reader, key: str) -> DatasetRecord:
    (text,) = reader.rows(sa.select(datasets.c.record).where(datasets.c.key == key))[0]
    dataset = msgspec.json.decode(text, type=DatasetRecord)
    if not dataset.has_labels("val"):
        raise UsageError(f"data set {dataset.name!r} has no labels, so nothing says which teacher is right")
    return dataset
