"""kt-study worker"""

from __future__ import annotations

from typing import Any

import click

from kt_study.pilots import LaunchFiles, PilotOptions, last_stop
from orchestrator.cluster.launch.follow import tell_failures
from orchestrator.cluster.launch.speed import lease_option, with_speed_options
from orchestrator.terminal.study_context import StudyContext, with_study_context


@click.command()
@with_study_context
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Device to run models on.")
@click.option("--threads", type=click.IntRange(min=0), default=0, help="Torch threads; 0 uses all available cores.")
@click.option(
    "--idle", "idle_s", type=float, default=600.0, show_default=True, help="Exit after this many seconds without work."
)
@lease_option
@with_speed_options
def command(here: StudyContext, device: str, threads: int, idle_s: float, lease_s: float, speed: dict[str, Any]) -> int:
    """Run one worker in this process until no job is left that it can run.

    The exit code is 1 if jobs of the study have failed, as with `launch --wait`.

    \b
    Examples:
      kt-study worker
      kt-study worker --device cpu --threads 1
    """
    from worker.pilot.entry import run_pilot

    options = PilotOptions(
        root=str(here.folder),
        database=here.database_url,
        study=here.name,
        device=device,
        threads=threads,
        idle_s=idle_s,
        lease_s=lease_s,
        after_stop=last_stop(LaunchFiles(root=here.folder)),
        **speed,
    )
    here.require_own()
    click.echo(run_pilot(options))
    return tell_failures(here.store().workload(here.name))
