"""kt-study launch"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kt_study import notify
from kt_study.pilots import LaunchFiles, PilotOptions, last_stop
from orchestrator.cluster.launch.options import with_slurm_options
from orchestrator.cluster.launch.speed import lease_option, with_speed_options
from orchestrator.terminal.plural import counted
from orchestrator.terminal.study_context import StudyContext, with_study_context

if TYPE_CHECKING:
    from kt_study.store import JobStore, Workload
    from orchestrator.cluster.launch.slurm import SlurmPilots

T = TypeVar("T")

_LAST_WORD_S = 1.5  # of KillWait, for the last word of a pilot that does not stop to reach the database


@click.command()
@with_study_context
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Total number of workers (default: one per GPU, or one per two cores).",
)
@click.option("--wait", is_flag=True, help="Show progress and replace dead workers until the study is complete.")
@with_slurm_options
@click.option("--dry-run", is_flag=True, help="Check the request and print the sbatch script; submit nothing.")
@click.option(
    "--max-submitted",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Maximum number of your kt-study jobs in the Slurm queue; limits --workers.",
)
@click.option("--now", is_flag=True, help="Launch now, even if the last launches finished no job.")
@click.option("--all-nodes", is_flag=True, help="Also use nodes excluded because workers failed there in the last day.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Device to run models on.")
@click.option(
    "--threads", type=click.IntRange(min=1), help="Torch threads per worker (default: cores divided by workers)."
)
@lease_option
@with_speed_options
@click.pass_context
def command(
    ctx: click.Context,
    here: StudyContext,
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
        root=str(here.folder),
        study=here.name,
        device=device,
        threads=threads or 0,
        lease_s=lease_s,
        after_stop=last_stop(LaunchFiles(root=here.folder)),
        **speed,
    )
    here.require_own()
    if profile is None and flags["partition"] is None:
        _refuse_slurm_flags(flags, dry_run=dry_run)
        ctx.exit(_launch_here(here, options, workers, wait=wait))
    pilots = _slurm_pilots(here, options, profile, flags, workers, max_submitted, waits=wait)
    pilots.patient, pilots.wary = not now, not all_nodes
    ctx.exit(_show_script(pilots) if dry_run else _launch_on_slurm(here, pilots, wait=wait))


def _refuse_slurm_flags(flags: dict[str, Any], *, dry_run: bool) -> None:
    given = [name.replace("_", "-") for name, value in flags.items() if value is not None]
    if dry_run:
        given.append("dry-run")
    if given:
        raise click.UsageError(f"--{given[0]} is for Slurm; give --partition or --profile as well")


def _launch_here(here: StudyContext, options: PilotOptions, workers: int | None, *, wait: bool) -> int:
    import msgspec

    from orchestrator.cluster.launch.follow import Follower, Stopped
    from orchestrator.cluster.launch.local import LocalPilots, default_workers
    from orchestrator.terminal.outage import waited_for

    wanted = workers or default_workers()
    threads = options.threads or max(1, len(os.sched_getaffinity(0)) // wanted)
    options = msgspec.structs.replace(options, database=url_for_workers(here), threads=threads)
    store = here.store(waits=wait)
    pilots = LocalPilots(store=store, options=options, wanted=wanted)
    patiently = waited_for if wait else _at_once
    patiently(lambda: here.require_planned_here(store))
    patiently(store.expire)
    patiently(lambda: _arm(here, store))
    added = patiently(pilots.add)
    workload = patiently(lambda: store.workload(here.name))
    if not added and not workload.running and not workload.ready_now and not workload.ready_later:
        return _nothing_to_do(workload)
    if added:
        click.echo(f"{counted(added, 'worker')} started on this machine; logs in {options.paths.logs}")
    else:
        click.echo("none is missing: workers are at work here, or about to")
    if not wait:
        click.echo("follow with: kt-study status --watch")
        return 0
    try:
        waited_for(pilots.wait_for_first)
        workload = Follower(store, here.name, pilots, lambda: _is_stopped(options)).until_done()
        notify.look(store, here.name, LaunchFiles(root=here.folder))
    except Stopped:
        return _say_stopped()
    except KeyboardInterrupt:
        asked = pilots.stop()
        click.echo(
            f"\nstopping: {counted(asked, 'worker')} asked to give their jobs back; kt-study launch goes on from there",
            err=True,
        )
        return 130
    return _complete(workload)


def _at_once(step: Callable[[], T]) -> T:
    return step()


def _is_stopped(options: PilotOptions) -> bool:
    return last_stop(options.files) not in ("", options.after_stop)


def _say_stopped() -> int:
    click.echo("stopped by kt-study stop; kt-study launch goes on from there", err=True)
    return 130


def url_for_workers(here: StudyContext) -> str:
    """The database's URL as submitit may write it down. Empty where it holds a secret: then a private file has it."""
    from kt_study.database import SECRETS, parse_url
    from orchestrator.cluster.launch.private import prepare_study_folder

    if not parse_url(here.database_url).conninfo.keys() & set(SECRETS):
        return here.database_url
    prepare_study_folder(LaunchFiles(root=here.folder), here.database_url)
    return ""


