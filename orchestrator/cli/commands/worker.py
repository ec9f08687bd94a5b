"""kt-study worker"""

from __future__ import annotations

from typing import Any

import click

from kt_study.pilots import PilotOptions
from orchestrator.cluster.launch.speed import lease_option, with_speed_options
from orchestrator.terminal.surroundings import Surroundings, with_surroundings


@click.command()
@with_surroundings
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Where models run.")
@click.option("--threads", type=click.IntRange(min=0), default=0, help="Torch threads; 0 for all usable cores.")
@click.option("--idle", "idle_s", type=float, default=600.0, show_default=True, help="Seconds to wait for work.")
@lease_option
@with_speed_options
def command(
    here: Surroundings, device: str, threads: int, idle_s: float, lease_s: float, speed: dict[str, Any]
) -> None:
    """Run one worker in this process, until no work is left that it could do.

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
        **speed,
    )
    click.echo(run_pilot(options))
