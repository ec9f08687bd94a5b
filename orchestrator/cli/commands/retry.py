"""kt-study retry"""

from __future__ import annotations

import click

from kt_study.store import Selection
from orchestrator.cli.job_options import told, with_selection
from orchestrator.terminal.surroundings import Surroundings


@click.command()
@with_selection
def command(here: Surroundings, selection: Selection) -> None:
    """Put failed jobs back to ready, with their attempts to come again.

    \b
    Examples:
      kt-study retry               # every failed job of the study
      kt-study retry --error 3f2a  # those of one cause, as kt-study status groups them
    """
    store = here.store()
    click.echo(told(store, selection, store.retry(selection), "put back to ready"))
