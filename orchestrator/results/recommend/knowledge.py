"""The flips between each teacher and the student, from all available sources.

The sources are used in this order: `complementarity` rows with their `class_flips`; the measurements of a transfer before
its training; the files of `all_pairs` jobs; and counts over the cached predictions in the study folder. All are counts over
the same validation samples and agree.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace

import msgspec
import sqlalchemy as sa

from kt_study.paths import StudyPaths
from kt_study.records import AllPairsSpec
from kt_study.tables import jobs, results
from orchestrator.results.recommend.cached_predictions import cached_predictions
from orchestrator.results.recommend.evaluated import EvaluatedStudent
from orchestrator.results.recommend.measured import Measured
from orchestrator.results.rows import of_study
from orchestrator.results.streaming import Reader, Select

Flips = tuple[int, int]
"""Positive and negative flips, samples."""


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """One teacher against the student. `classes`: the flips in the requested classes by index; None if unknown."""

    delta_acc: float  # points
    rho_pos: float  # %
    rho_neg: float  # %
    source: str  # pairs | transfers | all_pairs | predictions
    classes: dict[int, Flips] | None = None


def read_knowledge(
    reader: Reader,
    evaluated: EvaluatedStudent,
    measured: Iterable[Measured],
    paths: StudyPaths,
    classes: Collection[int],
) -> dict[str, Knowledge]:
    """The knowledge of each evaluated model with known flips, by key.

    Args:
        measured: transfers into the student, and others.
        paths: the study's files, where all-pairs files and cached predictions may be.
        classes: indices of the classes to count flips in.
    """
    found: dict[str, Knowledge] = {}
    for source in (
        _from_rows(reader, evaluated, classes),
        _from_transfers(evaluated, measured),
        _from_files(reader, evaluated, paths),
    ):
        for teacher, knowledge in source.items():
            found.setdefault(teacher, knowledge)
    teachers = [key for key in evaluated.models if key != evaluated.student.key]
    lacking = [key for key in teachers if key not in found or (classes and found[key].classes is None)]
    for key, counted in _from_predictions(evaluated, paths, lacking, classes):
        found[key] = replace(found[key], classes=counted.classes) if key in found else counted
    return {key: found[key] for key in teachers if key in found}


def _from_rows(reader: Reader, evaluated: EvaluatedStudent, classes: Collection[int]) -> dict[str, Knowledge]:
    """The last complementarity row of each teacher, with its flips by class."""
    rows = results["complementarity"]
    select: Select = sa.select(rows.c.teacher_key, rows.c.job_id, rows.c.delta_acc, rows.c.rho_pos, rows.c.rho_neg)
    select = (
        of_study(select, evaluated.study, rows.c.job_id).where(*_of_student(rows, evaluated)).order_by(rows.c.job_id)
    )
    flips = _class_flips(reader, evaluated, classes)
    return {
        teacher: Knowledge(
            delta_acc=delta_acc,
            rho_pos=rho_pos,
            rho_neg=rho_neg,
            source="pairs",
            classes={index: flips.get((job, index), (0, 0)) for index in classes},
        )
        for teacher, job, delta_acc, rho_pos, rho_neg in reader.rows(select)
    }


def _class_flips(reader: Reader, evaluated: EvaluatedStudent, classes: Collection[int]) -> dict[tuple[int, int], Flips]:
    """(job, class) -> flips of the pairs with this student; a class without a flip has no row."""
    if not classes:
        return {}
    pairs, rows = results["complementarity"], results["class_flips"]
    select: Select = sa.select(rows.c.job_id, rows.c.class_index, rows.c.positive_flips, rows.c.negative_flips)
    select = of_study(select.join(pairs, pairs.c.job_id == rows.c.job_id), evaluated.study, rows.c.job_id)
    select = select.where(*_of_student(pairs, evaluated), rows.c.class_index.in_(sorted(classes)))
    return {(job, index): (positive, negative) for job, index, positive, negative in reader.rows(select)}


def _of_student(rows: sa.Table, evaluated: EvaluatedStudent) -> tuple[sa.ColumnElement[bool], ...]:
    return rows.c.student_key == evaluated.student.key, rows.c.dataset_key == evaluated.dataset.key


def _from_transfers(evaluated: EvaluatedStudent, measured: Iterable[Measured]) -> dict[str, Knowledge]:
    return {
        one.teacher: Knowledge(delta_acc=one.delta_acc, rho_pos=one.rho_pos, rho_neg=one.rho_neg, source="transfers")
        for one in measured
        if one.student == evaluated.student.key
    }


def _from_files(reader: Reader, evaluated: EvaluatedStudent, paths: StudyPaths) -> dict[str, Knowledge]:
    """The student's pairs in the files of all-pairs jobs, the last job's first. Such files have no classes."""
    rows = results["all_pairs"]
    select: Select = sa.select(rows.c.file, jobs.c.spec).join(jobs, jobs.c.id == rows.c.job_id)
    found: dict[str, Knowledge] = {}
    for file, text in reader.rows(of_study(select, evaluated.study, rows.c.job_id).order_by(rows.c.job_id.desc())):
        spec = msgspec.json.decode(text, type=AllPairsSpec)
        if (
            spec.dataset == evaluated.dataset.key
            and evaluated.student.key in spec.models
            and (paths.root / file).is_file()
        ):
            keys = {evaluated.models[key].name: key for key in spec.models if key in evaluated.models}
            for teacher, knowledge in _pairs_of_file(paths, file, evaluated.student.name):
                if teacher in keys:
                    found.setdefault(keys[teacher], knowledge)
    return found


def _pairs_of_file(paths: StudyPaths, file: str, student: str) -> Iterator[tuple[str, Knowledge]]:
    import pyarrow.parquet as pq

    columns = ["teacher", "delta_acc", "rho_pos", "rho_neg"]
    table = pq.read_table(paths.root / file, columns=columns, filters=[("student", "=", student)])
    for teacher, delta_acc, rho_pos, rho_neg in zip(*(table[name].to_pylist() for name in columns), strict=True):
        yield teacher, Knowledge(delta_acc=delta_acc, rho_pos=rho_pos, rho_neg=rho_neg, source="all_pairs")


def _from_predictions(
    evaluated: EvaluatedStudent, paths: StudyPaths, teachers: Collection[str], classes: Collection[int]
) -> Iterator[tuple[str, Knowledge]]:
    """Counts over cached predictions, for those of the teachers whose predictions are in the study folder."""
    dataset = evaluated.dataset.key
    student = cached_predictions(paths, dataset, evaluated.student.key) if teachers else None
    if student is None:
        return
    n = len(student.labels)
    for key in teachers:
        teacher = cached_predictions(paths, dataset, key)
        if teacher is None or len(teacher.labels) != n:
            continue
        positive, negative = teacher.right & ~student.right, student.right & ~teacher.right
        rho_pos, rho_neg = 100.0 * int(positive.sum()) / n, 100.0 * int(negative.sum()) / n
        of_class = {index: student.labels == index for index in classes}
        flips = {index: (int((positive & of).sum()), int((negative & of).sum())) for index, of in of_class.items()}
        yield (
            key,
            Knowledge(
                delta_acc=rho_pos - rho_neg, rho_pos=rho_pos, rho_neg=rho_neg, source="predictions", classes=flips
            ),
        )
