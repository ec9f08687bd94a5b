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
"""How a node's generic resources begin where its GPUs are links to /dev/null: slurm/dev_cluster names that type so."""


class Partition(Record, frozen=True, kw_only=True):
    """A partition. `longest_min` is 0 for no limit."""

    name: str
    is_default: bool
    is_up: bool
    nodes: int
    longest_min: int
    default_min: int


class Node(Record, frozen=True, kw_only=True):
    """A node's size and where it is."""

    name: str
    host: str
    address: str
    cpus: int
    memory_mib: int
    gpus: int
    partitions: tuple[str, ...]
    has_fake_gpus: bool = False  # as on the development cluster: Slurm counts them, and nothing can compute on them


class Cluster(Record, frozen=True, kw_only=True):
    """What `scontrol show` says."""

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

    def chosen(self, names: str) -> tuple[Partition, ...]:
        """The partitions of a list with commas, any of which will do; the default one for none. Raises SlurmError."""
        return tuple(self.partition(name.strip()) for name in names.split(","))

    def nodes_of(self, *partitions: Partition) -> tuple[Node, ...]:
        """The nodes of some partitions, each once."""
        names = {partition.name for partition in partitions}
        return tuple(node for node in self.nodes if names & set(node.partitions))


def look_at_cluster() -> Cluster:
    """Ask slurmctld. Raises SlurmError."""
    config = dict(re.findall(r"^(\w+)\s*=\s*(.*?)\s*$", run("scontrol", "show", "config"), re.MULTILINE))
    return Cluster(
        partitions=tuple(map(_partition, scontrol.records(run("scontrol", "--all", "-o", "show", "partition")))),
        nodes=tuple(map(_node, scontrol.records(run("scontrol", "--all", "-o", "show", "node")))),
        largest_array=int(config.get("MaxArraySize", "1001")),
        kill_wait_s=int(config.get("KillWait", "30 sec").split()[0]),
    )


def minutes(text: str) -> int:
    """Slurm's spelling of a length of time, in whole minutes, rounded up; 0 for UNLIMITED.

    It is minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes or days-hours:minutes:seconds.

    Raises:
        SlurmError: none of these.
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


def _partition(facts: dict[str, str]) -> Partition:
    return Partition(
        name=facts["PartitionName"],
        is_default=facts.get("Default") == "YES",
        is_up=facts.get("State", "UP") == "UP",
        nodes=int(facts.get("TotalNodes", "0")),
        longest_min=minutes(facts.get("MaxTime", "UNLIMITED")),
        default_min=minutes(facts.get("DefaultTime", "NONE")),
    )


def _node(facts: dict[str, str]) -> Node:
    return Node(
        name=facts["NodeName"],
        host=facts.get("NodeHostName", facts["NodeName"]),
        address=facts.get("NodeAddr", facts["NodeName"]),
        cpus=int(facts.get("CPUTot", "0")),
        memory_mib=int(facts.get("RealMemory", "0")),
        gpus=count_gpus(facts.get("Gres", "")),
        partitions=tuple(facts.get("Partitions", "").split(",")),
        has_fake_gpus=FAKE in facts.get("Gres", ""),
    )


def count_gpus(gres: str) -> int:
    """GPUs among generic resources, e.g. 7 in `gpu:a100:4(S:0,1),gpu:t4:no_consume:2,gpu`."""
    entries = [entry.split(":") for entry in re.sub(r"\(.*?\)", "", gres).split(",")]
    return sum(int(words[-1]) if words[-1].isdigit() else 1 for words in entries if words[0] == "gpu")
