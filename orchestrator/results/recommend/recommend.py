"""From the rows of a study to a ranking of teachers, which docs/recommend.md describes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import sqlalchemy as sa

from kt_study.datasets.index import read_listing
from kt_study.errors import DataError, UsageError
from kt_study.paths import StudyPaths
from kt_study.records import ModelRecord
from kt_study.study import StudyFile
from kt_study.tables import results
from orchestrator.planning.record import Sources
from orchestrator.results.recommend.classes import find_classes
from orchestrator.results.recommend.evaluated import EvaluatedStudent, find_student
from orchestrator.results.recommend.from_recommendation import study_settings
from orchestrator.results.recommend.hours import TransferHours, done_passes
from orchestrator.results.recommend.knowledge import Knowledge, read_knowledge
from orchestrator.results.recommend.measured import comparable, read_measured
from orchestrator.results.recommend.ranking import Ranking
from orchestrator.results.recommend.record import MEASURED, Recommendation, RequestedClass
from orchestrator.results.rows import of_study
from orchestrator.results.streaming import Reader, Select, reading


@dataclass(frozen=True, kw_only=True)
class RecommendOptions:
    """The options of `kt-study recommend`."""

    student: str
    objective: str = "kl_dp"
    classes: str = ""  # names joined by commas
    top: int = 10
    unmeasured: bool = False  # leave out teachers whose transfer was run


def recommend(url: str, study: StudyFile, sources: Sources, options: RecommendOptions) -> Recommendation:
    """Rank teachers for a student. Reads the database and the study folder; writes nothing.

    Raises:
        UsageError: an unknown study, student, class or objective, or no measurements to rank by.
        DatabaseError: the database cannot be read.
    """
    with reading(url) as reader:
        return _recommend(reader, study, sources, options)


def _recommend(reader: Reader, study: StudyFile, sources: Sources, options: RecommendOptions) -> Recommendation:
    evaluated = find_student(reader, study.study.name, options.student)
    classes = find_classes(options.classes, *_class_names(reader, evaluated, sources.paths)) if options.classes else []
    settings = study_settings(study, evaluated.dataset, options.objective, sources)
    measured, note = comparable(read_measured(reader, evaluated, options.objective), settings)
    knowledge = read_knowledge(reader, evaluated, measured, sources.paths, [one.index for one in classes])
    teachers, left_out = _candidates(evaluated, knowledge, study.transfer.teachers, classes)
    hours = TransferHours(evaluated, options.objective, settings, study.study.seed, measured, done_passes(reader))
    ranking = Ranking(evaluated, measured, classes, hours.of)
    lines = ranking.ranked(teachers, knowledge)
    kept = [one for one in lines if not (options.unmeasured and one.basis == MEASURED)]
    notes = [*evaluated.notes, note, *ranking.notes(options.objective, len(measured)), left_out, hours.note]
    return Recommendation(
        study=evaluated.study.name,
        dataset=evaluated.dataset.name,
        dataset_key=evaluated.dataset.key,
        student=evaluated.student.name,
        student_key=evaluated.student.key,
        objective=options.objective,
        classes=classes,
        forecast=ranking.forecast,
        candidates=len(lines),
        teachers=kept[: options.top],
        notes=[note for note in notes if note],
    )


def _candidates(
    evaluated: EvaluatedStudent,
    knowledge: Mapping[str, Knowledge],
    globs: Sequence[str],
    classes: Sequence[RequestedClass],
) -> tuple[list[ModelRecord], str]:
    """The study's teachers with known flips, and a note on the others. Raises UsageError if there are none."""
    teachers = [
        model
        for model in evaluated.models.values()
        if model.key != evaluated.student.key and any(fnmatchcase(model.name, glob) for glob in globs)
    ]
    known = [
        model
        for model in teachers
        if model.key in knowledge and (not classes or knowledge[model.key].classes is not None)
    ]
    flips = "flips by class" if classes else "flips"
    advice = (
        f"neither pairs nor cached predictions in the study folder give the {flips}: "
        "plan the pairs (`kt-study plan --complementarity-pairs N`), or run this in the study's folder"
    )
    if not known:
        raise UsageError(f"no teacher to recommend for {evaluated.student.name!r}: {advice}")
    missing = len(teachers) - len(known)
    return known, f"{missing} of {len(teachers)} teachers are left out: {advice}" if missing else ""


def _class_names(
    reader: Reader, evaluated: EvaluatedStudent, paths: StudyPaths
) -> tuple[dict[int, str], dict[int, int]]:
    """Names of the classes and their validation samples, by index: from the data set's index, else from result rows."""
    dataset = evaluated.dataset
    try:
        listing, names = read_listing(paths.dataset_index(dataset.key), "val", dataset.name)
    except DataError:
        rows = results["class_flips"]
        select: Select = sa.select(rows.c.class_index, rows.c.class_name, rows.c.n).distinct()
        select = of_study(select, evaluated.study, rows.c.job_id).where(rows.c.dataset == dataset.name)
        found = reader.rows(select)
        return {index: name for index, name, _ in found}, {index: n for index, _, n in found}
    counts = Counter([] if listing.labels is None else listing.labels.tolist())
    return dict(enumerate(names)), {index: counts[index] for index in range(len(names))}
