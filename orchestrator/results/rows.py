"""The sources of the rows of each parquet table, in parts of a study."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from kt_study.errors import DiskError
from kt_study.hashing import digest
from kt_study.job_kinds import JOB_KINDS
from kt_study.parquet import ALL_PAIRS, ATTEMPTS, JOBS, MODELS, PAIRS, PLANS, arrow_schema
from kt_study.records import ComplementaritySpec, JobState, ModelRecord, TransferSpec
from kt_study.schema import RESULT_TABLES, ResultTable
from kt_study.tables import attempts, jobs, models, results, studies, study_jobs, workers
from orchestrator.results.streaming import Reader, Select, batch_of

if TYPE_CHECKING:
    import pyarrow as pa

Mark = list[int | float | str | None]
"""A summary of a part that is cheap to query; a part with an unchanged mark has unchanged rows."""

JOBS_PER_PART = 65_536
"""Jobs in a part of a table with about one row per job."""

MANY_ROWS = {"class_flips": 1_024, "transfer_epochs": 4_096}
"""Jobs in a part of the tables with many rows per job."""

_PAIR_KINDS = [kind.name for kind in JOB_KINDS.values() if {"complementarity", "transfers"} & {*kind.tables}]


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study of the database. `created_at` differs from that of a study with the same name in another database."""

    id: int
    name: str
    created_at: float


@dataclass(frozen=True)
class Source:
    """The rows of one parquet table.

    `marks` gives the parts of a study that may have rows, by number, each with its mark. `batches` gives the rows of one
    part in their fixed order, without the column `study`.
    """

    table: str
    marks: Callable[[Reader, Study], dict[int, Mark]]
    batches: Callable[[Reader, Study, int], Iterator[pa.RecordBatch]]


def read_studies(reader: Reader) -> list[Study]:
    """Every study of the database, by name."""
    rows = reader.rows(sa.select(studies.c.id, studies.c.name, studies.c.created_at).order_by(studies.c.name))
    return [Study(id=number, name=name, created_at=created_at) for number, name, created_at in rows]


def sources(folder: Path) -> list[Source]:
    """One source for each table. Rows that belong to another, such as a transfer's epochs, come before it.

    Args:
        folder: the study folder, to which the paths in rows are relative.
    """
    first = ("class_flips", "transfer_epochs")
    names = [*first, *(name for name in RESULT_TABLES if name not in (*first, ALL_PAIRS.name))]
    return [
        *(
            Source(name, partial(_result_marks, RESULT_TABLES[name]), partial(_result_batches, RESULT_TABLES[name]))
            for name in names
        ),
        Source(ALL_PAIRS.name, _all_pairs_marks, partial(_all_pairs_batches, folder)),
        Source(PLANS.name, _plan_marks, _plan_batches),
        Source(MODELS.name, _model_marks, _model_batches),
        Source(PAIRS.name, _job_marks, _pair_batches),
        Source(JOBS.name, _job_marks, _job_batches),
        Source(ATTEMPTS.name, _attempt_marks, _attempt_batches),
    ]


def body_schema(table: str) -> pa.Schema:
    """The table's Arrow schema without `study`."""
    return arrow_schema(table).remove(0)


def _result_marks(table: ResultTable, reader: Reader, study: Study) -> dict[int, Mark]:
    """Result rows are written once, with the job's state `done`."""
    rows = results[table.name]
    part = rows.c.job_id // _part_size(table)
    select = of_study(sa.select(part, sa.func.count(), sa.func.max(rows.c.id)), study, rows.c.job_id)
    return _marks(reader, select.group_by(part))


def _result_batches(table: ResultTable, reader: Reader, study: Study, part: int) -> Iterator[pa.RecordBatch]:
    rows = results[table.name]
    select = sa.select(rows.c.job_id, *(rows.c[column.name] for column in table.columns))
    select = _in_part(of_study(select, study, rows.c.job_id), rows.c.job_id, part, _part_size(table))
    select = select.order_by(study_jobs.c.job_id, *(rows.c[key] for key in table.key))
    return reader.batches(select, body_schema(table.name))


def _part_size(table: ResultTable) -> int:
    return MANY_ROWS.get(table.name, JOBS_PER_PART)


def _job_marks(reader: Reader, study: Study) -> dict[int, Mark]:
    """Number of jobs, and values that change with any state: done jobs, claims, and the time of the last change."""
    part = jobs.c.id // JOBS_PER_PART
    done = sa.case((jobs.c.state == JobState.DONE.value, 1), else_=0)
    sums = [sa.cast(sa.func.sum(column), sa.BigInteger) for column in (done, jobs.c.fence)]
    counted = (sa.func.count(), *sums, sa.func.max(jobs.c.changed_at))
    return _marks(reader, of_study(sa.select(part, *counted), study, jobs.c.id).group_by(part))


