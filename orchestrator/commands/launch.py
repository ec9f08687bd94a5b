"""kt-study launch"""

from __future__ import annotations

import os

import click

from kt_study.pilots import PilotOptions
from orchestrator.surroundings import Surroundings, with_surroundings


@click.command()
@with_surroundings
@click.option("--workers", type=click.IntRange(min=1), help="Workers in all; a GPU each, or every two cores one.")
@click.option("--wait", is_flag=True, help="Show progress until the study is complete; replace workers that die.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Where models run.")
@click.option("--threads", type=click.IntRange(min=1), help="Torch threads of a worker; the cores shared out.")
@click.option(
    "--lease", "lease_s", type=float, default=60.0, show_default=True, help="Seconds a silent worker keeps a job."
)
@click.pass_context
def command(
    ctx: click.Context,
    here: Surroundings,
    workers: int | None,
    wait: bool,
    device: str,
    threads: int | None,
    lease_s: float,
) -> None:
    """Start workers, here or on Slurm. A second launch adds only what is missing.

    \b
    kt-study launch                                  on this machine
    kt-study launch --workers 2 --wait               ... and follow until it is done
    kt-study launch --partition gpu --workers 16     on Slurm
    """
    from orchestrator.launch.local import default_workers

    wanted = workers or default_workers()
    options = PilotOptions(
        root=str(here.folder),
        database=here.database_url,
        study=here.name,
        device=device,
        threads=threads or max(1, len(os.sched_getaffinity(0)) // wanted),
        lease_s=lease_s,
    )
    ctx.exit(_launch_here(here, options, wanted, wait=wait))


def _launch_here(here: Surroundings, options: PilotOptions, wanted: int, *, wait: bool) -> int:
    from orchestrator.launch.follow import Follower, describe
    from orchestrator.launch.live import live_workers, missing_workers
    from orchestrator.launch.local import start_local_workers

    store = here.store()

    def add_workers() -> int:
        live = live_workers(store, beat_within_s=2 * options.lease_s)
        count = missing_workers(store, here.name, wanted, live)
        if count:
            start_local_workers(options, count, first=len(live))
        return count

    store.expire()
    added = add_workers()
    outlook = store.outlook(here.name)
    if not added and not outlook.running and not outlook.ready_now and not outlook.ready_later:
        click.echo(f"nothing to do: {describe(outlook)}")
        return 1 if outlook.failed else 0
    click.echo(f"{added} workers started on this machine; logs in {options.paths.logs}")
    if not wait:
        click.echo("follow with: kt-study status --watch")
        return 0
    follower = Follower(store, here.name, lease_s=options.lease_s)
    try:
        outlook = follower.until_done(add_workers)
    except KeyboardInterrupt:
        asked = follower.stop_workers()
        click.echo(f"\nstopping: {asked} workers give their jobs back; kt-study launch goes on from there", err=True)
        return 130
    click.echo(f"complete: {describe(outlook)}")
    if outlook.failed:
        click.echo("see kt-study status for the failures, grouped by cause; kt-study retry tries them again", err=True)
    return 1 if outlook.failed else 0
