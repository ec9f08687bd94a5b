"""kt-study resume"""

from __future__ import annotations

import click

from kt_study.store import Selection
from orchestrator.cli.job_options import told, with_selection
from orchestrator.terminal.study_context import StudyContext


@click.command()
@with_selection
def command(here: StudyContext, selection: Selection) -> None:
    """Resume paused jobs.

    \b
    Examples:
      kt-study resume
    """
    store = here.store()
    click.echo(told(store, selection, store.resume(selection), "resumed"))
