"""`down`: stops the daemons that `up` started and their job steps, and nothing else."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from cluster import DAEMONS, Cluster
from processes import Process, end, parents, started_at


def down(cluster: Cluster, daemons: list[str]) -> list[str]:
    """Stop these daemons, or all of them with their jobs and job steps; returns the names of those that ran."""
    if daemons:
        return [daemon for daemon in daemons if stop(cluster, daemon)]
    cancel_jobs(cluster)
    stopped = [daemon for daemon in reversed(DAEMONS) if stop(cluster, daemon)]
    end(leftovers(cluster), patience_s=1.0)
    return stopped


def stop(cluster: Cluster, daemon: str) -> bool:
    """Stop one daemon. Returns whether it ran."""
    process = cluster.process(daemon)
    if process:
        end([process])
    cluster.record(daemon).unlink(missing_ok=True)
    return process is not None


def cancel_jobs(cluster: Cluster) -> None:
    """Cancel all jobs, so that the next `up` starts with an empty queue. Surviving steps are ended with the leftovers."""
    if cluster.process("slurmctld") and (jobs := cluster.query("squeue", "-h", "-o", "%A")):
        cluster.call("scancel", "--signal=KILL", "--full", *jobs)
        cluster.call("scancel", *jobs)


def leftovers(cluster: Cluster) -> list[Process]:
    """Job steps that outlived their slurmd, their tasks, and everything below them."""
    children: dict[int, list[int]] = {}
    for pid, parent in parents().items():
        children.setdefault(parent, []).append(pid)
    everyone = [pid for siblings in children.values() for pid in siblings]
    pending = [pid for pid in everyone if is_step(cluster, pid) or is_task(cluster, pid)]
    found: dict[int, Process] = {}
    while pending:
        pid = pending.pop()
        if pid not in found and pid != os.getpid() and (started := started_at(pid)):
            found[pid] = Process(pid=pid, started=started)
            pending += children.get(pid, [])
    return list(found.values())


def is_step(cluster: Cluster, pid: int) -> bool:
    """A slurmstepd keeps its node's log open. (Its environment cannot be read: it overwrites it with its title.)"""
    proc = Path(f"/proc/{pid}")
    with suppress(OSError):
        if (proc / "comm").read_text().strip() == "slurmstepd":
            return any(str(file.readlink()).startswith(f"{cluster.root}/log/") for file in (proc / "fd").iterdir())
    return False


def is_task(cluster: Cluster, pid: int) -> bool:
    """slurmstepd sets SLURM_TASK_PID for what it starts; the shell of an salloc does not have it."""
    with suppress(OSError):
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        ours = f"SLURM_CONF={cluster.slurm_conf}".encode() in environment
        return ours and any(entry.startswith(b"SLURM_TASK_PID=") for entry in environment)
    return False
