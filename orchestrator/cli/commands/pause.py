"""kt-study pause"""

from __future__ import annotations

import click

from kt_study.pilots import LaunchFiles
from kt_study.store import Selection
from orchestrator.cli.job_options import outcome_line, with_selection
from orchestrator.terminal.study_context import StudyContext


@click.command()
@with_selection
def command(context: StudyContext, selection: Selection) -> None:
    """Pause jobs. Running ones checkpoint and stop at the next heartbeat; no new ones start.

    \b
    Examples:
      kt-study pause
      kt-study pause --job 17 --job 18
    """
    from orchestrator.cluster.launch.cancelling import report_cancelled_surplus

    store = context.store()
    click.echo(outcome_line(store, selection, store.pause(selection), "paused"))
    report_cancelled_surplus(LaunchFiles(root=context.folder), store, context.name)
