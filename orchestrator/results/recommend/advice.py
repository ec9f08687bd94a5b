"""From the rows of a study to one ranked list of teachers. docs/recommend.md describes the ranking."""

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
from orchestrator.results.recommend.from_recommendation import study_settings
from orchestrator.results.recommend.hours import TransferHours, done_passes
from orchestrator.results.recommend.knowledge import Knowledge, read_knowledge
from orchestrator.results.recommend.known import Known, find_known
from orchestrator.results.recommend.measured import comparable, read_measured
from orchestrator.results.recommend.ranking import Ranking
from orchestrator.results.recommend.record import MEASURED, AskedClass, Recommendation
from orchestrator.results.streaming import Reader, Select, reading


@dataclass(frozen=True, kw_only=True)
class Question:
    """What `kt-study recommend` is asked."""

    student: str
    objective: str = "kl_dp"
    classes: str = ""  # names joined by commas
    top: int = 10
    unmeasured: bool = False  # leave out teachers whose transfer was run


def recommend(url: str, study: StudyFile, sources: Sources, question: Question) -> Recommendation:
    """Rank teachers for a student. Reads the database and the study folder; writes nothing.

    Raises:
        UsageError: an unknown study, student, class or objective, or nothing measured to go by.
        DatabaseError: the database cannot be read.
    """
    with reading(url) as reader:
        return _recommend(reader, study, sources, question)


def _recommend(reader: Reader, study: StudyFile, sources: Sources, question: Question) -> Recommendation:
    known = find_known(reader, study.study.name, question.student)
    asked = _asked(reader, known, sources.paths, question.classes) if question.classes else []
    settings = study_settings(study, known.dataset, question.objective, sources)
    measured, note = comparable(read_measured(reader, known, question.objective), settings)
    knowledge = read_knowledge(reader, known, measured, sources.paths, [one.index for one in asked])
    teachers, left_out = _candidates(known, knowledge, study.transfer.teachers, asked)
    hours = TransferHours(
        known.dataset,
        known.student,
        question.objective,
        settings,
        measured=measured,
        done=done_passes(reader),
        seed=study.study.seed,
    )
    ranking = Ranking(known.student, known.models, measured, asked, hours.of)
    lines = ranking.ranked(teachers, knowledge)
    kept = [one for one in lines if not (question.unmeasured and one.basis == MEASURED)]
    notes = [*known.notes, note, *ranking.notes(question.objective, len(measured)), left_out, hours.note]
    return Recommendation(
        study=known.study.name,
        dataset=known.dataset.name,
        dataset_key=known.dataset.key,
        student=known.student.name,
        student_key=known.student.key,
        objective=question.objective,
        classes=asked,
        forecast=ranking.forecast,
        candidates=len(lines),
        teachers=kept[: question.top],
        notes=[note for note in notes if note],
    )


def _candidates(
    known: Known, knowledge: Mapping[str, Knowledge], globs: Sequence[str], asked: Sequence[AskedClass]
) -> tuple[list[ModelRecord], str]:
    """The study's teachers of which enough is known, and a note on the others. Raises UsageError where there are none."""
    wanted = [
        model
        for model in known.models.values()
        if model.key != known.student.key and any(fnmatchcase(model.name, glob) for glob in globs)
    ]
    enough = [
        model for model in wanted if model.key in knowledge and (not asked or knowledge[model.key].classes is not None)
    ]
    what = "flips by class" if asked else "flips"
    advice = (
        f"neither pairs nor cached predictions in the study folder give the {what}: "
        "plan the pairs (`kt-study plan --complementarity-pairs N`), or ask in the study's folder"
    )
    if not enough:
        raise UsageError(f"no teacher to recommend for {known.student.name!r}: {advice}")
    missing = len(wanted) - len(enough)
    return enough, f"{missing} of {len(wanted)} teachers are left out: {advice}" if missing else ""


def _asked(reader: Reader, known: Known, paths: StudyPaths, classes: str) -> list[AskedClass]:
    names, sizes = _class_names(reader, known, paths)
    return find_classes(classes, names, sizes)


def _class_names(reader: Reader, known: Known, paths: StudyPaths) -> tuple[dict[int, str], dict[int, int]]:
    """Names of the classes and their validation samples, by index: from the data set's index, else from result rows."""
    try:
        listing, names = read_listing(paths.dataset_index(known.dataset.key), "val", known.dataset.name)
    except DataError:
        rows = results["class_flips"]
        select: Select = sa.select(rows.c.class_index, rows.c.class_name, rows.c.n).distinct()
        select = known.of_study(select, rows.c.job_id).where(rows.c.dataset == known.dataset.name)
        found = reader.rows(select)
        return {index: name for index, name, _ in found}, {index: n for index, _, n in found}
    counts = Counter([] if listing.labels is None else listing.labels.tolist())
    return dict(enumerate(names)), {index: counts[index] for index in range(len(names))}
