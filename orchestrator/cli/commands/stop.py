"""kt-study stop"""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING

import click

from kt_study.errors import DatabaseError, SlurmError
from kt_study.files import write_private
from kt_study.pilots import LaunchFiles, PilotOptions
from orchestrator.terminal.plural import counted
from orchestrator.terminal.study_context import StudyContext, with_study_context

if TYPE_CHECKING:
    from kt_study.store import WorkerRow

TIMEOUT_S = 60.0
"""How long to wait for workers to exit: a job has 20 s to reach its next step."""
REFRESH_S = 1.0


@click.command()
@with_study_context
@click.pass_context
def command(ctx: click.Context, context: StudyContext) -> None:
    """Stop every worker of the study, on this machine, on Slurm and elsewhere, and every `launch --wait`.

    Their jobs go back to ready.

    \b
    Examples:
      kt-study stop
      kt-study stop --study other/study.toml
    """
    from orchestrator.cluster.launch.cancelling import cancel_all
    from orchestrator.cluster.launch.local import stop_local_workers

    files = LaunchFiles(root=context.folder)
    study = context.name
    write_private(files.stop, f"{secrets.token_hex(8)}\n".encode(), below=files.root)
    click.echo(f"{counted(stop_local_workers(context.paths.logs), 'local worker')} asked to release their jobs")
    try:
        if cancelled := cancel_all(files, study):
            click.echo(f"{counted(cancelled, 'Slurm job')} cancelled")
    except SlurmError as error:
        raise SlurmError(
            f"{error}; workers on Slurm exit all the same, within some seconds or when they start"
        ) from error
    if left := _left(context):
        click.echo(
            f"still running after {TIMEOUT_S:.0f} s: {'; '.join(left)}; run kt-study stop again, or kill them",
            err=True,
        )
        ctx.exit(1)
    click.echo("no worker is left; kt-study launch continues from there")


def _left(context: StudyContext) -> list[str]:
    """The workers that have not exited in time, one string each."""
    limit = time.monotonic() + TIMEOUT_S
    while (left := _present(context)) and time.monotonic() < limit:
        time.sleep(REFRESH_S)
    return left


def _present(context: StudyContext) -> list[str]:
    """Workers of the study that have not exited: local processes, or if there are none, those in the database."""
    from orchestrator.cluster.launch.live import live_workers, local_processes

    if local := local_processes(context.paths.logs):
        return [f"process {process.pid} on this machine ({process.log})" for process in local]
    try:
        live = live_workers(context.store(), PilotOptions(root=str(context.folder), study=context.name))
    except DatabaseError as error:
        click.echo(f"{error}; it is unknown whether workers are left on other machines", err=True)
        return []
    gone = _ended_by_slurm(live)
    return [
        f"process {worker.pid} on {worker.host} ({worker.log})" for worker in live if worker.log and worker not in gone
    ]


def _ended_by_slurm(live: list[WorkerRow]) -> list[WorkerRow]:
    """Workers whose Slurm job has left the queue: Slurm may have killed them before they could report their end."""
    from orchestrator.cluster.slurm.listing import queue

    on_slurm = [worker for worker in live if worker.slurm_job]
    if not on_slurm:
        return []
    try:
        queued = {job.job for job in queue()}
    except SlurmError:
        return []
    return [worker for worker in on_slurm if worker.slurm_job not in queued]
