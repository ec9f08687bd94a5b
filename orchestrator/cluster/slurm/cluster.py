"""The cluster's partitions, nodes and limits that a launch checks before it submits anything."""

from __future__ import annotations

import re

from kt_study import scontrol
from kt_study.errors import SlurmError
from kt_study.nearest import nearest
from kt_study.records import Record
from orchestrator.cluster.slurm.commands import run

UNLIMITED = 0
FAKE = "gpu:fake:"
"""The prefix of the generic resources of a node whose GPUs are links to /dev/null, as slurm/dev_cluster configures them."""


class Partition(Record, frozen=True, kw_only=True):
    """A partition. `longest_min` is 0 for no limit."""

    name: str
    is_default: bool
    is_up: bool
    longest_min: int


class Node(Record, frozen=True, kw_only=True):
    """A node's size and address."""

    name: str
    host: str
    address: str
    cpus: int
    memory_mib: int
    gpus: int
    partitions: tuple[str, ...]
    has_fake_gpus: bool = False  # as on the development cluster: Slurm counts them, but they cannot compute


class Cluster(Record, frozen=True, kw_only=True):
    """Partitions, nodes and limits, from `scontrol show`."""

    partitions: tuple[Partition, ...]
    nodes: tuple[Node, ...]
    largest_array: int  # array indices go from 0 to one less
    kill_wait_s: int

    def partition(self, name: str) -> Partition:
        """The partition of that name, or the default one for an empty name. Raises SlurmError."""
        for partition in self.partitions:
            if partition.name == name or (not name and partition.is_default):
                return partition
        names = ", ".join(partition.name for partition in self.partitions)
        if not name:
            raise SlurmError(f"this cluster has no default partition; give --partition, one of {names}")
        hint = nearest(name, [partition.name for partition in self.partitions])
        raise SlurmError(f"no partition {name!r} on this cluster{hint} (--partition may be {names})")

    def partitions_of(self, names: str) -> tuple[Partition, ...]:
        """The partitions of a comma-separated list; the default one for an empty list. Raises SlurmError."""
        return tuple(self.partition(name.strip()) for name in names.split(","))

    def nodes_of(self, *partitions: Partition) -> tuple[Node, ...]:
        """The nodes of these partitions, without duplicates."""
        names = {partition.name for partition in partitions}
        return tuple(node for node in self.nodes if names & set(node.partitions))


def read_cluster() -> Cluster:
    """Query slurmctld. Raises SlurmError."""
    config = dict(re.findall(r"^(\w+)\s*=\s*(.*?)\s*$", run("scontrol", "show", "config"), re.MULTILINE))
    return Cluster(
        partitions=tuple(map(_partition, scontrol.records(run("scontrol", "--all", "-o", "show", "partition")))),
        nodes=tuple(map(_node, scontrol.records(run("scontrol", "--all", "-o", "show", "node")))),
        largest_array=int(config.get("MaxArraySize", "1001")),
        kill_wait_s=int(config.get("KillWait", "30 sec").split()[0]),
    )


def minutes(text: str) -> int:
    """A time limit in Slurm's format, in minutes, rounded up; 0 for UNLIMITED.

    The format is minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes or days-hours:minutes:seconds.

    Raises:
        SlurmError: another format.
    """
    if text.upper() in ("UNLIMITED", "NONE", "INFINITE"):
        return UNLIMITED
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", text):
        raise SlurmError(f"cannot read the time {text!r}; write minutes, HH:MM:SS or D-HH:MM:SS")
    days, dash, rest = text.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:
        hours, mins, seconds = [*parts, 0, 0][:3]
    elif len(parts) == 3:
        hours, mins, seconds = parts
    else:
        hours, mins, seconds = 0, parts[0], parts[1] if len(parts) == 2 else 0
    return (int(days or 0) * 24 + hours) * 60 + mins + -(-seconds // 60)


def _partition(fields: dict[str, str]) -> Partition:
    return Partition(
        name=fields["PartitionName"],
        is_default=fields.get("Default") == "YES",
        is_up=fields.get("State", "UP") == "UP",
        longest_min=minutes(fields.get("MaxTime", "UNLIMITED")),
    )


def _node(fields: dict[str, str]) -> Node:
    return Node(
        name=fields["NodeName"],
        host=fields.get("NodeHostName", fields["NodeName"]),
        address=fields.get("NodeAddr", fields["NodeName"]),
        cpus=int(fields.get("CPUTot", "0")),
        memory_mib=int(fields.get("RealMemory", "0")),
        gpus=count_gpus(fields.get("Gres", "")),
        partitions=tuple(fields.get("Partitions", "").split(",")),
        has_fake_gpus=FAKE in fields.get("Gres", ""),
    )


def count_gpus(gres: str) -> int:
    """GPUs among generic resources, e.g. 7 in `gpu:a100:4(S:0,1),gpu:t4:no_consume:2,gpu`."""
    entries = [entry.split(":") for entry in re.sub(r"\(.*?\)", "", gres).split(",")]
    return sum(int(words[-1]) if words[-1].isdigit() else 1 for words in entries if words[0] == "gpu")
