"""kt-study pause"""

from __future__ import annotations

import click

from kt_study.store import Selection
from orchestrator.job_options import with_selection
from orchestrator.surroundings import Surroundings


@click.command()
@with_selection
def command(here: Surroundings, selection: Selection) -> None:
    """Hold jobs: running ones checkpoint and stop within a heartbeat, nothing new starts.

    \b
    kt-study pause
    kt-study pause --job 17 --job 18
    """
    click.echo(f"{here.store().pause(selection)} jobs paused")
