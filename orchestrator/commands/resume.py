"""kt-study resume"""

from __future__ import annotations

import click

from kt_study.store import Selection
from orchestrator.job_options import with_selection
from orchestrator.surroundings import Surroundings


@click.command()
@with_selection
def command(here: Surroundings, selection: Selection) -> None:
    """Let paused jobs run again.

    \b
    Examples:
      kt-study resume
    """
    click.echo(f"{here.store().resume(selection)} jobs resumed")
