"""kt-study worker"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kt_study.pilots import LaunchFiles, PilotOptions, last_stop
from orchestrator.cluster.launch.follow import tell_failures
from orchestrator.cluster.launch.options import device_option, lease_option, with_worker_options
from orchestrator.terminal.study_context import StudyContext, with_study_context


@click.command()
@with_study_context
@device_option
@click.option("--threads", type=click.IntRange(min=0), default=0, help="Torch threads; 0 uses all available cores.")
@click.option(
    "--idle", "idle_s", type=float, default=600.0, show_default=True, help="Exit after this many seconds without work."
)
@lease_option
@with_worker_options
def command(
    context: StudyContext, device: str, threads: int, idle_s: float, lease_s: float, tuning: dict[str, Any]
) -> int:
    """Run one worker in this process until no job is left that it can run.

    The exit code is 1 if jobs of the study have failed, as with `launch --wait`.

    \b
    Examples:
      kt-study worker
      kt-study worker --device cpu --threads 1
    """
    from worker.pilot.entry import run_pilot

    options = PilotOptions(
        root=str(context.folder),
        database=context.database_url,
        study=context.name,
        device=device,
        threads=threads,
        idle_s=idle_s,
        lease_s=lease_s,
        after_stop=last_stop(LaunchFiles(root=context.folder)),
        **tuning,
    )
    context.require_own()
    click.echo(run_pilot(options))
    if not Path(options.root).exists():
        return 0  # the study was deleted, as the worker has reported
    return tell_failures(context.store().workload(context.name))
