"""A plan of the transfers of a recommendation.

Models and data set are read from the database; nothing is sampled or scanned.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kt_study.errors import DataError, UsageError
from kt_study.multi_teacher import transfer_digest
from kt_study.objectives import settings_for
from kt_study.records import DatasetRecord, TransferSpec
from kt_study.settings import Settings
from kt_study.study import StudyFile
from orchestrator.planning.checks import check_can_transfer
from orchestrator.planning.layout import Layout
from orchestrator.planning.record import Plan, Sources
from orchestrator.planning.transfers import common_settings
from orchestrator.results.recommend.record import read_recommendation

if TYPE_CHECKING:
    from kt_study.store import JobStore


def recommended_plan(path: Path, study: StudyFile, sources: Sources, store: JobStore) -> Plan:
    """Lay out a transfer from each teacher of the recommendation in `path`, with the study file's settings.

    Transfers that were measured with these settings are left out.

    Raises:
        UsageError: no such file, one of another study, or models that this database does not have.
        DataError: the data set's index is not in the study folder.
    """
    recommendation = read_recommendation(path)
    if recommendation.study != study.study.name:
        raise UsageError(
            f"{path} is for study {recommendation.study!r}, not {study.study.name!r}; make one with `kt-study recommend --student NAME`"
        )
    dataset = store.dataset(recommendation.dataset_key)
    _check(dataset, sources)
    student = store.model(recommendation.student_key)
    teachers = [store.model(one.teacher_key) for one in recommendation.teachers]
    settings = study_settings(study, dataset, recommendation.objective, sources)
    runs = [
        TransferSpec(
            dataset=dataset.key,
            student=student.key,
            teachers=(teacher.key,),
            objective=recommendation.objective,
            settings=settings,
            seed=study.study.seed,
        )
        for teacher in teachers
    ]
    measured = {one.job for one in recommendation.teachers}
    plan = Plan(
        name=study.study.name,
        settings=store.study(study.study.name),
        datasets=[dataset],
        models=[student, *teachers],
        runs=[run for run in runs if transfer_digest(run) not in measured],
    )
    if left_out := len(runs) - len(plan.runs):
        plan.notes.append(f"{left_out} of {len(runs)} recommended pairs are measured already and left out")
    layout = Layout(sources.recorded, sources.acc_after)
    layout.add_records(plan.datasets, plan.models)
    layout.transfers(plan.runs)
    plan.jobs, plan.others = layout.jobs, list(layout.others.values())
    return plan


def study_settings(study: StudyFile, dataset: DatasetRecord, objective: str, sources: Sources) -> Settings:
    """The settings of the study file for a transfer with this objective. Raises UsageError if they conflict."""
    return settings_for(objective, common_settings(study.transfer, study.dataset, dataset, sources))


def _check(dataset: DatasetRecord, sources: Sources) -> None:
    if obstacle := check_can_transfer(dataset):
        raise UsageError(f"no transfers can be planned: {obstacle}")
    index = sources.paths.dataset_index(dataset.key)
    if not index.exists():
        raise DataError(f"{index}: the index of data set {dataset.name!r} is missing; plan in the study's own folder")
