"""What to ask Slurm for: a site profile and the command line's flags, checked against the cluster before sbatch."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from kt_study.errors import SlurmError, UsageError
from kt_study.words import Record
from orchestrator.slurm.cluster import Cluster, Node, Partition, minutes

DEFAULT_TIME_MIN = 240
LONGEST_WARNING_S, SHORTEST_WARNING_S = 90, 10

Count = Annotated[int, Meta(ge=1)]


class SlurmRequest(Record, frozen=True, kw_only=True):
    """One allocation, and how many pilots share it. What is left out is left to the cluster, but for time and GPUs."""

    partition: str = ""  # the cluster's default one when empty
    account: str = ""
    qos: str = ""
    constraint: str = ""  # features of nodes, as in sbatch --constraint
    time: str | int = ""  # of one allocation; the lesser of 4 hours and the partition's limit when empty
    mem: str = ""  # of a node, as in sbatch --mem
    cpus_per_task: Count | None = None  # of a pilot
    gpus_per_node: Annotated[int, Meta(ge=0)] | None = None  # of an allocation; 1 where the partition has GPUs
    workers_per_gpu: Count = 1
    exclude: str = ""  # nodes, as in sbatch --exclude
    setup: tuple[str, ...] = ()  # shell lines before the pilot

    @property
    def pilots_each(self) -> int:
        """Pilots in one allocation."""
        return max(1, self.gpus_per_node or 0) * self.workers_per_gpu

    @property
    def time_min(self) -> int:
        """The time limit of one allocation in minutes. Raises SlurmError."""
        return minutes(str(self.time)) if self.time else DEFAULT_TIME_MIN

    @property
    def warning_s(self) -> int:
        """Seconds before the time limit at which the pilots are to stop."""
        return warning_of(self.time_min)


def warning_of(time_min: int) -> int:
    """Seconds before the end of an allocation of `time_min` minutes at which its pilots are to stop."""
    return min(LONGEST_WARNING_S, max(SHORTEST_WARNING_S, 60 * time_min // 6))


def read_request(profile: Path | None, flags: Mapping[str, Any]) -> SlurmRequest:
    """The profile's settings, and over them the flags that were given (those that are not None).

    Raises:
        UsageError: no such profile, not TOML, or an unknown or ill-typed key.
    """
    settings: dict[str, Any] = {}
    if profile is not None:
        try:
            settings = tomllib.loads(profile.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UsageError(f"{profile}: no such profile; slurm/example.toml is one") from None
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise UsageError(f"{profile}: {error}") from error
    settings |= {name: value for name, value in flags.items() if value is not None}
    try:
        return msgspec.convert(settings, SlurmRequest)
    except msgspec.ValidationError as error:
        keys = ", ".join(SlurmRequest.__struct_fields__)
        raise UsageError(f"{profile or 'the options'}: {error}; a profile has {keys}") from error


def fitted(request: SlurmRequest, cluster: Cluster, device: str) -> SlurmRequest:
    """The request with its gaps filled from the cluster, after a look at whether the cluster can ever meet it.

    Raises:
        SlurmError: an unknown partition, one that is down, or more time, GPUs, cores or memory than it has.
    """
    partition = cluster.partition(request.partition)
    nodes = cluster.nodes_of(partition)
    gpus = request.gpus_per_node
    if gpus is None:
        gpus = int(device != "cpu" and any(node.gpus for node in nodes))
    time_min = request.time_min
    if not request.time and partition.longest_min:
        time_min = min(time_min, partition.longest_min)
    wanted = msgspec.structs.replace(request, partition=partition.name, gpus_per_node=gpus, time=time_min)
    _check(wanted, partition, nodes)
    return wanted


def _check(request: SlurmRequest, partition: Partition, nodes: tuple[Node, ...]) -> None:
    where = f"partition {partition.name!r}"
    if not partition.is_up:
        raise SlurmError(f"{where} is down; ask your cluster's staff, or give another --partition")
    if partition.longest_min and request.time_min > partition.longest_min:
        raise SlurmError(f"{where} allows {partition.longest_min} min at most; {request.time_min} were asked by --time")
    if not nodes:
        raise SlurmError(f"{where} has no nodes")
    tasks, gpus = request.pilots_each, request.gpus_per_node or 0
    cores, memory = tasks * (request.cpus_per_task or 1), _mebibytes(request.mem)
    for asked, most, what, option in (
        (gpus, max(node.gpus for node in nodes), "GPUs", "--gpus-per-node"),
        (cores, max(node.cpus for node in nodes), "cores", f"--cpus-per-task for {tasks} pilots on a node"),
        (memory, max(node.memory_mib for node in nodes), "MiB of memory", "--mem"),
    ):
        if asked > most:
            raise SlurmError(f"no node of {where} has {asked} {what}, the largest has {most}; lower {option}")


def _mebibytes(text: str) -> int:
    """sbatch's spelling of memory in MiB; 0 for the cluster's default and for "all of the node"."""
    if not text:
        return 0
    found = re.fullmatch(r"(\d+)([KMGT]?)B?", text.upper())
    if not found:
        raise SlurmError(f"cannot read --mem {text!r}; write 16G or 800M")
    factor = {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024**2}[found[2]]
    return int(int(found[1]) * factor)
