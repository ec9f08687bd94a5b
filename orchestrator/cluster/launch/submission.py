"""Submits an array of pilots to Slurm through submitit, once: if sbatch's answer is lost, the job is searched by name.

A helper process calls submitit, so that a hanging sbatch can be abandoned, and so that a batch job does not inherit private
variables of this process's environment.
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
from orchestrator.cluster.slurm.commands import complaint, environment, run

SEND_TIMEOUT_S = 180.0
SEARCH_S = 45.0
_REFUSED = 3  # exit code of the helper: sbatch itself said no
_LOST = ("timed out", "timeout", "unable to contact", "zero bytes", "communication", "connection", "did not answer")


class Package(Record, frozen=True, kw_only=True):
    """Everything that one sbatch needs."""

    options: PilotOptions
    request: SlurmRequest
    name: str  # of the Slurm job
    allocations: int
    exclude: tuple[str, ...] = ()  # nodes, beside the request's
    marker: str = ""  # of the study folder

    @property
    def folder(self) -> Path:
        """Where submitit keeps the script, the pickles and the logs of this launch."""
        return self.options.paths.logs / self.options.token

    def parameters(self) -> dict[str, Any]:
        """For submitit's SlurmExecutor, in Slurm's words."""
        request, tasks = self.request, self.request.pilots_each
        chosen = {name: getattr(request, name) for name in ("partition", "account", "qos", "constraint", "mem", "gres")}
        nodes = ",".join(part for part in (request.exclude, *self.exclude) if part)
        return {name: str(value) for name, value in chosen.items() if value != ""} | {
            **({"exclude": nodes} if nodes else {}),
            **_cores(request),
            **({"gpus_per_node": request.gpus_per_node} if request.gpus_per_node and request.gpus else {}),
            "job_name": self.name,
            "time": request.time_min,
            "nodes": 1,
            "ntasks_per_node": tasks,
            "signal_delay_s": request.warning_s,
            "array_parallelism": self.allocations,
            "stderr_to_stdout": True,
            "wckey": None,
            "setup": [*request.setup, *self._look_around()],
            "additional_parameters": {**request.other_options, "requeue": True},
        }

    def _look_around(self) -> list[str]:
        return look_around(self.options.root, self.marker, self.options.files.marker, pickles=self.folder)

    @property
    def settled(self) -> tuple[str, ...]:
        """The options that the script decides, whatever the user's environment says of them."""
        return (*self.parameters(), *self.request.other_options)


def _cores(request: SlurmRequest) -> dict[str, Any]:
    """Said twice: since Slurm 22.05 srun does not take --cpus-per-task from the script that it stands in."""
    cores = request.cpus_per_task
    return {"cpus_per_task": cores, "srun_args": [f"--cpus-per-task={cores}"]} if cores else {}


def look_around(
    root: str, marker: str, file: Path, *, pickles: Path | None = None, hold_s: int = HOLD_BAD_NODE_S
) -> list[str]:
    """Shell lines by which a node that lacks the study folder or the virtual environment says so with its exit code, as it
    does where others may write the study folder, or what is in the folder `pickles`.

    They hold the node for `hold_s` seconds then.
    """
    folder, python, file_ = shlex.quote(root), shlex.quote(sys.executable), shlex.quote(str(file))
    looked_at = folder if pickles is None else f"{folder} {shlex.quote(str(pickles))}"
    said, hold = "echo kt-study: $SLURMD_NODENAME:", f"sleep {hold_s}"
    look = "import submitit, sys; from kt_study.pilots import leave_if_untrusted; leave_if_untrusted(*sys.argv[1:])"
    return [
        f'if [ "$(cat {file_} 2>/dev/null)" != {marker} ]; then '
        f"{said} {folder} is not the study folder; {hold}; exit {int(ProbeExit.NO_STUDY)}; fi",
        f'found=0; {python} -P -c "{look}" {looked_at} || found=$?',
        f"if [ $found = {int(ProbeExit.UNTRUSTED)} ]; then {hold}; exit $found; fi",
        f"if [ $found != 0 ]; then {said} no kt-study in {python}; {hold}; exit {int(ProbeExit.NO_PYTHON)}; fi",
    ]


def script(package: Package) -> str:
    """The sbatch script, as submitit writes it. Raises SlurmError without Slurm."""
    executor = _executor(package)
    if package.allocations > 1:
        executor.parameters["map_count"] = package.allocations
    text: str = executor._make_submission_file_text(executor._submitit_command_str, "")
    return text


def check(package: Package) -> None:
    """Let slurmctld judge the script without submitting it. Raises SlurmError with its reason."""
    import tempfile

    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
        file.write(script(package))
        file.flush()
        run("sbatch", "--test-only", file.name, overridden=package.settled)


def send(package: Package) -> str:
    """Submit the pilots. Returns the Slurm job's id.

    Raises:
        SlurmError: sbatch refused; nothing was submitted.
        LostAnswer: it is unknown whether it was submitted. Do not submit it again before `find` has an answer.
        DiskError, UntrustedFile: the folder of its logs cannot be made, or belongs to another account.
    """
    private_folder(package.folder, below=package.options.paths.root)
    helper = subprocess.Popen(
        [sys.executable, "-P", "-c", _STARTER, str(Path(__file__).resolve().parents[3])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(package.settled),
        start_new_session=True,
        umask=0o077,  # of the pickles, and by way of sbatch of the logs
    )
    options = msgspec.structs.replace(package.options, umask=current_umask())
    package = msgspec.structs.replace(package, options=options)
    try:
        out, err = helper.communicate(msgspec.json.encode(package), timeout=SEND_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise LostAnswer(f"sbatch did not answer within {SEND_TIMEOUT_S:.0f} s") from None
    finally:
        _end(helper)
    if helper.returncode == 0:
        slurm_id: str = json.loads(out)["id"]
        return slurm_id
    said = complaint(err.decode(errors="replace")) or f"ended without a word ({helper.returncode})"
    if helper.returncode != _REFUSED or any(word in said.lower() for word in _LOST):
        raise LostAnswer(f"sbatch: {said}")
    raise SlurmError(f"sbatch: {said}")


def _end(helper: subprocess.Popen[bytes]) -> None:
    """Kill a helper that hangs, and the sbatch that it waits for, which could otherwise submit the job later."""
    if helper.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(helper.pid, signal.SIGKILL)
        helper.communicate()


class LostAnswer(SlurmError):
    """sbatch ended without reporting whether the job is in the queue."""


def find(package: Package) -> str:
    """The id of a job whose sbatch gave no answer, looked for by its name, and made ready to run; "" if Slurm lacks it.

    Raises:
        SlurmError: slurmctld does not respond either, so this is unknown.
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
            hand_over(package, slurm_id)
            return slurm_id
        if time.monotonic() > deadline:
            return ""
        time.sleep(3.0)


def hand_over(package: Package, slurm_id: str) -> None:
    """Give the pickles the names under which the pilots of job `slurm_id` look for theirs. All of them are equal.

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
    """Whether sbatch ended by itself and said why: whatever else went wrong may have gone wrong after it."""
    return isinstance(cause, subprocess.CalledProcessError) and cause.returncode > 0 and "error" in str(cause.stderr)


def _executor(package: Package) -> Any:
    import submitit

    try:
        executor = submitit.SlurmExecutor(folder=package.folder, python=f"{shlex.quote(sys.executable)} -P")
    except RuntimeError:
        raise SlurmError("there is no srun here; run this on a login node of the cluster") from None
    executor.update_parameters(**package.parameters())
    return executor
