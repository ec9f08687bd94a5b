"""Submits an array of pilots to Slurm through submitit, once: if sbatch's answer is lost, the job is searched by name.

A helper process calls submitit, so that a hanging sbatch can be killed, and a batch job does not inherit private variables of
this process's environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from kt_study.errors import DiskError, SlurmError
from kt_study.files import current_umask, private_folder
from kt_study.pilots import HOLD_BAD_NODE_S, PilotOptions, ProbeExit
from kt_study.records import Record
from orchestrator.cluster.launch.request import SlurmRequest
from orchestrator.cluster.slurm import listing
from orchestrator.cluster.slurm.commands import environment, error_text, run

SEND_TIMEOUT_S = 180.0
SEARCH_S = 45.0
_REFUSED = 3  # exit code of the helper: sbatch refused
_UNKNOWN = ("timed out", "timeout", "unable to contact", "zero bytes", "communication", "connection", "did not answer")


class Package(Record, frozen=True, kw_only=True):
    """Everything that one sbatch needs."""

    options: PilotOptions
    request: SlurmRequest
    name: str  # of the Slurm job
    allocations: int
    exclude: tuple[str, ...] = ()  # nodes, in addition to the request's
    marker: str = ""  # of the study folder

    @property
    def folder(self) -> Path:
        """The folder of submitit's script and pickles and of the logs of this launch."""
        return self.options.paths.logs / self.options.token

    def parameters(self) -> dict[str, Any]:
        """Parameters of submitit's SlurmExecutor."""
        request, cores = self.request, self.request.cpus_per_task
        chosen = {name: getattr(request, name) for name in ("partition", "account", "qos", "constraint", "mem", "gres")}
        nodes = ",".join(part for part in (request.exclude, *self.exclude) if part)
        checks = node_check(self.options.root, self.marker, self.options.files.marker, pickles=self.folder)
        return {name: str(value) for name, value in chosen.items() if value != ""} | {
            **({"exclude": nodes} if nodes else {}),
            # srun ignores --cpus-per-task in the script since Slurm 22.05.
            **({"cpus_per_task": cores, "srun_args": [f"--cpus-per-task={cores}"]} if cores else {}),
            **({"gpus_per_node": request.gpus_per_node} if request.gpus_per_node and request.gpus else {}),
            "job_name": self.name,
            "time": request.time_min,
            "nodes": 1,
            "ntasks_per_node": request.pilots_each,
            "signal_delay_s": request.warning_s,
            "array_parallelism": self.allocations,
            "stderr_to_stdout": True,
            "wckey": None,
            "setup": [*request.setup, *checks],
            "additional_parameters": {**request.other_options, "requeue": True},
        }

    @property
    def options_set(self) -> tuple[str, ...]:
        """The options that the script sets, so that variables of the user's environment must not override them."""
        return (*self.parameters(), *self.request.other_options)


def node_check(
    root: str, marker: str, file: Path, *, pickles: Path | None = None, hold_s: int = HOLD_BAD_NODE_S
) -> list[str]:
    """Shell lines that check a node, and exit with a code of `ProbeExit` after `hold_s` seconds if a check fails.

    They check the study folder and the virtual environment, and that others can write neither the study folder nor the
    folder `pickles` and its files.
    """
    folder, python, file_ = shlex.quote(root), shlex.quote(sys.executable), shlex.quote(str(file))
    trusted = folder if pickles is None else f"{folder} {shlex.quote(str(pickles))}"
    echo, hold = "echo kt-study: $SLURMD_NODENAME:", f"sleep {hold_s}"
    check = "import submitit, sys; from kt_study.pilots import leave_if_untrusted; leave_if_untrusted(*sys.argv[1:])"
    return [
        f'if [ "$(cat {file_} 2>/dev/null)" != {marker} ]; then '
        f"{echo} {folder} is not the study folder; {hold}; exit {int(ProbeExit.NO_STUDY)}; fi",
        f'found=0; {python} -P -c "{check}" {trusted} || found=$?',
        f"if [ $found = {int(ProbeExit.UNTRUSTED)} ]; then {hold}; exit $found; fi",
        f"if [ $found != 0 ]; then {echo} no kt-study in {python}; {hold}; exit {int(ProbeExit.NO_PYTHON)}; fi",
    ]


def script(package: Package) -> str:
    """The sbatch script, as submitit writes it. Raises SlurmError without Slurm."""
    executor = _executor(package)
    if package.allocations > 1:
        executor.parameters["map_count"] = package.allocations
    text: str = executor._make_submission_file_text(executor._submitit_command_str, "")
    return text


