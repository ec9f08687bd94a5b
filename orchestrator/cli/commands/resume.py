"""kt-study resume"""

from __future__ import annotations

import click

from kt_study.store import Selection
from orchestrator.cli.job_options import told, with_selection
from orchestrator.terminal.surroundings import Surroundings


@click.command()
@with_selection
def command(here: Surroundings, selection: Selection) -> None:
    """Resume paused jobs.

    \b
    Examples:
      kt-study resume
    """
    store = here.store()
    click.echo(told(store, selection, store.resume(selection), "resumed"))
