"""What each teacher knows that the student does not, from all available sources.

In this order: `complementarity` rows with their `class_flips`; what a transfer measured before it began; the files of
`all_pairs` jobs; and, for what is still missing, counts over the cached predictions of the study folder. All are counts
over the same validation samples and agree.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace

import msgspec
import sqlalchemy as sa

from kt_study.paths import StudyPaths
from kt_study.records import AllPairsSpec
from kt_study.tables import jobs, results
from orchestrator.results.recommend.answers import CachedAnswers
from orchestrator.results.recommend.known import Known
from orchestrator.results.recommend.measured import Measured
from orchestrator.results.streaming import Reader, Select

Flips = tuple[int, int]
"""Positive and negative flips, samples."""


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """One teacher against the student. `classes` holds the flips in the classes asked for, None where not known."""

    delta_acc: float  # points
    rho_pos: float  # %
    rho_neg: float  # %
    source: str  # pairs | transfers | all_pairs | predictions
    classes: dict[int, Flips] | None = None


def read_knowledge(
    reader: Reader, known: Known, measured: Iterable[Measured], paths: StudyPaths, classes: Collection[int]
) -> dict[str, Knowledge]:
    """What is known of each evaluated model as a teacher of the student, by key.

    Args:
        measured: transfers into the student, and others.
        paths: the study's files: all-pairs files and cached predictions, where they are here.
        classes: indices of the classes to count flips in.
    """
    found: dict[str, Knowledge] = {}
    for source in (
        _from_rows(reader, known, classes),
        _from_transfers(known, measured),
        _from_files(reader, known, paths),
    ):
        for teacher, knowledge in source.items():
            found.setdefault(teacher, knowledge)
    wanted = [key for key in known.models if key != known.student.key]
    lacking = [key for key in wanted if key not in found or (classes and found[key].classes is None)]
    for key, counted in _from_predictions(known, paths, lacking, classes):
        found[key] = replace(found[key], classes=counted.classes) if key in found else counted
    return {key: found[key] for key in wanted if key in found}


def _from_rows(reader: Reader, known: Known, classes: Collection[int]) -> dict[str, Knowledge]:
    """The last complementarity row of each teacher, with its flips by class."""
    rows = results["complementarity"]
    select: Select = sa.select(rows.c.teacher_key, rows.c.job_id, rows.c.delta_acc, rows.c.rho_pos, rows.c.rho_neg)
    select = known.of_study(select, rows.c.job_id).where(*_is_students(rows, known)).order_by(rows.c.job_id)
    flips = _class_flips(reader, known, classes)
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


def _class_flips(reader: Reader, known: Known, classes: Collection[int]) -> dict[tuple[int, int], Flips]:
    """(job, class) -> flips of the pairs with this student; a class without a flip has no row."""
    if not classes:
        return {}
    pairs, rows = results["complementarity"], results["class_flips"]
    select: Select = sa.select(rows.c.job_id, rows.c.class_index, rows.c.positive_flips, rows.c.negative_flips)
    select = known.of_study(select.join(pairs, pairs.c.job_id == rows.c.job_id), rows.c.job_id)
    select = select.where(*_is_students(pairs, known), rows.c.class_index.in_(sorted(classes)))
    return {(job, index): (positive, negative) for job, index, positive, negative in reader.rows(select)}


def _is_students(rows: sa.Table, known: Known) -> tuple[sa.ColumnElement[bool], ...]:
    return rows.c.student_key == known.student.key, rows.c.dataset_key == known.dataset.key


def _from_transfers(known: Known, measured: Iterable[Measured]) -> dict[str, Knowledge]:
    return {
        one.teacher: Knowledge(delta_acc=one.delta_acc, rho_pos=one.rho_pos, rho_neg=one.rho_neg, source="transfers")
        for one in measured
        if one.student == known.student.key
    }


def _from_files(reader: Reader, known: Known, paths: StudyPaths) -> dict[str, Knowledge]:
    """The student's pairs in the files of all-pairs jobs, the last job's first. Such files know no classes."""
    rows = results["all_pairs"]
    select: Select = sa.select(rows.c.file, jobs.c.spec).join(jobs, jobs.c.id == rows.c.job_id)
    found: dict[str, Knowledge] = {}
    for file, text in reader.rows(known.of_study(select, rows.c.job_id).order_by(rows.c.job_id.desc())):
        spec = msgspec.json.decode(text, type=AllPairsSpec)
        if spec.dataset == known.dataset.key and known.student.key in spec.models and (paths.root / file).is_file():
            keys = {known.models[key].name: key for key in spec.models if key in known.models}
            for teacher, knowledge in _pairs_of_file(paths, file, known.student.name):
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
    known: Known, paths: StudyPaths, teachers: Collection[str], classes: Collection[int]
) -> Iterator[tuple[str, Knowledge]]:
    """Counts over cached predictions, for those of the teachers whose predictions are in the study folder."""
    answers = CachedAnswers(paths, known.dataset.key)
    student = answers.of(known.student.key) if teachers else None
    if student is None:
        return
    for key in teachers:
        teacher = answers.of(key)
        if teacher is not None and teacher.n == student.n:
            gained, lost = teacher.right & ~student.right, student.right & ~teacher.right
            positive, negative = 100.0 * int(gained.sum()) / student.n, 100.0 * int(lost.sum()) / student.n
            yield (
                key,
                Knowledge(
                    delta_acc=positive - negative,
                    rho_pos=positive,
                    rho_neg=negative,
                    source="predictions",
                    classes={
                        index: (
                            int((student.labels[gained] == index).sum()),
                            int((student.labels[lost] == index).sum()),
                        )
                        for index in classes
                    },
                ),
            )
