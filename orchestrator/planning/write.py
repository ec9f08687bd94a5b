"""Writes a plan: data set indices to the study folder, then everything else to the database."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kt_study.files import write_bytes
from kt_study.paths import StudyPaths
from orchestrator.planning.record import Plan, Sources

if TYPE_CHECKING:
    from kt_study.store import JobStore, Planned


def write_plan(plan: Plan, sources: Sources, store: JobStore, command: str | None = None) -> Planned:
    """Put the plan into the job table. A second time adds nothing. The study keeps its folder, and `command` for the report.

    Raises:
        DatabaseError, DiskError: nothing of the plan is in the job table then.
    """
    scratch = StudyPaths(root=sources.scratch)
    for dataset in plan.datasets:
        target = sources.paths.dataset_index(dataset.key)
        if not target.exists():
            write_bytes(target, scratch.dataset_index(dataset.key).read_bytes())
    sources.digests.keep()
    known = store.study(plan.name) if plan.name in store.studies() else {}
    commands = dict.fromkeys([*known.get("commands", []), *([command] if command else [])])
    kept = {"commands": list(commands)} if commands else {}
    store.add_study(plan.name, {**plan.settings, **kept, "folder": str(sources.folder.resolve())})
    store.add_datasets(plan.datasets)
    store.add_models([*plan.models, *plan.others])
    return store.plan(plan.name, plan.jobs.values())


def foreseen(plan: Plan, store: JobStore) -> Planned:
    """What `write_plan` would do. Writes nothing."""
    from kt_study.store import Planned

    known, held = store.states(plan.jobs), store.states(plan.jobs, plan.name)
    return Planned(new=len(plan.jobs) - len(known), linked=len(known) - len(held), existing=len(held))


def left_over(plan: Plan, store: JobStore) -> list[int]:
    """Ids of the study's jobs that are not finished and not in this plan, as after a model was taken out of the file."""
    return [job_id for job_id, digest in store.unfinished(plan.name) if digest not in plan.jobs]
