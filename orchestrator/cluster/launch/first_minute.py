"""The first minute of a launch: waits for the pilots' checks of their nodes, which each makes before it claims jobs.

A separate probe job would wait in the queue twice and check one node only.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

import click

from kt_study.errors import SlurmError
from kt_study.printable import printable
from orchestrator.cluster.launch import records
from orchestrator.cluster.launch.records import LaunchRecord
from orchestrator.cluster.launch.slurm import SlurmPilots
from orchestrator.cluster.slurm.commands import run
from orchestrator.cluster.slurm.endings import by_node
from orchestrator.cluster.slurm.listing import QueuedJob

PATIENCE_S = 90.0
PENDING_PATIENCE_S = 4.0
LOOK_EVERY_S = 5.0


@dataclass(frozen=True, kw_only=True)
class _Start:
    """How far a launch has come."""

    queue: list[QueuedJob]
    working: list[str]  # nodes on which a pilot found all it needs
    troubles: dict[str, str]  # node -> why no pilot can work there
    hopeful: set[str]  # jobs that are queued or running and have not reported yet
    is_known: bool  # whether Slurm has shown anything of it


def watch_first_minute(pilots: SlurmPilots) -> None:
    """Wait until a pilot of the latest launch works, and say so; or say why they wait.

    Raises:
        SlurmError: every pilot found that it cannot work on its node.
    """
    latest = pilots.launches()[-1]
    began = time.monotonic()
    pilots.view(fresh_s=0.0)
    while (waited := time.monotonic() - began) < PATIENCE_S:
        time.sleep(1.0)
        start = _look(pilots, latest)
        if start.working:
            _tell_troubles(start)
            click.echo(f"the first pilot works on {start.working[0]}")
            return
        if start.troubles and not start.hopeful:
            _give_up(latest, start.troubles)
        if start.queue and all(job.is_pending for job in start.queue) and waited > PENDING_PATIENCE_S:
            _tell_troubles(start)
            reasons = sorted({job.reason for job in start.queue})
            click.echo(
                f"{len(start.queue)} jobs are pending ({', '.join(reasons)}); kt-study status shows when they start"
            )
            return
        if start.is_known and not start.queue:
            return  # already over: there was little to do
    _tell_troubles(_look(pilots, latest))
    click.echo("no pilot works yet; kt-study status shows what becomes of them")


def _look(pilots: SlurmPilots, latest: LaunchRecord) -> _Start:
    view = pilots.view(fresh_s=LOOK_EVERY_S)
    queue = view.queue_of([latest.token])
    said = records.probes(pilots.options.files, [latest])
    runs = [found for found in view.runs if found.token == latest.token]
    return _Start(
        queue=queue,
        working=sorted({probe.node for probe in said if not probe.trouble}),
        troubles=by_node(runs, records.unfit_nodes(said), root=pilots.options.root, python=sys.executable),
        hopeful={job.job for job in queue} - {probe.slurm_job for probe in said},
        is_known=bool(runs) and all(found.is_over for found in runs),
    )


def _tell_troubles(start: _Start) -> None:
    for node, line in sorted(start.troubles.items()):
        click.echo(f"{node} cannot run a pilot: {printable(line)}", err=True)


def _give_up(latest: LaunchRecord, troubles: dict[str, str]) -> None:
    run("scancel", "--name", latest.name)
    node, line = sorted(troubles.items())[0]
    others = f"; {', '.join(sorted(troubles)[1:])} cannot either" if len(troubles) > 1 else ""
    raise SlurmError(f"no pilot can work: on {node}, {line}{others}; the launch is cancelled")
