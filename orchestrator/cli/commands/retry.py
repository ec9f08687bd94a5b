"""kt-study retry"""

from __future__ import annotations

import click

from kt_study.store import Selection
from orchestrator.cli.job_options import outcome_line, with_selection
from orchestrator.terminal.study_context import StudyContext


@click.command()
@with_selection
def command(context: StudyContext, selection: Selection) -> None:
    """Put failed jobs back to ready and reset their attempts.

    \b
    Examples:
      kt-study retry               # every failed job of the study
      kt-study retry --error 3f2a  # those with one cause, as grouped by kt-study status
    """
    store = context.store()
    click.echo(outcome_line(store, selection, store.retry(selection), "put back to ready"))
