"""Records of launches on Slurm: the request before sbatch, and its result afterwards."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec

from kt_study.files import write_private
from kt_study.pilots import LEASE_S, LaunchFiles, Probe
from kt_study.records import Record
from kt_study.store import WorkerRow
from orchestrator.cluster.launch.request import needs_gpu, warning_of
from orchestrator.cluster.slurm.listing import NAME_PREFIX
from orchestrator.cluster.slurm.view import FRESH_S, SlurmView, current_view

MOST_RECENT = 50
"""Number of launches whose past runs are considered; those in the queue count however old they are."""


class LaunchRecord(Record, frozen=True, kw_only=True):
    """One sbatch. `slurm_id` is empty while it is unknown whether Slurm accepted it, "-" if it did not."""

    token: str
    study: str
    sent_at: float  # seconds since 1970
    allocations: int
    pilots_each: int
    gpus_each: int
    time_min: int
    done_before: int  # jobs of the study that were done at that time
    slurm_id: str = ""
    lease_s: float = LEASE_S  # of its pilots
    device: str = "auto"  # of its pilots, as requested

    @property
    def name(self) -> str:
        """The name of its Slurm job."""
        return job_name(self.study, self.token)

    @property
    def on_gpu(self) -> bool:
        """Whether its pilots needed a GPU."""
        return needs_gpu(self.device, self.gpus_each)

    @property
    def warning_s(self) -> int:
        """Seconds before the end of its allocations at which its pilots stop."""
        return warning_of(self.time_min)

    @property
    def is_unconfirmed(self) -> bool:
        """Whether it is unknown if Slurm accepted it."""
        return not self.slurm_id

    @property
    def was_accepted(self) -> bool:
        """Whether Slurm accepted it."""
        return self.slurm_id not in ("", "-")


def job_name(study: str, token: str) -> str:
    """The name of the Slurm job of a launch."""
    return f"{NAME_PREFIX}{study}-{token}"


def write(files: LaunchFiles, record: LaunchRecord) -> None:
    """Add or replace the record of a launch. Raises DiskError, UntrustedFile."""
    write_private(files.launch(record.token), msgspec.json.encode(record), below=files.root)


def launches(files: LaunchFiles, study: str) -> list[LaunchRecord]:
    """The study's launches, oldest first."""
    found = []
    for path in files.launches.glob("*.json"):
        try:
            found.append(msgspec.json.decode(path.read_bytes(), type=LaunchRecord))
        except (OSError, msgspec.MsgspecError):
            continue
    ours = [record for record in found if record.study == study]
    return sorted(ours, key=lambda record: record.sent_at)


def recent(launches: Sequence[LaunchRecord]) -> Sequence[LaunchRecord]:
    """The launches whose past runs are considered."""
    return launches[-MOST_RECENT:]


def view(files: LaunchFiles, launches: Sequence[LaunchRecord], *, fresh_s: float = FRESH_S) -> SlurmView:
    """The queue, and the past runs of recent launches. See `slurm.view.current_view`."""
    latest = recent(launches)
    since = min((record.sent_at for record in latest), default=time.time()) - 60.0
    return current_view(files, tuple(record.name for record in latest), since, fresh_s=fresh_s)


def token_of(worker: WorkerRow) -> str:
    """The token of the launch that started a worker, from the folder of its log."""
    return worker.log.rpartition("/")[0].rpartition("/")[2]


def failed_nodes(found: Sequence[Probe]) -> dict[str, str]:
    """The error of each node whose latest probe failed."""
    latest = {probe.node: probe.error for probe in found}
    return {node: line for node, line in latest.items() if line}


def probes(files: LaunchFiles, launches: Sequence[LaunchRecord], *, since: float = 0.0) -> list[Probe]:
    """The probes that pilots of these launches have written since a time, in the order of the launches."""
    found = []
    for record in launches:
        for path in sorted(files.probe(record.token, "*").parent.glob("*.json")):
            try:
                if path.stat().st_mtime >= since:
                    found.append(msgspec.json.decode(path.read_bytes(), type=Probe))
            except (OSError, msgspec.MsgspecError):
                continue
    return found
