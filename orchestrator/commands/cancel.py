"""kt-study cancel"""

from __future__ import annotations

import click

from kt_study.pilots import LaunchFiles
from kt_study.store import Selection
from orchestrator.job_options import with_selection
from orchestrator.surroundings import Surroundings


@click.command()
@with_selection
def command(here: Surroundings, selection: Selection) -> None:
    """Cancel jobs that are not done; running ones stop within a heartbeat.

    \b
    Examples:
      kt-study cancel  # every open job of the study
      kt-study cancel --kind transfer --student 'resnet*'
    """
    from orchestrator.launch.withdraw import say_withdrawn

    store = here.store()
    click.echo(f"{store.cancel(selection)} jobs cancelled")
    say_withdrawn(LaunchFiles(root=here.folder), store, here.name)
