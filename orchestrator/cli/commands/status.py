"""kt-study status"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import click

from kt_study import notify
from kt_study.errors import UsageError
from kt_study.pilots import LaunchFiles
from kt_study.printable import printable
from orchestrator.cli import status
from orchestrator.cli.watch import REFRESH_S
from orchestrator.cli.watch import watch as follow
from orchestrator.cluster.why import why as reason_not_running
from orchestrator.terminal.outage import through_outages
from orchestrator.terminal.study_context import StudyContext, with_study_context


@click.command()
@with_study_context
@click.option("--watch", is_flag=True, help="Refresh continuously.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
@click.option("--job", type=int, metavar="N", help="Show the details of one job.")
@click.option("--log", "show_log", is_flag=True, help="With --job: print the log of its last worker.")
@click.option("--why", type=int, metavar="N", help="Explain why job N does not run.")
@click.pass_context
def command(
    ctx: click.Context,
    context: StudyContext,
    watch: bool,
    as_json: bool,
    job: int | None,
    show_log: bool,
    why: int | None,
) -> None:
    """Show jobs by state and kind, rate, ETA, progress of running jobs, failures by cause, and the state in Slurm.

    \b
    Examples:
      kt-study status --watch
      kt-study status --job 17 --log
      kt-study status --why 17
    """
    if show_log and job is None:
        raise UsageError("--log prints the log of one job; give --job N as well")
    store, files = context.store(waits=watch), LaunchFiles(root=context.folder)
    if why is not None:
        reason = reason_not_running(why, store, context.name, files)
        click.echo(json.dumps({"job": why, "why": reason}) if as_json else printable(reason))
        return
    if job is not None:
        row = store.job(job)
        click.echo(status.log_of(row) if show_log else status.describe_job(row, as_json=as_json))
        return
    summary = _show(lambda: status.summary(store, context.name, files), watch=watch, as_json=as_json)
    notify.send_due(store, context.name, files)
    ctx.exit(1 if summary["failures"] else 0)


def _show(summarise: Callable[[], dict[str, Any]], *, watch: bool, as_json: bool) -> dict[str, Any]:
    """Print the summary, repeatedly with `watch`. Returns the last one."""
    if watch and not as_json:
        return follow(summarise)
    summary = summarise()
    while True:
        click.echo(json.dumps(summary) if as_json else status.as_text(summary))
        if not watch or status.is_over(summary):
            return summary
        time.sleep(REFRESH_S)
        summary = through_outages(summarise)
