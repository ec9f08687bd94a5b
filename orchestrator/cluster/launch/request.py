"""The request to Slurm: a site profile and command-line options, checked against the cluster before sbatch."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, field

from kt_study.errors import SlurmError, UsageError
from kt_study.files import read_text
from kt_study.records import Record
from orchestrator.cluster.slurm.cluster import Cluster, Node, Partition, count_gpus, minutes

DEFAULT_TIME_MIN = 240
LONGEST_WARNING_S, SHORTEST_WARNING_S = 90, 10

Count = Annotated[int, Meta(ge=1)]
GpuCount = Annotated[int, Meta(ge=0)] | Annotated[str, Meta(pattern=r"^([\w.-]+:)?\d+$")]

_DECIDED = ("nodes", "ntasks", "ntasks-per-node", "job-name", "array", "output", "error", "open-mode", "signal",
            "requeue", "no-requeue", "wckey", "gpus", "gpus-per-task")  # fmt: skip
"""Options of sbatch that a profile cannot set: the pilots depend on them."""


class SlurmRequest(Record, frozen=True, kw_only=True):
    """One allocation, and how many pilots share it. The cluster's defaults apply to missing values, except time and GPUs."""

    partition: str = ""  # the cluster's default if empty; any of a comma-separated list
    account: str = ""
    qos: str = ""
    constraint: str = ""  # features of nodes, as in sbatch --constraint
    time: str | int = ""  # of one allocation; the lesser of 4 hours and the partition's limit if empty
    mem: str | Annotated[int, Meta(ge=0)] = ""  # of a node, as in sbatch --mem
    cpus_per_task: Count | None = None  # of a pilot
    gpus_per_node: GpuCount | None = None  # of an allocation, 2 or "a100:2"; 1 where the partition has GPUs
    gres: str = ""  # as in sbatch --gres, for sites that request GPUs in this way
    workers_per_gpu: Count = 1
    exclude: str = ""  # nodes, as in sbatch --exclude
    setup: tuple[str, ...] = ()  # shell lines before the pilot
    sbatch: dict[str, str | int | bool] = field(default_factory=dict)  # other options; true for one without a value

    @property
    def gpus(self) -> int:
        """GPUs of one allocation, of any type."""
        if self.gpus_per_node is None:
            return count_gpus(self.gres)
        return int(str(self.gpus_per_node).rpartition(":")[2])

    @property
    def other_options(self) -> dict[str, str | int | bool]:
        """The options of the table [sbatch] in sbatch's spelling, without those that are false."""
        return {name.replace("_", "-"): value for name, value in self.sbatch.items() if value is not False}

    @property
    def pilots_each(self) -> int:
        """Pilots in one allocation."""
        return max(1, self.gpus) * self.workers_per_gpu

    @property
    def time_min(self) -> int:
        """The time limit of one allocation in minutes. Raises SlurmError."""
        return DEFAULT_TIME_MIN if self.time == "" else minutes(str(self.time))

    @property
    def warning_s(self) -> int:
        """Seconds before the time limit at which the pilots must stop."""
        return warning_of(self.time_min)


def warning_of(time_min: int) -> int:
    """Seconds before the end of an allocation of `time_min` minutes at which its pilots must stop."""
    return min(LONGEST_WARNING_S, max(SHORTEST_WARNING_S, 60 * time_min // 6))


def read_request(profile: Path | None, flags: Mapping[str, Any]) -> SlurmRequest:
    """The profile's settings, overridden by the flags that are not None.

    Raises:
        UsageError: no such profile, not TOML, an unknown or ill-typed key, or one in the wrong table.
    """
    settings: dict[str, Any] = {}
    if profile is not None:
        try:
            settings = tomllib.loads(read_text(profile))
        except FileNotFoundError:
            raise UsageError(f"{profile}: no such profile; slurm/example.toml is an example") from None
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise UsageError(f"{profile}: {error}") from error
    settings |= {name: value for name, value in flags.items() if value is not None}
    try:
        request = msgspec.convert(settings, SlurmRequest)
    except msgspec.ValidationError as error:
        keys = ", ".join(SlurmRequest.__struct_fields__)
        raise UsageError(f"{profile or 'the options'}: {error}; a profile has {keys}") from error
    own = {name.replace("_", "-") for name in SlurmRequest.__struct_fields__}
    for name in request.other_options:
        if name in own or name in _DECIDED:
            reason = "it is a key of the profile itself" if name in own else "kt-study decides it"
            raise UsageError(f"{profile}: {name!r} is not allowed in the table [sbatch]: {reason}")
    return request


def completed_request(request: SlurmRequest, cluster: Cluster, device: str) -> SlurmRequest:
    """The request with missing values filled from the cluster, if the cluster can ever fulfil it.

    Raises:
        SlurmError: an unknown partition, one that is down, more time, GPUs, cores or memory than it has, or fake GPUs.
    """
    partitions = cluster.partitions_of(request.partition)
    nodes = cluster.nodes_of(*partitions)
    gpus = request.gpus_per_node
    if gpus is None and not request.gpus:
        gpus = int(device != "cpu" and any(node.gpus and not node.has_fake_gpus for node in nodes))
    time_min = request.time_min
    limits = [partition.longest_min for partition in partitions if partition.longest_min]
    if request.time == "":
        time_min = min([time_min, *limits])
    names = ",".join(partition.name for partition in partitions)
    wanted = msgspec.structs.replace(request, partition=names, gpus_per_node=gpus, time=time_min)
    for partition in partitions:
        _check_partition(wanted, partition, cluster.nodes_of(partition))
    _check_nodes(wanted, nodes)
    if needs_gpu(device, wanted.gpus) and has_only_fake_gpus(nodes):
        raise SlurmError(f"the GPUs of partition {names!r} are fake and cannot compute; launch with --device cpu")
    return wanted


def has_only_fake_gpus(nodes: Sequence[Node]) -> bool:
    """Whether nodes have GPUs, and none that can compute, as on the development cluster."""
    return any(node.gpus for node in nodes) and all(node.has_fake_gpus for node in nodes if node.gpus)


def needs_gpu(device: str, gpus: int) -> bool:
    """Whether pilots with that `--device`, in allocations with so many GPUs, need a GPU to work."""
    return device == "cuda" or (device != "cpu" and gpus > 0)


def _check_partition(request: SlurmRequest, partition: Partition, nodes: tuple[Node, ...]) -> None:
    where, longest = f"partition {partition.name!r}", partition.longest_min
    if not partition.is_up:
        raise SlurmError(f"{where} is down; ask your cluster's staff, or give another --partition")
    if not request.time_min:
        bound = f"allows {longest} min at most" if longest else "has no limit of its own"
        raise SlurmError(f"--time must be longer than 0 and finite, since pilots stop in time; {where} {bound}")
    if longest and request.time_min > longest:
        raise SlurmError(f"{where} allows {longest} min at most, and --time asks for {request.time_min}")
    if not nodes:
        raise SlurmError(f"{where} has no nodes")


def _check_nodes(request: SlurmRequest, nodes: tuple[Node, ...]) -> None:
    where, tasks = f"partition {request.partition!r}", request.pilots_each
    cores, memory = tasks * (request.cpus_per_task or 1), _mebibytes(str(request.mem))
    for asked, most, what, option in (
        (request.gpus, max(node.gpus for node in nodes), "GPUs", "--gpus-per-node"),
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
