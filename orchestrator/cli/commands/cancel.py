"""kt-study cancel"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import msgspec

from kt_study.pilots import LaunchFiles
from kt_study.store import Selection
from orchestrator.cli.job_options import outcome_line, with_selection
from orchestrator.terminal.study_context import StudyContext

if TYPE_CHECKING:
    from kt_study.store import JobStore


@click.command()
@with_selection
@click.option("--unplanned", is_flag=True, help="Only jobs that `kt-study plan` without options would no longer plan.")
def command(context: StudyContext, selection: Selection, unplanned: bool) -> None:
    """Cancel all jobs that are not done, including failed ones. Running jobs stop at the next heartbeat; plan reopens them.

    \b
    Examples:
      kt-study cancel  # every unfinished job of the study
      kt-study cancel --kind transfer --student 'resnet*'
      kt-study cancel --unplanned  # after a model or an image was removed from the study
    """
    from orchestrator.cluster.launch.cancelling import report_cancelled_surplus

    store = context.store()
    if unplanned:
        selection = _unplanned(context, store, selection)
    click.echo(outcome_line(store, selection, store.cancel(selection), "cancelled"))
    report_cancelled_surplus(LaunchFiles(root=context.folder), store, context.name)


def _unplanned(context: StudyContext, store: JobStore, selection: Selection) -> Selection:
    """The selected jobs that `plan` without options would no longer plan."""
    from orchestrator.cli.commands.plan import plan_of_study_file
    from orchestrator.planning import left_over

    ids = left_over(plan_of_study_file(context), store)
    if selection.job_ids is not None:
        ids = [job_id for job_id in ids if job_id in selection.job_ids]
    return msgspec.structs.replace(selection, job_ids=tuple(ids))
