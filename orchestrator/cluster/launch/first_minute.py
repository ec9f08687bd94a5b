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
from orchestrator.cluster.slurm.endings import errors_by_node
from orchestrator.cluster.slurm.listing import QueuedJob

TIMEOUT_S = 90.0
PENDING_TIMEOUT_S = 4.0
REFRESH_S = 5.0


@dataclass(frozen=True, kw_only=True)
class _State:
    """The pilots of a launch so far."""

    queue: list[QueuedJob]
    usable_nodes: list[str]
    errors: dict[str, str]  # node -> why no pilot can work there
    has_unreported: bool  # whether jobs are queued or running that have not reported yet
    is_over: bool


def watch_first_minute(pilots: SlurmPilots) -> None:
    """Wait until a pilot of the latest launch works, and print it; or print why they wait.

    Raises:
        SlurmError: every pilot found that it cannot work on its node.
    """
    latest = pilots.launches()[-1]
    began = time.monotonic()
    pilots.view(fresh_s=0.0)
    while (waited := time.monotonic() - began) < TIMEOUT_S:
        time.sleep(1.0)
        state = _state(pilots, latest)
        if state.usable_nodes:
            _print_errors(state)
            click.echo(f"the first pilot works on {state.usable_nodes[0]}")
            return
        if state.errors and not state.has_unreported:
            _cancel(latest, state.errors)
        if state.queue and all(job.is_pending for job in state.queue) and waited > PENDING_TIMEOUT_S:
            _print_errors(state)
            reasons = sorted({job.reason for job in state.queue})
            click.echo(
                f"{len(state.queue)} jobs are pending ({', '.join(reasons)}); kt-study status shows when they start"
            )
            return
        if state.is_over and not state.queue:
            return  # there was little to do
    _print_errors(_state(pilots, latest))
    click.echo("no pilot works yet; kt-study status shows their progress")


def _state(pilots: SlurmPilots, latest: LaunchRecord) -> _State:
    view = pilots.view(fresh_s=REFRESH_S)
    queue = view.queue_of([latest.token])
    probes = records.probes(pilots.options.files, [latest])
    runs = [run for run in view.runs if run.token == latest.token]
    return _State(
        queue=queue,
        usable_nodes=sorted({probe.node for probe in probes if not probe.error}),
        errors=errors_by_node(runs, records.failed_nodes(probes), root=pilots.options.root, python=sys.executable),
        has_unreported=bool({job.job for job in queue} - {probe.slurm_job for probe in probes}),
        is_over=bool(runs) and all(run.is_over for run in runs),
    )


def _print_errors(state: _State) -> None:
    for node, line in sorted(state.errors.items()):
        click.echo(f"{node} cannot run a pilot: {printable(line)}", err=True)


def _cancel(latest: LaunchRecord, errors: dict[str, str]) -> None:
    run("scancel", "--name", latest.name)
    node, line = sorted(errors.items())[0]
    others = f"; {', '.join(sorted(errors)[1:])} cannot either" if len(errors) > 1 else ""
    raise SlurmError(f"no pilot can work: on {node}, {line}{others}; the launch is cancelled")