def _job_batches(reader: Reader, study: Study, part: int) -> Iterator[pa.RecordBatch]:
    select = sa.select(jobs.c.id, *(jobs.c[column.name] for column in JOBS.columns))
    select = _in_part(of_study(select, study, jobs.c.id), jobs.c.id, part, JOBS_PER_PART)
    return reader.batches(select.order_by(study_jobs.c.job_id), body_schema(JOBS.name))


def _pair_batches(reader: Reader, study: Study, part: int) -> Iterator[pa.RecordBatch]:
    """Planned pairs, read from the specifications of their jobs."""
    import pyarrow as pa

    names = dict(reader.rows(sa.select(models.c.key, models.c.name)))
    select: Select = sa.select(jobs.c.id, jobs.c.kind, jobs.c.spec, jobs.c.state)
    select = _in_part(of_study(select, study, jobs.c.id), jobs.c.id, part, JOBS_PER_PART)
    select = select.where(jobs.c.kind.in_(_PAIR_KINDS)).order_by(study_jobs.c.job_id)
    text = pa.string()
    schema = pa.schema([("job_id", pa.int64()), ("kind", text), ("spec", text), ("state", text)])
    for batch in reader.batches(select, schema):
        planned = zip(*(column.to_pylist() for column in batch.columns), strict=True)
        pairs = [_pair_row(job_id, kind, spec, state, names) for job_id, kind, spec, state in planned]
        yield batch_of(pairs, body_schema(PAIRS.name))


def _attempt_marks(reader: Reader, study: Study) -> dict[int, Mark]:
    part = attempts.c.job_id // JOBS_PER_PART
    ended, started = attempts.c.ended_at, attempts.c.started_at
    counted = (sa.func.count(), sa.func.count(ended), sa.func.max(started), sa.func.max(ended))
    return _marks(reader, of_study(sa.select(part, *counted), study, attempts.c.job_id).group_by(part))


def _attempt_batches(reader: Reader, study: Study, part: int) -> Iterator[pa.RecordBatch]:
    other_tables = {
        "attempt_id": attempts.c.id,
        "kind": jobs.c.kind,
        "host": workers.c.host,
        "device": workers.c.device,
    }
    columns = [other_tables.get(c.name, attempts.c.get(c.name)) for c in ATTEMPTS.columns]
    select = of_study(sa.select(attempts.c.job_id, *columns), study, attempts.c.job_id)
    select = select.join(jobs, jobs.c.id == attempts.c.job_id)
    select = select.join(workers, workers.c.id == attempts.c.worker, isouter=True)
    select = _in_part(select, attempts.c.job_id, part, JOBS_PER_PART).order_by(study_jobs.c.job_id, attempts.c.id)
    return reader.batches(select, body_schema(ATTEMPTS.name))


def _plan_marks(reader: Reader, study: Study) -> dict[int, Mark]:
    commands = _commands(reader, study)
    return {0: [digest(commands)]} if commands else {}


def _plan_batches(reader: Reader, study: Study, part: int) -> Iterator[pa.RecordBatch]:  # noqa: ARG001
    yield batch_of([(command,) for command in _commands(reader, study)], body_schema(PLANS.name))


def _commands(reader: Reader, study: Study) -> list[str]:
    """The recorded commands that planned the study."""
    ((spec,),) = reader.rows(sa.select(studies.c.spec).where(studies.c.id == study.id))
    commands: list[str] = msgspec.json.decode(spec).get("commands", [])
    return commands


def _model_marks(reader: Reader, study: Study) -> dict[int, Mark]:
    """One part, since models are few."""
    return {0: [digest(_model_rows(reader, study))]}


def _model_batches(reader: Reader, study: Study, part: int) -> Iterator[pa.RecordBatch]:  # noqa: ARG001
    import pyarrow as pa

    if rows := _model_rows(reader, study):
        yield pa.RecordBatch.from_pylist(rows, body_schema(MODELS.name))


def _all_pairs_marks(reader: Reader, study: Study) -> dict[int, Mark]:
    """A part per file of an `all_pairs` job."""
    files = results[ALL_PAIRS.name]
    select: Select = sa.select(files.c.job_id, files.c.file, files.c.n_pairs, jobs.c.fence)
    return _marks(reader, of_study(select.join(jobs, jobs.c.id == files.c.job_id), study, files.c.job_id))


