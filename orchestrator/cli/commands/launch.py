"""kt-study launch"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kt_study import notify
from kt_study.pilots import LaunchFiles, PilotOptions, last_stop
from orchestrator.cluster.launch.options import device_option, lease_option, with_slurm_options, with_worker_options
from orchestrator.terminal.plural import counted
from orchestrator.terminal.study_context import StudyContext, with_study_context

if TYPE_CHECKING:
    from kt_study.store import JobStore, Workload
    from orchestrator.cluster.launch.local import LocalPilots
    from orchestrator.cluster.launch.slurm import SlurmPilots

T = TypeVar("T")

_LAST_WRITE_S = 1.5  # of KillWait, for the last write of a pilot whose job does not stop


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
@device_option
@click.option(
    "--threads", type=click.IntRange(min=1), help="Torch threads per worker (default: cores divided by workers)."
)
@lease_option
@with_worker_options
@click.pass_context
def command(
    ctx: click.Context,
    context: StudyContext,
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
    tuning: dict[str, Any],
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
        root=str(context.folder),
        study=context.name,
        device=device,
        threads=threads or 0,
        lease_s=lease_s,
        after_stop=last_stop(LaunchFiles(root=context.folder)),
        **tuning,
    )
    context.require_own()
    if profile is None and "partition" not in flags:
        for name in [*flags, *(["dry_run"] if dry_run else [])]:
            raise click.UsageError(f"--{name.replace('_', '-')} is for Slurm; give --partition or --profile as well")
        ctx.exit(_launch_here(context, options, workers, wait=wait))
    pilots = _slurm_pilots(context, options, profile, flags, workers, max_submitted, waits=wait)
    pilots.backs_off, pilots.excludes_nodes = not now, not all_nodes
    ctx.exit(_show_script(pilots) if dry_run else _launch_on_slurm(context, pilots, wait=wait))


def _launch_here(context: StudyContext, options: PilotOptions, workers: int | None, *, wait: bool) -> int:
    import msgspec

    from orchestrator.cluster.launch.local import LocalPilots, default_workers, stop_local_workers

    wanted = workers or default_workers()
    threads = options.threads or max(1, len(os.sched_getaffinity(0)) // wanted)
    options = msgspec.structs.replace(options, database=url_for_workers(context), threads=threads)
    pilots = LocalPilots(store=context.store(waits=wait), options=options, wanted=wanted)

    def report_started(added: int) -> None:
        if added:
            click.echo(f"{counted(added, 'worker')} started on this machine; logs in {options.paths.logs}")
        else:
            click.echo("no worker is missing: enough are active or starting here")

    def stop_workers() -> str:
        signalled = counted(stop_local_workers(options.paths.logs), "worker")
        return f"stopping: {signalled} asked to release their jobs; kt-study launch continues from there"

    return _launch(context, pilots, wait=wait, started=report_started, interrupted=stop_workers)


def url_for_workers(context: StudyContext) -> str:
    """The database's URL for submitit's pickle. Empty if it contains a secret: then it is in a private file."""
    from kt_study.database import SECRETS, parse_url
    from orchestrator.cluster.launch.private import prepare_study_folder

    if not parse_url(context.database_url).conninfo.keys() & set(SECRETS):
        return context.database_url
    prepare_study_folder(LaunchFiles(root=context.folder), context.database_url)
    return ""


def _slurm_pilots(
    context: StudyContext,
    options: PilotOptions,
    profile: Path | None,
    flags: dict[str, Any],
    workers: int | None,
    max_submitted: int,
    *,
    waits: bool = False,
) -> SlurmPilots:
    """The pilots that the options ask for, checked against the cluster. Raises SlurmError and UsageError."""
    import msgspec

    from orchestrator.cluster.launch.request import completed_request, has_only_fake_gpus, read_request
    from orchestrator.cluster.launch.slurm import SlurmPilots
    from orchestrator.cluster.slurm.cluster import read_cluster

    request = read_request(profile, flags)
    cluster = read_cluster()
    request = completed_request(request, cluster, options.device)
    nodes = cluster.nodes_of(*cluster.partitions_of(request.partition))
    gpus = sum(node.gpus for node in nodes)
    notes = []
    if options.device == "auto" and has_only_fake_gpus(nodes):
        notes.append(f"the GPUs of partition {request.partition!r} are fake: workers compute on the CPU (--device cpu)")
    return SlurmPilots(
        store=context.store(waits=waits),
        options=msgspec.structs.replace(
            options,
            gpus=request.gpus,
            margin_s=float(request.warning_s),
            grace_s=min(options.grace_s, max(1.0, cluster.kill_wait_s - _LAST_WRITE_S)),
            linger_s=max(options.linger_s, cluster.kill_wait_s + 60.0),
        ),
        request=request,
        cluster=cluster,
        database_url=context.database_url,
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
    except SlurmError as error:
        allocations, why_none = 0, str(error)
    package = pilots.package(
        allocations=max(1, allocations), token="TOKEN", excluded=pilots.excluded(pilots.view()), marker="MARKER"
    )
    click.echo(script(package))
    for note in pilots.notes:
        click.echo(note, err=True)
    if not allocations:
        click.echo(f"{why_none}: nothing would be submitted now; this is the script of one allocation", err=True)
    click.echo("dry run: nothing submitted", err=True)
    return 0


def _launch_on_slurm(context: StudyContext, pilots: SlurmPilots, *, wait: bool) -> int:
    from orchestrator.cluster.launch.first_minute import watch_first_minute
    from orchestrator.terminal.outage import through_outages

    def report_started(added: int) -> None:
        if added:
            latest = pilots.launches()[-1]
            logs = pilots.options.paths.logs / latest.token
            click.echo(f"{counted(added, 'worker')} in Slurm job {latest.slurm_id}; logs in {logs}")
            watch_first_minute(pilots)
        else:
            click.echo(f"no worker is missing: {through_outages(pilots.present)} are active or in the queue")

    pilots.check()
    return _launch(
        context,
        pilots,
        wait=wait,
        started=report_started,
        interrupted=lambda: "the workers continue; kt-study status shows them, kt-study stop ends them",
    )


def _launch(
    context: StudyContext,
    pilots: LocalPilots | SlurmPilots,
    *,
    wait: bool,
    started: Callable[[int], None],
    interrupted: Callable[[], str],
) -> int:
    """Start the missing workers, and with `wait` follow them to the end. Returns the exit code.

    Args:
        context, pilots: the study and its workers.
        wait: wait for the database, and for the end of the study.
        started: called with the number of new workers.
        interrupted: called at Ctrl-C; returns what to print.
    """
    from orchestrator.cluster.launch.follow import Follower, Stopped
    from orchestrator.terminal.outage import through_outages

    store, options = pilots.store, pilots.options

    def is_stopped() -> bool:
        return last_stop(options.files) not in ("", options.after_stop)

    def attempt(step: Callable[[], T]) -> T:
        return through_outages(step) if wait else step()

    attempt(lambda: context.require_planned_here(store))
    attempt(pilots.maintain)
    attempt(store.expire)
    attempt(lambda: _prepare_notifications(context, store))
    added = attempt(pilots.start_missing)
    for note in pilots.notes:
        click.echo(note, err=True)
    workload = attempt(lambda: store.workload(context.name))
    if not added and not workload.running and not workload.ready_now and not workload.ready_later:
        return _print_end(workload, "nothing to do")
    started(added)
    if not wait:
        click.echo("follow with: kt-study status --watch")
        return 0
    try:
        through_outages(pilots.wait_for_first)
        workload = Follower(store, context.name, pilots, is_stopped).until_done()
        notify.send_due(store, context.name, LaunchFiles(root=context.folder))
    except Stopped:
        click.echo("stopped by kt-study stop; kt-study launch continues from there", err=True)
        return 130
    except KeyboardInterrupt:
        click.echo(f"\n{interrupted()}", err=True)
        return 130
    return _print_end(workload, "complete")


def _prepare_notifications(context: StudyContext, store: JobStore) -> None:
    """Write the notification settings of the study file for the pilots."""
    channels = notify.channels_of(context.study.notify, context.folder)
    notify.prepare(LaunchFiles(root=context.folder), context.name, channels, store.workload(context.name))


def _print_end(workload: Workload, what: str) -> int:
    from orchestrator.cluster.launch.follow import describe, standstill, tell_failures

    stuck = standstill(workload)
    click.echo(f"nothing can run: {stuck}" if stuck else f"{what}: {describe(workload)}")
    if code := tell_failures(workload):
        return code
    if workload.done and not (stuck or workload.paused):
        click.echo("next: kt-study collect")
    return 0
