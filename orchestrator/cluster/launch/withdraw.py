"""Removes pilots from Slurm's queue: after a cancel or a pause those no longer needed, after a stop all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kt_study.errors import SlurmError
from kt_study.pilots import LaunchFiles
from orchestrator.cluster.launch import records
from orchestrator.cluster.launch.slurm import open_jobs
from orchestrator.cluster.slurm.commands import run
from orchestrator.cluster.slurm.listing import queue
from orchestrator.cluster.slurm.view import look
from orchestrator.terminal.plural import counted

if TYPE_CHECKING:
    from kt_study.store import JobStore


def withdraw_pending(files: LaunchFiles, store: JobStore, study: str) -> int:
    """Cancel pending Slurm jobs of a study beyond what its open jobs can use. Returns how many.

    Pilots at work hear of a cancel or a pause with their next heartbeat, and leave by themselves when no work is left.
    """
    launches = records.launches(files, study)
    if not launches:
        return 0
    names, since = records.watched(launches)
    view = look(files, names, since, fresh_s=0.0)
    if view.controller.trouble:
        raise SlurmError(f"{view.controller.trouble}; pending workers stay in the queue and leave when they start")
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


def withdraw_all(files: LaunchFiles, study: str) -> int:
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


def say_withdrawn(files: LaunchFiles, store: JobStore, study: str) -> None:
    """`withdraw_pending`, reported on the terminal; if Slurm is down, the cancel does not fail."""
    try:
        if count := withdraw_pending(files, store, study):
            click.echo(f"{counted(count, 'pending Slurm job')} cancelled")
    except SlurmError as error:
        click.echo(str(error), err=True)
