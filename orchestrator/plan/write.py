"""Putting a plan down: data set indices beside the study, then everything else into the database."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kt_study.files import write_bytes
from kt_study.paths import StudyPaths
from orchestrator.plan.record import Plan, Sources

if TYPE_CHECKING:
    from kt_study.store import JobStore, Planned


def write_plan(plan: Plan, sources: Sources, store: JobStore) -> Planned:
    """Put the plan into the job table. A second time adds nothing.

    Raises:
        DatabaseError, DiskError: nothing of the plan is in the job table then.
    """
    scratch = StudyPaths(root=sources.scratch)
    for dataset in plan.datasets:
        target = sources.paths.dataset_index(dataset.key)
        if not target.exists():
            write_bytes(target, scratch.dataset_index(dataset.key).read_bytes())
    sources.digests.keep()
    store.add_study(plan.name, plan.settings)
    store.add_datasets(plan.datasets)
    store.add_models([*plan.models, *plan.others])
    return store.plan(plan.name, plan.jobs.values())
