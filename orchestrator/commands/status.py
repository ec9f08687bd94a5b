"""kt-study status"""

from __future__ import annotations

import json
import sys
import time

import click

from kt_study.errors import UsageError
from kt_study.pilots import LaunchFiles
from orchestrator import status
from orchestrator.surroundings import Surroundings, with_surroundings

_CLEAR = "\x1b[2J\x1b[H"


@click.command()
@with_surroundings
@click.option("--watch", is_flag=True, help="Stay and refresh.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
@click.option("--job", type=int, metavar="N", help="All about one job.")
@click.option("--log", "show_log", is_flag=True, help="With --job: print the log of its last worker.")
@click.option("--why", type=int, metavar="N", help="Why job N does not run.")
@click.pass_context
def command(
    ctx: click.Context,
    here: Surroundings,
    watch: bool,
    as_json: bool,
    job: int | None,
    show_log: bool,
    why: int | None,
) -> None:
    """Jobs by state and kind, rate, ETA, running jobs with progress, failures grouped by cause; and Slurm's side of it.

    \b
    kt-study status --watch
    kt-study status --job 17 --log
    kt-study status --why 17
    """
    if show_log and job is None:
        raise UsageError("--log prints the log of one job; give --job N as well")
    store, files = here.store(), LaunchFiles(root=here.folder)
    if why is not None:
        click.echo(status.why(store.job(why), store, here.name, files))
        return
    if job is not None:
        row = store.job(job)
        click.echo(status.log_of(row) if show_log else status.describe_job(row, as_json=as_json))
        return
    while True:
        seen = status.look(store, here.name, files)
        if as_json:
            click.echo(json.dumps(seen))
        else:
            if watch and sys.stdout.isatty():
                click.echo(_CLEAR, nl=False)
            click.echo(status.as_text(seen))
        if not watch or status.is_over(seen):
            ctx.exit(1 if seen["failures"] else 0)
        time.sleep(2.0)