def _slurm_pilots(
    here: StudyContext,
    options: PilotOptions,
    profile: Path | None,
    flags: dict[str, Any],
    workers: int | None,
    max_submitted: int,
    *,
    waits: bool = False,
) -> SlurmPilots:
    """The pilots that the options ask for, after a look at what the cluster has. Raises SlurmError and UsageError."""
    import msgspec

    from orchestrator.cluster.launch.request import fitted, has_only_fake_gpus, read_request
    from orchestrator.cluster.launch.slurm import SlurmPilots
    from orchestrator.cluster.slurm.cluster import look_at_cluster

    request = read_request(profile, flags)
    cluster = look_at_cluster()
    request = fitted(request, cluster, options.device)
    nodes = cluster.nodes_of(*cluster.chosen(request.partition))
    gpus = sum(node.gpus for node in nodes)
    notes = []
    if options.device == "auto" and has_only_fake_gpus(nodes):
        notes.append(f"the GPUs of partition {request.partition!r} are fake: workers compute on the CPU (--device cpu)")
    return SlurmPilots(
        store=here.store(waits=waits),
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
        notes=notes,
    )


def _show_script(pilots: SlurmPilots) -> int:
    from kt_study.errors import SlurmError
    from orchestrator.cluster.launch.submission import script

    pilots.check()
    try:
        allocations, why_none = pilots.missing(), "no worker is missing"
    except SlurmError as refusal:
        allocations, why_none = 0, str(refusal)
    package = pilots.package(
        allocations=max(1, allocations), token="TOKEN", excluded=pilots.left_out(), marker="MARKER"
    )
    click.echo(script(package))
    for note in pilots.notes:
        click.echo(note, err=True)
    if not allocations:
        click.echo(f"{why_none}: nothing would be sent now; this is the script that one allocation would get", err=True)
    click.echo("dry run: nothing submitted", err=True)
    return 0


def _launch_on_slurm(here: StudyContext, pilots: SlurmPilots, *, wait: bool) -> int:
    from orchestrator.cluster.launch.first_minute import watch_first_minute
    from orchestrator.cluster.launch.follow import Follower, Stopped
    from orchestrator.terminal.outage import waited_for

    pilots.check()
    patiently = waited_for if wait else _at_once
    patiently(lambda: here.require_planned_here(pilots.store))
    patiently(pilots.tend)
    patiently(pilots.store.expire)
    patiently(lambda: _arm(here, pilots.store))
    added = patiently(pilots.add)
    for note in pilots.notes:
        click.echo(note, err=True)
    workload = patiently(lambda: pilots.store.workload(here.name))
    if not added and not workload.running and not workload.ready_now and not workload.ready_later:
        return _nothing_to_do(workload)
    if added:
        latest = pilots.launches()[-1]
        click.echo(
            f"{counted(added, 'worker')} in Slurm job {latest.slurm_id}; logs in {pilots.options.paths.logs / latest.token}"
        )
        watch_first_minute(pilots)
    else:
        click.echo(f"{waited_for(pilots.present)} workers are at work or in the queue; none is missing")
    if not wait:
        click.echo("follow with: kt-study status --watch")
        return 0
    try:
        workload = Follower(pilots.store, here.name, pilots, lambda: _is_stopped(pilots.options)).until_done()
        notify.look(pilots.store, here.name, LaunchFiles(root=here.folder))
    except Stopped:
        return _say_stopped()
    except KeyboardInterrupt:
        click.echo("\nthe workers go on; kt-study status shows them, kt-study cancel ends them", err=True)
        return 130
    return _complete(workload)


def _arm(here: StudyContext, store: JobStore) -> None:
    """Write the notification settings of the study file for the pilots."""
    channels = notify.channels_of(here.study.notify, here.folder)
    notify.arm(LaunchFiles(root=here.folder), here.name, channels, store.workload(here.name))


def _nothing_to_do(workload: Workload) -> int:
    return _at_the_end(workload, "nothing to do")


def _complete(workload: Workload) -> int:
    return _at_the_end(workload, "complete")


def _at_the_end(workload: Workload, word: str) -> int:
    from orchestrator.cluster.launch.follow import describe, standstill, tell_failures

    stuck = standstill(workload)
    click.echo(f"nothing can run: {stuck}" if stuck else f"{word}: {describe(workload)}")
    if code := tell_failures(workload):
        return code
    if workload.done and not (stuck or workload.paused):
        click.echo("next: kt-study collect")
    return 0
