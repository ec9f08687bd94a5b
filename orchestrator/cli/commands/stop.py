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

PATIENCE_S = 60.0
"""How long to wait for workers to leave: a job has 20 s to come to its next step."""
LOOK_EVERY_S = 1.0


@click.command()
@with_study_context
@click.pass_context
def command(ctx: click.Context, here: StudyContext) -> None:
    """Stop every worker of the study, on this machine, on Slurm and elsewhere, and every `launch --wait`.

    Their jobs go back to ready.

    \b
    Examples:
      kt-study stop
      kt-study stop --study other/study.toml
    """
    from orchestrator.cluster.launch.local import stop_here
    from orchestrator.cluster.launch.withdraw import withdraw_all

    files = LaunchFiles(root=here.folder)
    study = here.name
    write_private(files.stop, f"{secrets.token_hex(8)}\n".encode(), below=files.root)
    click.echo(f"{counted(stop_here(here.paths.logs), 'worker')} here asked to give back what they do")
    try:
        if cancelled := withdraw_all(files, study):
            click.echo(f"{counted(cancelled, 'Slurm job')} cancelled")
    except SlurmError as error:
        raise SlurmError(
            f"{error}; workers on Slurm leave all the same, within some seconds or as they start"
        ) from error
    if left := _left(here):
        click.echo(
            f"still there after {PATIENCE_S:.0f} s: {'; '.join(left)}; kt-study stop again, or end them by hand",
            err=True,
        )
        ctx.exit(1)
    click.echo("no worker is left; kt-study launch goes on from there")


def _left(here: StudyContext) -> list[str]:
    """Text about the workers that have not exited in time."""
    limit = time.monotonic() + PATIENCE_S
    while (left := _present(here)) and time.monotonic() < limit:
        time.sleep(LOOK_EVERY_S)
    return left


def _present(here: StudyContext) -> list[str]:
    """Workers of the study that have not left: processes here, and those that the database knows elsewhere."""
    from orchestrator.cluster.launch.live import live_workers, started_here

    present = [f"process {started.pid} here ({started.log})" for started in started_here(here.paths.logs)]
    if present:
        return present
    try:
        live = live_workers(here.store(), PilotOptions(root=str(here.folder), study=here.name))
    except DatabaseError as error:
        click.echo(f"{error}; whether workers are left elsewhere is not known", err=True)
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
