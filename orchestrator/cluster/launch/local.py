"""Workers on this machine, through submitit's local executor.

submitit's controllers must outlive `kt-study launch` and its terminal, so a helper process in a new session starts them and
exits.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from kt_study.errors import DiskError, EnvironmentUnusable
from kt_study.failures import is_disk_full
from kt_study.files import current_umask, private_folder
from kt_study.pilots import PilotOptions
from kt_study.store import WorkerRow
from orchestrator.cluster.launch.live import live_workers, missing_workers, started_here, starting_workers
from orchestrator.cluster.launch.lock import only_launch

if TYPE_CHECKING:
    from kt_study.store import JobStore

_START_PATIENCE_S = 60.0  # a new worker takes seconds to import torch and enlist
_A_YEAR_MIN = 60 * 24 * 365


@dataclass(kw_only=True)
class LocalPilots:
    """The workers of one study on this machine. Those of the study that others started elsewhere count as well."""

    store: JobStore
    options: PilotOptions
    wanted: int
    _before: frozenset[str] = frozenset()  # workers that had enlisted when the last ones were started

    def is_alone(self) -> bool:
        """Whether no worker lives, or is about to."""
        return not starting_workers(self.store, self.options) and not self._live()

    def tend(self) -> None:
        """Nothing to do: dead workers are found by their processes and leases."""

    def add(self) -> int:
        """Start the missing workers; returns how many.

        Raises:
            EnvironmentUnusable: the processes could not be started, or another launch is at work (AnotherLaunch).
        """
        with only_launch():
            starting = starting_workers(
                self.store, self.options
            )  # first: who registers meanwhile counts twice, not never
            present = len(starting) + len(self._live())
            count = missing_workers(self.store, self.options.study, self.wanted, present)
            if count:
                self._before = frozenset(worker.id for worker in self.store.workers())
                start_local_workers(self.options, count, first=present)
        return count

    def wait_for_first(self) -> None:
        """Until a worker has enlisted, also one that has left since, or a minute has passed."""
        limit = time.monotonic() + _START_PATIENCE_S
        while time.monotonic() < limit and not (self._live() or self._enlisted()):
            time.sleep(0.5)

    def _enlisted(self) -> bool:
        return any(worker.id not in self._before for worker in self.store.workers())

    def stop(self) -> int:
        """Ask the workers that launches have started here to give their jobs back and leave. Returns how many were asked."""
        return stop_here(self.options.paths.logs)

    def _live(self) -> list[WorkerRow]:
        return live_workers(self.store, self.options)


def stop_here(logs: Path) -> int:
    """Ask the workers that launches have started here for the study with these logs to leave. Returns how many.

    Who runs them passes the signal on, so that the database need not be there to say which they are.
    """
    asked = 0
    for started in started_here(logs):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(started.pid, signal.SIGTERM)
            asked += 1
    return asked


def start_local_workers(options: PilotOptions, count: int, *, first: int = 0) -> None:
    """Start `count` workers in the background; worker k uses GPU (first + k) modulo the GPUs here.

    Raises:
        DiskError: the disk is full.
        EnvironmentUnusable: the processes could not be started.
        DiskError, UntrustedFile: the folder of their logs cannot be made, or belongs to another account.
    """
    try:
        _start(options, count, first)
    except (OSError, EnvironmentUnusable) as error:
        if is_disk_full(error):
            raise DiskError(f"cannot start workers on this machine: {error}; free space") from error
        raise


def _start(options: PilotOptions, count: int, first: int) -> None:
    private_folder(options.paths.logs, below=options.paths.root)
    options = msgspec.structs.replace(options, umask=current_umask())
    request = {"options": msgspec.to_builtins(options), "count": count, "first": first}
    with tempfile.TemporaryFile() as said:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _STARTER, str(Path(__file__).resolve().parents[3])],
            input=msgspec.json.encode(request),
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            check=False,
            umask=0o077,
            env={**os.environ, "PYTHONSAFEPATH": "1"},  # no module from the current folder of `launch`
        )
        if done.returncode:
            said.seek(0)
            last = said.read().decode(errors="replace").strip().splitlines()[-1:]
            raise EnvironmentUnusable(f"cannot start workers on this machine: {' '.join(last)}")


_STARTER = "import sys; sys.path.insert(0, sys.argv[1]); from orchestrator.cluster.launch.local import submit; submit()"


def submit() -> None:
    """In the helper process: read the request from standard input and submit the workers through submitit."""
    import submitit

    from kt_study.__main__ import start_pilot

    request = msgspec.json.decode(sys.stdin.buffer.read())
    options = msgspec.convert(request["options"], PilotOptions)
    gpus = gpu_count()
    folder = options.paths.logs / secrets.token_hex(4)  # submitit's own `%j` leaves a folder of that name behind
    for number in range(request["first"], request["first"] + request["count"]):
        executor = submitit.LocalExecutor(folder=folder)
        visible = (number % gpus,) if gpus and options.device != "cpu" else ()
        executor.update_parameters(
            timeout_min=_A_YEAR_MIN, gpus_per_node=len(visible), visible_gpus=visible, stderr_to_stdout=True
        )
        executor.submit(start_pilot, options)


def gpu_count() -> int:
    """GPUs of this machine, asked of nvidia-smi; 0 where there is none."""
    if not shutil.which("nvidia-smi"):
        return 0
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False)
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines())


def default_workers() -> int:
    """A worker for each GPU, or one for every two cores."""
    return gpu_count() or max(1, len(os.sched_getaffinity(0)) // 2)