def check(package: Package) -> None:
    """Let slurmctld check the script without submitting it. Raises SlurmError with its reason."""
    import tempfile

    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
        file.write(script(package))
        file.flush()
        run("sbatch", "--test-only", file.name, overridden=package.options_set)


def send(package: Package) -> str:
    """Submit the pilots. Returns the Slurm job's id.

    Raises:
        SlurmError: sbatch refused; nothing was submitted.
        UnknownSubmission: it may have been submitted. Do not submit it again before `find` has an answer.
        DiskError, UntrustedFile: the folder of its logs cannot be created, or belongs to another account.
    """
    private_folder(package.folder, below=package.options.paths.root)
    helper = subprocess.Popen(
        [sys.executable, "-P", "-c", _STARTER, str(Path(__file__).resolve().parents[3])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(package.options_set),
        start_new_session=True,
        umask=0o077,  # for the pickles and, through sbatch, the logs
    )
    options = msgspec.structs.replace(package.options, umask=current_umask())
    package = msgspec.structs.replace(package, options=options)
    try:
        out, err = helper.communicate(msgspec.json.encode(package), timeout=SEND_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise UnknownSubmission(f"sbatch did not answer within {SEND_TIMEOUT_S:.0f} s") from None
    finally:
        _end(helper)
    if helper.returncode == 0:
        slurm_id: str = json.loads(out)["id"]
        return slurm_id
    text = error_text(err.decode(errors="replace")) or f"no message (exit code {helper.returncode})"
    if helper.returncode != _REFUSED or any(words in text.lower() for words in _UNKNOWN):
        raise UnknownSubmission(f"sbatch: {text}")
    raise SlurmError(f"sbatch: {text}")


def _end(helper: subprocess.Popen[bytes]) -> None:
    """Kill a hanging helper and its sbatch, which could otherwise submit the job later."""
    if helper.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(helper.pid, signal.SIGKILL)
        helper.communicate()


class UnknownSubmission(SlurmError):
    """sbatch ended without reporting whether the job is in the queue."""


def find(package: Package) -> str:
    """Search a job whose sbatch gave no answer by its name, and name its pickles. Returns its id, "" if Slurm has no such job.

    Raises:
        SlurmError: slurmctld does not respond either.
    """
    deadline = time.monotonic() + SEARCH_S
    while True:
        try:
            ids = {job.job.partition("_")[0] for job in listing.queue() if job.name == package.name}
        except SlurmError:
            if time.monotonic() > deadline:
                raise
            ids = set()
        if ids:
            slurm_id = min(ids)
            name_pickles(package, slurm_id)
            return slurm_id
        if time.monotonic() > deadline:
            return ""
        time.sleep(3.0)


def name_pickles(package: Package, slurm_id: str) -> None:
    """Rename the pickles, which are all equal, to the names that the pilots of job `slurm_id` expect.

    Raises:
        DiskError: the folder cannot be written.
    """
    names = [slurm_id] if package.allocations == 1 else [f"{slurm_id}_{task}" for task in range(package.allocations)]
    targets = [package.folder / f"{name}_submitted.pkl" for name in names]
    waiting = sorted(path for path in package.folder.glob("*.pkl") if "_" not in path.name)
    try:
        for path, target in zip(waiting, (target for target in targets if not target.exists()), strict=False):
            path.rename(target)
    except OSError as error:
        raise DiskError(f"{package.folder}: cannot be written: {error.strerror}; launch again when it can") from error


_STARTER = (
    "import sys; sys.path.insert(0, sys.argv[1]); from orchestrator.cluster.launch.submission import submit; submit()"
)


def submit() -> None:
    """In the helper process: read a package from standard input, submit it through submitit, print the job's id."""
    from submitit.core.utils import FailedJobError

    from kt_study.__main__ import start_pilot

    package = msgspec.json.decode(sys.stdin.buffer.read(), type=Package)
    executor = _executor(package)
    try:
        jobs = executor.map_array(start_pilot, [package.options] * package.allocations)
    except FailedJobError as error:  # submitit has printed what sbatch said
        sys.exit(_REFUSED if _is_refusal(error.__cause__) else 1)
    print(json.dumps({"id": jobs[0].job_id.partition("_")[0]}))


def _is_refusal(cause: BaseException | None) -> bool:
    """Whether sbatch itself failed with an error: any other failure may have happened after the submission."""
    return isinstance(cause, subprocess.CalledProcessError) and cause.returncode > 0 and "error" in str(cause.stderr)


def _executor(package: Package) -> Any:
    import submitit

    try:
        executor = submitit.SlurmExecutor(folder=package.folder, python=f"{shlex.quote(sys.executable)} -P")
    except RuntimeError:
        raise SlurmError("there is no srun here; run this on a login node of the cluster") from None
    executor.update_parameters(**package.parameters())
    return executor