def _all_pairs_batches(folder: Path, reader: Reader, study: Study, part: int) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = results[ALL_PAIRS.name]
    select = of_study(sa.select(files.c.file), study, files.c.job_id).where(files.c.job_id == part)
    (name,) = reader.rows(select)[0]
    path = folder / name
    if not path.is_file():
        raise DiskError(f"{path}: file missing, with the pairs of job {part}; collect in the study folder that has it")
    schema = body_schema(ALL_PAIRS.name)
    with pq.ParquetFile(path) as stored:
        for batch in stored.iter_batches():
            there = dict(zip(batch.schema.names, batch.columns, strict=True))
            there["job_id"] = pa.repeat(part, batch.num_rows)
            columns = [
                there[f.name].cast(f.type) if f.name in there else pa.nulls(batch.num_rows, f.type) for f in schema
            ]
            yield pa.record_batch(columns, schema=schema)


def of_study(select: Select, study: Study, job_id: sa.ColumnElement[Any]) -> Select:
    """Keep the rows whose job the study has."""
    return select.join(study_jobs, study_jobs.c.job_id == job_id).where(study_jobs.c.study_id == study.id)


def _in_part(select: Select, job_id: sa.ColumnElement[Any], part: int, size: int) -> Select:
    return select.where(job_id >= part * size, job_id < (part + 1) * size)


def _marks(reader: Reader, select: Select) -> dict[int, Mark]:
    return {int(part): list(mark) for part, *mark in reader.rows(select)}


def _pair_row(job_id: int, kind: str, spec: str, state: str, names: Mapping[str, str]) -> tuple[Any, ...]:
    """A row of `pairs`, in the order of its columns. A soup is a transfer from several teachers."""
    if kind == "complementarity":
        pair = msgspec.json.decode(spec, type=ComplementaritySpec)
        return (job_id, kind, *_names(names, (pair.teacher,), pair.student), None, None, None, pair.seed, state)
    transfer = msgspec.json.decode(spec, type=TransferSpec)
    how = (transfer.objective, transfer.settings.multi_teacher, transfer.settings.reading)
    return (job_id, "transfer", *_names(names, transfer.teachers, transfer.student), *how, transfer.seed, state)


def _names(names: Mapping[str, str], teachers: tuple[str, ...], student: str) -> tuple[str, str, str, str]:
    """Teacher and student, and their keys, as in result rows."""
    teacher = "+".join(names.get(key, key) for key in teachers)
    return teacher, names.get(student, student), "+".join(teachers), student


def _model_rows(reader: Reader, study: Study) -> list[dict[str, Any]]:
    """A row per model and data set on which it was evaluated; one without a data set if there is none yet."""
    keys = _model_keys(reader, study)
    measured = _evaluations(reader, study)
    rows = []
    for key, text in reader.rows(sa.select(models.c.key, models.c.record).order_by(models.c.name, models.c.key)):
        if key in keys:
            record = _record_columns(msgspec.json.decode(text, type=ModelRecord))
            rows += [record | evaluation for evaluation in measured.get(key, [{}])]
    return rows


def _model_keys(reader: Reader, study: Study) -> set[str]:
    """Keys of the models that the study's jobs name."""
    specs = reader.rows(of_study(sa.select(jobs.c.spec), study, jobs.c.id).where(jobs.c.kind.not_in(_PAIR_KINDS)))
    named = (msgspec.json.decode(spec) for (spec,) in specs)
    keys = set(itertools.chain.from_iterable([spec.get("model"), *spec.get("models", ())] for spec in named))
    for role in (jobs.c.teacher, jobs.c.student):
        keys |= {key for (key,) in reader.rows(of_study(sa.select(role).distinct(), study, jobs.c.id))}
    return keys


def _evaluations(reader: Reader, study: Study) -> dict[str, list[dict[str, Any]]]:
    """Model key -> its evaluations on the validation split, one per data set."""
    rows = results["evaluations"]
    names = ("dataset", "params", "n", "acc", "loss", "prediction_entropy", "images_per_s", "device")
    select = of_study(sa.select(rows.c.model_key, *(rows.c[name] for name in names)), study, rows.c.job_id)
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for key, *values in reader.rows(select.where(rows.c.split == "val").order_by(rows.c.dataset, rows.c.job_id)):
        evaluation = dict(zip(names, values, strict=True))
        if evaluation["params"] is None:  # keep that of the model's record
            del evaluation["params"]
        found.setdefault(key, {}).setdefault(values[0], evaluation)
    return {key: list(evaluations.values()) for key, evaluations in found.items()}


def _record_columns(record: ModelRecord) -> dict[str, Any]:
    fields = [column.name for column in MODELS.columns if column.name in ModelRecord.__struct_fields__]
    return {name: getattr(record, name) or None for name in fields} | {
        "model": record.name,
        "model_key": record.key,
        "input_size": "x".join(map(str, record.input_size)),
    }
