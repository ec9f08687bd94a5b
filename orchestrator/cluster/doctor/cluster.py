"""Checks of Slurm from this machine: version, partitions, limits, accounting."""

from __future__ import annotations

import getpass
import shutil
from collections.abc import Iterator

from kt_study.errors import SlurmError
from orchestrator.cluster.doctor.findings import Finding
from orchestrator.cluster.slurm.cluster import Cluster, Partition, look_at_cluster
from orchestrator.cluster.slurm.commands import LOOK_AT, run
from orchestrator.terminal.spans import span

_LIMITS = ("MaxJobs", "MaxSubmit", "MaxWall", "GrpTRES")


def has_slurm() -> bool:
    """Whether Slurm's commands are installed here."""
    return shutil.which("sinfo") is not None


def slurm() -> Iterator[Finding]:
    """Version, partitions, limits and accounting."""
    if not has_slurm():
        yield Finding(what="slurm", verdict="note", found="no Slurm commands here; kt-study launch uses this machine")
        return
    try:
        version, cluster = run("sinfo", "--version").strip(), look_at_cluster()
    except SlurmError as error:
        said = str(error)
        yield Finding(what="slurm", verdict="wrong", found=said, do="" if "scontrol ping" in said else LOOK_AT)
        return
    yield Finding(
        what="slurm",
        verdict="ok",
        found=f"{version}, arrays of up to {cluster.largest_array} jobs, {cluster.kill_wait_s} s from SIGTERM to SIGKILL",
    )
    yield from (_partition(cluster, partition) for partition in cluster.partitions)
    yield from _account()
    yield _accounting()


def _partition(cluster: Cluster, partition: Partition) -> Finding:
    nodes = cluster.nodes_of(partition)
    most = max((node.cpus for node in nodes), default=0), max((node.memory_mib for node in nodes), default=0)
    gpus = sum(node.gpus for node in nodes)
    longest = f"at most {span(60.0 * partition.longest_min)}" if partition.longest_min else "without a time limit"
    return Finding(
        what="partition",
        verdict="ok" if partition.is_up and nodes else "note",
        found=f"{partition.name}{' (default)' if partition.is_default else ''}: {len(nodes)} nodes of up to {most[0]} "
        f"cores and {most[1] / 1024:.0f} GiB, {gpus or 'no'} GPUs, {longest}",
        do="" if partition.is_up else "it is down; ask your cluster's staff",
    )


def _account() -> Iterator[Finding]:
    """The user's accounts and their limits, where the cluster has them."""
    fields = ("Account", "QOS", *_LIMITS)
    try:
        said = run("sacctmgr", "-nP", "show", "assoc", f"user={getpass.getuser()}", f"format={','.join(fields)}")
    except SlurmError as error:
        yield Finding(what="account", verdict="note", found=f"not known: {error}")
        return
    for line in said.splitlines():
        account, qos, *limits = (line.split("|") + [""] * len(fields))[: len(fields)]
        given = [f"{name} {value}" for name, value in zip(_LIMITS, limits, strict=True) if value]
        yield Finding(
            what="account", verdict="ok", found=f"{account}, qos {qos or 'none'}, {', '.join(given) or 'no limits'}"
        )


def _accounting() -> Finding:
    try:
        run("sacct", "--noheader", "--allocations", "--starttime=now")
    except SlurmError as error:
        return Finding(
            what="accounting",
            verdict="note",
            found=str(error),
            do="workers that die are then found by their leases alone, and nodes on which they die are not left out",
        )
    return Finding(what="accounting", verdict="ok", found="sacct answers")
