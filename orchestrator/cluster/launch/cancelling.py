"""Cancels pilots in Slurm's queue: after a cancel or a pause those no longer needed, after a stop all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kt_study.errors import SlurmError
from kt_study.pilots import LaunchFiles
from orchestrator.cluster.launch import records
from orchestrator.cluster.launch.slurm import open_jobs
from orchestrator.cluster.slurm.commands import run
from orchestrator.cluster.slurm.listing import queue
from orchestrator.terminal.plural import counted

if TYPE_CHECKING:
    from kt_study.store import JobStore


def cancel_surplus(files: LaunchFiles, store: JobStore, study: str) -> int:
    """Cancel pending Slurm jobs of a study beyond what its open jobs can use. Returns how many.

    Running pilots learn of a cancel or a pause at their next heartbeat, and exit when no work is left.
    """
    launches = records.launches(files, study)
    if not launches:
        return 0
    view = records.view(files, launches, fresh_s=0.0)
    if view.controller.error:
        raise SlurmError(f"{view.controller.error}; pending workers stay in the queue and exit when they start")
    each = {record.token: record.pilots_each for record in launches}
    queued = view.queue_of(list(each))
    pending = [job for job in queued if job.is_pending]
    useful = open_jobs(store.workload(study)) - sum(each[job.token] for job in queued if not job.is_pending)
    surplus = []
    for job in pending:
        useful -= each[job.token]
        if useful < 0:
            surplus.append(job.job)
    if surplus:
        run("scancel", "--state=PENDING", *surplus)
    return len(surplus)


def cancel_all(files: LaunchFiles, study: str) -> int:
    """Cancel every Slurm job of a study that is pending or running. Returns how many.

    Raises:
        SlurmError: Slurm does not answer.
    """
    tokens = {record.token for record in records.launches(files, study)}
    if not tokens:
        return 0
    ours = [job.job for job in queue() if job.token in tokens]
    if ours:
        run("scancel", *ours)
    return len(ours)


def report_cancelled_surplus(files: LaunchFiles, store: JobStore, study: str) -> None:
    """`cancel_surplus`, reported on the terminal; if Slurm is down, the command does not fail."""
    try:
        if count := cancel_surplus(files, store, study):
            click.echo(f"{counted(count, 'pending Slurm job')} cancelled")
    except SlurmError as error:
        click.echo(str(error), err=True)
