"""A plan of the transfers that `kt-study recommend` recommends.

Models and data set are read from the database: nothing is sampled or scanned.
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

    One that was measured with these very settings is left out.

    Raises:
        UsageError: no such file, another study's, or models that this database does not have.
        DataError: the data set's index is not in the study folder.
    """
    advice = read_recommendation(path)
    if advice.study != study.study.name:
        raise UsageError(
            f"{path} is about study {advice.study!r}, and this one is {study.study.name!r}; recommend anew"
        )
    dataset = store.dataset(advice.dataset_key)
    _check(dataset, sources)
    student, teachers = store.model(advice.student_key), [store.model(one.teacher_key) for one in advice.teachers]
    settings = study_settings(study, dataset, advice.objective, sources)
    runs = [
        TransferSpec(
            dataset=dataset.key,
            student=student.key,
            teachers=(teacher.key,),
            objective=advice.objective,
            settings=settings,
            seed=study.study.seed,
        )
        for teacher in teachers
    ]
    measured = {one.job for one in advice.teachers}
    plan = Plan(
        name=study.study.name,
        settings=store.study(study.study.name),
        datasets=[dataset],
        models=[student, *teachers],
        runs=[run for run in runs if transfer_digest(run) not in measured],
    )
    if left_out := len(runs) - len(plan.runs):
        plan.notes.append(f"{left_out} of {len(runs)} recommended pairs are measured already and left out")
    layout = Layout(sources.ran, sources.acc_after)
    layout.know(plan.datasets, plan.models)
    layout.transfers(plan.runs)
    plan.jobs, plan.others = layout.jobs, list(layout.others.values())
    return plan


def study_settings(study: StudyFile, dataset: DatasetRecord, objective: str, sources: Sources) -> Settings:
    """The settings that the study file gives to a transfer of this objective. Raises UsageError when they clash."""
    return settings_for(objective, common_settings(study.transfer, study.dataset, dataset, sources))


def _check(dataset: DatasetRecord, sources: Sources) -> None:
    if obstacle := check_can_transfer(dataset):
        raise UsageError(f"no transfers can be planned: {obstacle}")
    index = sources.paths.dataset_index(dataset.key)
    if not index.exists():
        raise DataError(f"{index}: the index of data set {dataset.name!r} is not here; plan in the study's own folder")
