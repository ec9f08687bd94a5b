"""A pilot's check of its node. The findings go to a file in the study folder, to the log, and into the exit code, which
Slurm keeps even if no file can be written.

The sbatch script has already checked the study folder and the Python of its virtual environment.
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING

import msgspec

from kt_study.database import files_of, parse_url
from kt_study.errors import DatabaseError, DiskError, EnvironmentUnusable, UntrustedFile
from kt_study.files import write_private
from kt_study.pilots import PilotOptions, Probe, ProbeExit
from kt_study.store import JobStore, open_store
from kt_study.trust import require_own_study
from worker.pilot.allocation import Allocation
from worker.pilot.signals import StopRequest

if TYPE_CHECKING:
    import torch

log = logging.getLogger("kt-study.worker")

DATABASE_PATIENCE_S = 20.0  # many pilots that start together may keep a server busy for a moment


class ProbeFailed(Exception):
    """This node cannot run a pilot: the exit code is for Slurm, the line for people."""

    def __init__(self, code: ProbeExit, line: str) -> None:
        super().__init__(line)
        self.code = code


def open_database(options: PilotOptions, allocation: Allocation, stop: StopRequest) -> JobStore:
    """The job store; under Slurm tried for some seconds.

    An account that can write the study folder or the database determines which code a pilot runs: only the caller may.

    Raises:
        ProbeFailed: no database, or other accounts may write its files.
    """
    deadline = time.monotonic() + (DATABASE_PATIENCE_S if allocation.job else 0.0)
    while True:
        try:
            url = options.database_url()
            require_own_study(options.paths.root, *files_of(parse_url(url)))
            store = open_store(url)
            if why := store.why_read_only:
                raise DatabaseError(f"database {store.url}{why}")
            return store
        except UntrustedFile as error:
            raise ProbeFailed(ProbeExit.UNTRUSTED, str(error)) from error
        except DatabaseError as error:
            if time.monotonic() > deadline or stop.wait(3.0):
                raise ProbeFailed(ProbeExit.NO_DATABASE, str(error)) from error


def choose_gpu(options: PilotOptions) -> None:
    """Leave this process one of its allocation's GPUs, by its number on the node. Call it before torch is loaded."""
    visible = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    if options.gpus > 1 and len(visible) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[int(os.environ.get("SLURM_LOCALID", "0")) % len(visible)]


def pick_device(name: str, *, gpus: int = 0) -> torch.device:
    """`auto` is a GPU if there is one; where Slurm allocated GPUs, it does not fall back to the CPU.

    Raises:
        ProbeFailed: a GPU was requested and torch sees none.
    """
    import torch

    if name == "cpu" or (name == "auto" and not gpus and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
        raise ProbeFailed(
            ProbeExit.NO_GPU,
            f"torch sees no GPU here (CUDA_VISIBLE_DEVICES is {visible}); request one with --gpus-per-node 1, check "
            "nvidia-smi on that node, or launch with --device cpu",
        )
    return torch.device("cuda")


class GpuLost(EnvironmentUnusable):
    """The GPU no longer responds in this process: every operation fails."""


def check_gpu(device: torch.device) -> None:
    """After an illegal access, a failed assertion or a memory error, a process cannot use CUDA again. Raises GpuLost."""
    import torch

    if device.type != "cuda":
        return
    try:
        torch.cuda.synchronize(device)
    except Exception as error:  # its class depends on the version of torch
        line = str(error).partition("\n")[0]
        raise GpuLost(f"the GPU no longer responds ({line}); check dmesg and nvidia-smi -q on its node") from error


def report(options: PilotOptions, allocation: Allocation, trouble: str = "") -> None:
    """Write the result of the probe to the study folder, for `launch` and `status`."""
    if not options.token or not allocation.job:
        return
    result = Probe(node=allocation.node, slurm_job=allocation.job, error=trouble)
    try:
        target = options.files.probe(options.token, allocation.job)
        write_private(target, msgspec.json.encode(result), below=options.files.root)
    except (DiskError, UntrustedFile) as error:
        log.warning("%s", error)
