"""kt-study cancel"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import msgspec

from kt_study.pilots import LaunchFiles
from kt_study.store import Selection
from orchestrator.cli.job_options import told, with_selection
from orchestrator.terminal.study_context import StudyContext

if TYPE_CHECKING:
    from kt_study.store import JobStore


@click.command()
@with_selection
@click.option("--unplanned", is_flag=True, help="Only jobs that `kt-study plan` without options would no longer plan.")
def command(here: StudyContext, selection: Selection, unplanned: bool) -> None:
    """Cancel all jobs that are not done, including failed ones. Running jobs stop at the next heartbeat; plan reopens them.

    \b
    Examples:
      kt-study cancel  # every unfinished job of the study
      kt-study cancel --kind transfer --student 'resnet*'
      kt-study cancel --unplanned  # after a model or an image was taken out of the study
    """
    from orchestrator.cluster.launch.withdraw import say_withdrawn

    store = here.store()
    if unplanned:
        selection = _left_over(here, store, selection)
    click.echo(told(store, selection, store.cancel(selection), "cancelled"))
    say_withdrawn(LaunchFiles(root=here.folder), store, here.name)


def _left_over(here: StudyContext, store: JobStore, selection: Selection) -> Selection:
    """What is selected of the jobs that the study file does not stand for any more."""
    from orchestrator.cli.commands.plan import plan_of_the_file
    from orchestrator.planning import left_over

    ids = left_over(plan_of_the_file(here), store)
    if selection.job_ids is not None:
        ids = [job_id for job_id in ids if job_id in selection.job_ids]
    return msgspec.structs.replace(selection, job_ids=tuple(ids))
