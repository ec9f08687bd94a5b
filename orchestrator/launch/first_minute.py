"""The first minute of a launch: do the pilots find what they need on their nodes? Each of them looks, before it works.

A probe job of its own would wait in the queue twice and look at one node only.
"""

from __future__ import annotations

import sys
import time

import click

from kt_study.errors import SlurmError
from orchestrator.launch import records
from orchestrator.launch.slurm import SlurmCrew
from orchestrator.slurm.commands import run
from orchestrator.slurm.endings import by_node, is_fault_of_node

PATIENCE_S = 90.0
PENDING_PATIENCE_S = 15.0
LOOK_EVERY_S = 5.0


def watch_first_minute(crew: SlurmCrew) -> None:
    """Wait until a pilot of the latest launch works, and say so; or say why they wait.

    Raises:
        SlurmError: every pilot that started found that it cannot work on its node; those in the queue are cancelled.
    """
    latest = crew.launches()[-1]
    began = time.monotonic()
    while time.monotonic() - began < PATIENCE_S:
        time.sleep(1.0)
        view = crew.view(fresh_s=LOOK_EVERY_S)
        queue = view.queue_of([latest.token])
        said = {probe.slurm_job: probe for probe in records.probes(crew.options.files, [latest])}
        runs = [found for found in view.runs if found.token == latest.token]
        told = {job: f"{probe.trouble}" for job, probe in said.items()}
        troubles = by_node(runs, told, root=crew.options.root, python=sys.executable)
        troubles |= {probe.node: probe.trouble for probe in said.values() if probe.trouble}
        working = sorted({probe.node for probe in said.values() if not probe.trouble})
        for node, line in sorted(troubles.items()) if working else ():
            click.echo(f"{node} cannot run a pilot: {line}", err=True)
        if working:
            click.echo(f"the first pilot works on {working[0]}")
            return
        if troubles and not any(job.state == "RUNNING" for job in queue):
            _give_up(latest.name, troubles)
        if queue and all(job.is_pending for job in queue) and time.monotonic() - began > PENDING_PATIENCE_S:
            reasons = sorted({job.reason for job in queue})
            click.echo(f"{len(queue)} jobs are pending ({', '.join(reasons)}); kt-study status shows when they start")
            return
        if not queue and runs and all(found.is_over and not is_fault_of_node(found) for found in runs):
            return
    click.echo("no pilot has reported yet; kt-study status shows what becomes of them")


def _give_up(name: str, troubles: dict[str, str]) -> None:
    run("scancel", "--name", name)
    node, line = sorted(troubles.items())[0]
    more = f" (and so on {len(troubles) - 1} more nodes)" if len(troubles) > 1 else ""
    raise SlurmError(f"no pilot can work: on {node}{more}, {line}; the launch is cancelled")
