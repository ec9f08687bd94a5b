"""kt-study launch"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kt_study import notify
from kt_study.pilots import LaunchFiles, PilotOptions
from orchestrator.cluster.launch.options import with_slurm_options
from orchestrator.cluster.launch.speed import lease_option, with_speed_options
from orchestrator.terminal.plural import counted
from orchestrator.terminal.surroundings import Surroundings, with_surroundings

if TYPE_CHECKING:
    from kt_study.store import JobStore, Outlook
    from orchestrator.cluster.launch.slurm import SlurmCrew

_LAST_WORD_S = 1.5  # of KillWait, for the last word of a pilot that does not stop to reach the database


@click.command()
@with_surroundings
@click.option("--workers", type=click.IntRange(min=1), help="Workers in all; a GPU each, or every two cores one.")
@click.option("--wait", is_flag=True, help="Show progress until the study is complete; replace workers that die.")
@with_slurm_options
@click.option("--dry-run", is_flag=True, help="Check everything and print the sbatch script; submit nothing.")
@click.option(
    "--max-submitted",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Most Slurm jobs of kt-study that you may have in the queue, whatever --workers says.",
)
@click.option("--now", is_flag=True, help="Launch although the last launches came to nothing.")
@click.option("--all-nodes", is_flag=True, help="Also on nodes where workers ended badly within the last day.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Where models run.")
@click.option("--threads", type=click.IntRange(min=1), help="Torch threads of a worker; the cores shared out.")
@lease_option
@with_speed_options
@click.pass_context
def command(
    ctx: click.Context,
    here: Surroundings,
    workers: int | None,
    wait: bool,
    profile: Path | None,
    flags: dict[str, Any],
    dry_run: bool,
    max_submitted: int,
    now: bool,
    all_nodes: bool,
    device: str,
    threads: int | None,
    lease_s: float,
    speed: dict[str, Any],
) -> None:
    """Start workers, here or on Slurm. A second launch adds only what is missing.

    \b
    Examples:
      kt-study launch                               # on this machine
      kt-study launch --workers 2 --wait            # ... and follow until it is done
      kt-study launch --partition gpu --workers 16  # on Slurm
      kt-study launch --profile slurm/example.toml --dry-run
    """
    options = PilotOptions(
        root=str(here.folder), study=here.name, device=device, threads=threads or 0, lease_s=lease_s, **speed
    )
    if profile is None and flags["partition"] is None:
        _refuse_slurm_flags(flags, dry_run=dry_run)
        ctx.exit(_launch_here(here, options, workers, wait=wait))
    crew = _slurm_crew(here, options, profile, flags, workers, max_submitted)
    crew.patient, crew.wary = not now, not all_nodes
    ctx.exit(_show_script(crew) if dry_run else _launch_on_slurm(here, crew, wait=wait))


def _refuse_slurm_flags(flags: dict[str, Any], *, dry_run: bool) -> None:
    given = [name.replace("_", "-") for name, value in flags.items() if value is not None]
    if dry_run:
        given.append("dry-run")
    if given:
        raise click.UsageError(f"--{given[0]} is for Slurm; give --partition or --profile as well")


def _launch_here(here: Surroundings, options: PilotOptions, workers: int | None, *, wait: bool) -> int:
    import msgspec

    from orchestrator.cluster.launch.follow import Follower
    from orchestrator.cluster.launch.local import LocalCrew, default_workers

    wanted = workers or default_workers()
    threads = options.threads or max(1, len(os.sched_getaffinity(0)) // wanted)
    options = msgspec.structs.replace(options, database=_url_for_workers(here), threads=threads)
    store = here.store()
    crew = LocalCrew(store=store, options=options, wanted=wanted)
    store.expire()
    _arm(here, store)
    added = crew.add()
    outlook = store.outlook(here.name)
    if not added and not outlook.running and not outlook.ready_now and not outlook.ready_later:
        return _nothing_to_do(outlook)
    click.echo(f"{counted(added, 'worker')} started on this machine; logs in {options.paths.logs}")
    if not wait:
        click.echo("follow with: kt-study status --watch")
        return 0
    try:
        crew.wait_for_first()
        outlook = Follower(store, here.name, crew).until_done()
        notify.look(store, here.name, LaunchFiles(root=here.folder))
    except KeyboardInterrupt:
        asked = crew.stop()
        click.echo(
            f"\nstopping: {counted(asked, 'worker')} asked to give their jobs back; kt-study launch goes on from there",
            err=True,
        )
        return 130
    return _complete(outlook)


def _url_for_workers(here: Surroundings) -> str:
    """The database's URL as submitit may write it down. Empty where it holds a password: then a private file has it."""
    from kt_study.database import parse_url
    from orchestrator.cluster.launch.private import prepare_study_folder

    if "password" not in parse_url(here.database_url).conninfo:
        return here.database_url
    prepare_study_folder(LaunchFiles(root=here.folder), here.database_url)
    return ""


