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
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from kt_study.errors import DiskError, EnvironmentUnusable
from kt_study.failures import is_disk_full
from kt_study.files import current_umask, private_folder
from kt_study.pilots import PilotOptions
from kt_study.store import WorkerRow
from orchestrator.cluster.launch.live import live_workers, local_processes, missing_workers, starting_workers
from orchestrator.cluster.launch.lock import launch_lock

if TYPE_CHECKING:
    from kt_study.store import JobStore

_REGISTER_TIMEOUT_S = 60.0  # a new worker takes seconds to import torch and register
_A_YEAR_MIN = 60 * 24 * 365


@dataclass(kw_only=True)
class LocalPilots:
    """The workers of one study on this machine. Workers of the study elsewhere count as well."""

    store: JobStore
    options: PilotOptions
    wanted: int
    notes: list[str] = field(default_factory=list)
    _before: frozenset[str] = frozenset()  # ids of the workers that were registered before the last start

    def all_gone(self) -> bool:
        """Whether no worker is active or starting."""
        return not starting_workers(self.store, self.options) and not self._live()

    def maintain(self) -> None:
        """Nothing to do: dead workers are found by their processes and leases."""

    def start_missing(self) -> int:
        """Start the missing workers; returns how many.

        Raises:
            EnvironmentUnusable: the processes could not be started, or another launch is running (AnotherLaunch).
        """
        with launch_lock():
            # First: a worker that registers in between is counted twice, not missed.
            starting = starting_workers(self.store, self.options)
            present = len(starting) + len(self._live())
            count = missing_workers(self.store, self.options.study, self.wanted, present)
            if count:
                self._before = frozenset(worker.id for worker in self.store.workers())
                start_local_workers(self.options, count, first=present)
        return count

    def wait_for_first(self) -> None:
        """Wait until a worker has registered, even if it has exited since, or a minute has passed."""
        limit = time.monotonic() + _REGISTER_TIMEOUT_S
        while time.monotonic() < limit and not self._live():
            if any(worker.id not in self._before for worker in self.store.workers()):
                return
            time.sleep(0.5)

    def _live(self) -> list[WorkerRow]:
        return live_workers(self.store, self.options)


def stop_local_workers(logs: Path) -> int:
    """Signal the local workers of the study with these logs to release their jobs and exit. Returns how many.

    submitit's process passes the signal on to its worker, so this works while the database is down.
    """
    signalled = 0
    for process in local_processes(logs):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, signal.SIGTERM)
            signalled += 1
    return signalled


def start_local_workers(options: PilotOptions, count: int, *, first: int = 0) -> None:
    """Start `count` workers in the background; worker k uses GPU (first + k) modulo the GPUs here.

    Raises:
        EnvironmentUnusable: the processes could not be started.
        DiskError: the disk is full, or the folder of the logs cannot be created.
        UntrustedFile: that folder belongs to another account.
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
    with tempfile.TemporaryFile() as output:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _STARTER, str(Path(__file__).resolve().parents[3])],
            input=msgspec.json.encode(request),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            check=False,
            umask=0o077,
            env={**os.environ, "PYTHONSAFEPATH": "1"},  # no module from the current folder of `launch`
        )
        if done.returncode:
            output.seek(0)
            last = output.read().decode(errors="replace").strip().splitlines()[-1:]
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
    """Number of GPUs of this machine, by nvidia-smi; 0 without nvidia-smi."""
    if not shutil.which("nvidia-smi"):
        return 0
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False)
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines())


def default_workers() -> int:
    """One worker per GPU, or one per two cores."""
    return gpu_count() or max(1, len(os.sched_getaffinity(0)) // 2)
