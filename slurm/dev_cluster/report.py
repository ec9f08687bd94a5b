"""`status`: daemons, versions, nodes, partitions, accounting."""

from __future__ import annotations

import shutil
from typing import Any

from cluster import DAEMONS, PATH, Cluster

NODE_FIELDS = {
    "name": "NodeName",
    "state": "State",
    "cpus": "CPUTot",
    "memory_mb": "RealMemory",
    "gres": "Gres",
    "port": "Port",
    "slurm": "Version",
}
PARTITION_FIELDS = {
    "name": "PartitionName",
    "default": "Default",
    "state": "State",
    "max_time": "MaxTime",
    "priority_tier": "PriorityTier",
    "preempt_mode": "PreemptMode",
    "grace_s": "GraceTime",
}
VERSION_COMMANDS = {
    "slurm": ("sinfo", "--version"),
    "mariadb": ("mariadbd", "--version"),
    "munge": ("munged", "--version"),
}


def status(cluster: Cluster) -> dict[str, Any]:
    """The content of `status --json`; a daemon that does not run has no pid."""
    processes = {daemon: cluster.process(daemon) for daemon in DAEMONS}
    serving = processes["slurmctld"] is not None
    nodes = records(cluster.query("scontrol", "-o", "show", "node"), NODE_FIELDS) if serving else []
    partitions = records(cluster.query("scontrol", "-o", "show", "partition"), PARTITION_FIELDS) if serving else []
    return {
        "dir": str(cluster.root),
        "slurm_conf": str(cluster.slurm_conf),
        "up": all(processes.values()) and bool(nodes) and not any("NOT_RESPONDING" in node["state"] for node in nodes),
        "daemons": {daemon: process.pid if process else None for daemon, process in processes.items()},
        "versions": versions(cluster),
        "nodes": nodes,
        "partitions": partitions,
        "accounting": accounting(cluster) if processes["slurmdbd"] else None,
    }


def versions(cluster: Cluster) -> dict[str, str]:
    """The versions of the installed programs."""
    installed = {name: argv for name, argv in VERSION_COMMANDS.items() if shutil.which(argv[0], path=PATH)}
    return {name: " ".join(cluster.query(*argv)) for name, argv in installed.items()}


def records(lines: list[str], fields: dict[str, str]) -> list[dict[str, str]]:
    """These fields of the output of `scontrol -o`, which has one object per line as KEY=VALUE, under our names."""
    found = []
    for line in lines:
        values = dict(word.split("=", 1) for word in line.split() if "=" in word)
        found.append({ours: values.get(theirs, "") for ours, theirs in fields.items()})
    return found


def accounting(cluster: Cluster) -> dict[str, Any]:
    return {
        "clusters": cluster.query("sacctmgr", "-nP", "show", "cluster", "format=cluster"),
        "accounts": cluster.query("sacctmgr", "-nP", "show", "account", "format=account"),
        "qos": cluster.query("sacctmgr", "-nP", "show", "qos", "format=name"),
    }


def print_status(report: dict[str, Any]) -> None:
    print(f"{'up' if report['up'] else 'not up'}: {report['dir']}")
    for daemon, pid in report["daemons"].items():
        print(f"  {daemon:<10} {pid or 'down'}")
    for node in report["nodes"]:
        print("  node {name}: {state}, {cpus} CPUs, {memory_mb} MiB, {gres}".format(**node))
    for partition in report["partitions"]:
        print("  partition {name}: {state}, at most {max_time}, {preempt_mode}, grace {grace_s} s".format(**partition))
    if report["accounting"]:
        print(f"  accounts {', '.join(report['accounting']['accounts'])}; qos {', '.join(report['accounting']['qos'])}")