def _slurm_crew(
    here: Surroundings,
    options: PilotOptions,
    profile: Path | None,
    flags: dict[str, Any],
    workers: int | None,
    max_submitted: int,
) -> SlurmCrew:
    """The pilots that the options ask for, after a look at what the cluster has. Raises SlurmError and UsageError."""
    import msgspec

    from orchestrator.cluster.launch.request import fitted, read_request
    from orchestrator.cluster.launch.slurm import SlurmCrew
    from orchestrator.cluster.slurm.cluster import look_at_cluster

    request = read_request(profile, flags)
    cluster = look_at_cluster()
    request = fitted(request, cluster, options.device)
    gpus = sum(node.gpus for node in cluster.nodes_of(*cluster.chosen(request.partition)))
    return SlurmCrew(
        store=here.store(),
        options=msgspec.structs.replace(
            options,
            gpus=request.gpus,
            margin_s=float(request.warning_s),
            grace_s=min(options.grace_s, max(1.0, cluster.kill_wait_s - _LAST_WORD_S)),
            linger_s=max(options.linger_s, cluster.kill_wait_s + 60.0),
        ),
        request=request,
        cluster=cluster,
        database_url=here.database_url,
        wanted=workers or max(1, min(16, gpus * request.workers_per_gpu)),
        most_submitted=max_submitted,
    )


def _show_script(crew: SlurmCrew) -> int:
    from kt_study.errors import SlurmError
    from orchestrator.cluster.launch.submission import script

    crew.check()
    try:
        allocations, why_none = crew.missing(), "no worker is missing"
    except SlurmError as refusal:
        allocations, why_none = 0, str(refusal)
    package = crew.package(allocations=max(1, allocations), token="TOKEN", excluded=crew.left_out(), marker="MARKER")
    click.echo(script(package))
    for note in crew.notes:
        click.echo(note, err=True)
    if not allocations:
        click.echo(f"{why_none}: nothing would be sent now; this is the script that one allocation would get", err=True)
    click.echo("dry run: nothing submitted", err=True)
    return 0


def _launch_on_slurm(here: Surroundings, crew: SlurmCrew, *, wait: bool) -> int:
    from orchestrator.cluster.launch.first_minute import watch_first_minute
    from orchestrator.cluster.launch.follow import Follower

    crew.check()
    crew.tend()
    crew.store.expire()
    _arm(here, crew.store)
    added = crew.add()
    for note in crew.notes:
        click.echo(note, err=True)
    outlook = crew.store.outlook(here.name)
    if not added and not outlook.running and not outlook.ready_now and not outlook.ready_later:
        return _nothing_to_do(outlook)
    if added:
        latest = crew.launches()[-1]
        click.echo(
            f"{counted(added, 'worker')} in Slurm job {latest.slurm_id}; logs in {crew.options.paths.logs / latest.token}"
        )
        watch_first_minute(crew)
    else:
        click.echo(f"{crew.present()} workers are at work or in the queue; none is missing")
    if not wait:
        click.echo("follow with: kt-study status --watch")
        return 0
    try:
        outlook = Follower(crew.store, here.name, crew).until_done()
        notify.look(crew.store, here.name, LaunchFiles(root=here.folder))
    except KeyboardInterrupt:
        click.echo("\nthe workers go on; kt-study status shows them, kt-study cancel ends them", err=True)
        return 130
    return _complete(outlook)


def _arm(here: Surroundings, store: JobStore) -> None:
    """Leave the pilots word of who wants a message, as the study file says."""
    channels = notify.channels_of(here.study.notify, here.folder)
    notify.arm(LaunchFiles(root=here.folder), here.name, channels, store.outlook(here.name))


def _nothing_to_do(outlook: Outlook) -> int:
    return _at_the_end(outlook, "nothing to do")


def _complete(outlook: Outlook) -> int:
    return _at_the_end(outlook, "complete")


def _at_the_end(outlook: Outlook, word: str) -> int:
    from orchestrator.cluster.launch.follow import describe, standstill

    stuck = standstill(outlook)
    click.echo(f"nothing can run: {stuck}" if stuck else f"{word}: {describe(outlook)}")
    if outlook.failed:
        click.echo("see kt-study status for the failures, grouped by cause; kt-study retry tries them again", err=True)
        return 1
    if outlook.done and not (stuck or outlook.paused):
        click.echo("next: kt-study collect")
    return 0
