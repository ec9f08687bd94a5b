"""kt-study resume"""

from __future__ import annotations

import click

from kt_study.store import Selection
from orchestrator.cli.job_options import outcome_line, with_selection
from orchestrator.terminal.study_context import StudyContext


@click.command()
@with_selection
def command(context: StudyContext, selection: Selection) -> None:
    """Resume paused jobs.

    \b
    Examples:
      kt-study resume
    """
    store = context.store()
    click.echo(outcome_line(store, selection, store.resume(selection), "resumed"))
