"""kt-study pause"""

from __future__ import annotations

import click

from kt_study.pilots import LaunchFiles
from kt_study.store import Selection
from orchestrator.cli.job_options import told, with_selection
from orchestrator.terminal.study_context import StudyContext


@click.command()
@with_selection
def command(here: StudyContext, selection: Selection) -> None:
    """Pause jobs. Running ones checkpoint and stop at the next heartbeat; no new ones start.

    \b
    Examples:
      kt-study pause
      kt-study pause --job 17 --job 18
    """
    from orchestrator.cluster.launch.withdraw import say_withdrawn

    store = here.store()
    click.echo(told(store, selection, store.pause(selection), "paused"))
    say_withdrawn(LaunchFiles(root=here.folder), store, here.name)
