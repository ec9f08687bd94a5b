"""Checks of Slurm from this machine: version, partitions, limits, accounting."""

from __future__ import annotations

import getpass
import shutil
from collections.abc import Iterator

from kt_study.errors import SlurmError
from orchestrator.cluster.doctor.findings import Finding, note, ok, wrong
from orchestrator.cluster.slurm.cluster import Cluster, Partition, read_cluster
from orchestrator.cluster.slurm.commands import LOOK_AT, run
from orchestrator.terminal.spans import span

_LIMITS = ("MaxJobs", "MaxSubmit", "MaxWall", "GrpTRES")


def has_slurm() -> bool:
    """Whether Slurm's commands are installed here."""
    return shutil.which("sinfo") is not None


def slurm() -> Iterator[Finding]:
    """Version, partitions, limits and accounting."""
    if not has_slurm():
        yield note("slurm", "no Slurm commands here; kt-study launch uses this machine")
        return
    try:
        version, cluster = run("sinfo", "--version").strip(), read_cluster()
    except SlurmError as error:
        yield wrong("slurm", str(error), "" if "scontrol ping" in str(error) else LOOK_AT)
        return
    limits = f"arrays of up to {cluster.largest_array} jobs, {cluster.kill_wait_s} s from SIGTERM to SIGKILL"
    yield ok("slurm", f"{version}, {limits}")
    yield from (_partition(cluster, partition) for partition in cluster.partitions)
    yield from _account()
    yield _accounting()


def _partition(cluster: Cluster, partition: Partition) -> Finding:
    nodes = cluster.nodes_of(partition)
    cores, memory = max((node.cpus for node in nodes), default=0), max((node.memory_mib for node in nodes), default=0)
    gpus = sum(node.gpus for node in nodes)
    longest = f"at most {span(60.0 * partition.longest_min)}" if partition.longest_min else "without a time limit"
    found = (
        f"{partition.name}{' (default)' if partition.is_default else ''}: {len(nodes)} nodes of up to {cores} "
        f"cores and {memory / 1024:.0f} GiB, {gpus or 'no'} GPUs, {longest}"
    )
    if not partition.is_up:
        return note("partition", found, "it is down; ask your cluster's staff")
    return ok("partition", found) if nodes else note("partition", found)


def _account() -> Iterator[Finding]:
    """The user's accounts and their limits, if the cluster has them."""
    fields = ("Account", "QOS", *_LIMITS)
    try:
        out = run("sacctmgr", "-nP", "show", "assoc", f"user={getpass.getuser()}", f"format={','.join(fields)}")
    except SlurmError as error:
        yield note("account", f"unknown: {error}")
        return
    for line in out.splitlines():
        account, qos, *limits = (line.split("|") + [""] * len(fields))[: len(fields)]
        given = [f"{name} {value}" for name, value in zip(_LIMITS, limits, strict=True) if value]
        yield ok("account", f"{account}, qos {qos or 'none'}, {', '.join(given) or 'no limits'}")


def _accounting() -> Finding:
    try:
        run("sacct", "--noheader", "--allocations", "--starttime=now")
    except SlurmError as error:
        effect = "dead workers are then detected by their leases only, and nodes on which they die are not excluded"
        return note("accounting", str(error), effect)
    return ok("accounting", "sacct answers")
