"""Handing an array of pilots to Slurm through submitit, once: an sbatch whose answer got lost is looked for by name.

A helper process talks to submitit, so that a hanging sbatch can be given up, and so that nothing of this process's
environment that a batch job should not see goes along.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from kt_study.errors import SlurmError
from kt_study.pilots import HOLD_BAD_NODE_S, PilotOptions, ProbeExit
from kt_study.words import Record
from orchestrator.launch.request import SlurmRequest
from orchestrator.slurm import listing
from orchestrator.slurm.commands import complaint, environment, run

SEND_TIMEOUT_S = 180.0
SEARCH_S = 45.0
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
        chosen = {name: getattr(request, name) for name in ("partition", "account", "qos", "constraint", "mem")}
        nodes = ",".join(part for part in (request.exclude, *self.exclude) if part)
        return {name: value for name, value in chosen.items() if value} | {
            **({"exclude": nodes} if nodes else {}),
            **({"cpus_per_task": request.cpus_per_task} if request.cpus_per_task else {}),
            **({"gpus_per_node": request.gpus_per_node} if request.gpus_per_node else {}),
            "job_name": self.name,
            "time": request.time_min,
            "nodes": 1,
            "ntasks_per_node": tasks,
            "signal_delay_s": request.warning_s,
            "array_parallelism": self.allocations,
            "stderr_to_stdout": True,
            "wckey": None,
            "setup": [*request.setup, *look_around(self.options.root, self.marker, self.options.files.marker)],
            "additional_parameters": {"requeue": True},
        }


def look_around(root: str, marker: str, file: Path, *, hold_s: int = HOLD_BAD_NODE_S) -> list[str]:
    """Shell lines by which a node that lacks the study folder or the virtual environment says so with its exit code.

    They hold the node for `hold_s` seconds then.
    """
    folder, python, file_ = shlex.quote(root), shlex.quote(sys.executable), shlex.quote(str(file))
    said, hold = "echo kt-study: $SLURMD_NODENAME:", f"sleep {hold_s}"
    return [
        f'if [ "$(cat {file_} 2>/dev/null)" != {marker} ]; then '
        f"{said} {folder} is not the study folder; {hold}; exit {int(ProbeExit.NO_STUDY)}; fi",
        f'if ! {python} -c "import submitit, kt_study.pilots"; then '
        f"{said} no kt-study in {python}; {hold}; exit {int(ProbeExit.NO_PYTHON)}; fi",
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
        run("sbatch", "--test-only", file.name)


def send(package: Package) -> str:
    """Submit the pilots. Returns the Slurm job's id.

    Raises:
        SlurmError: Slurm refused; nothing was submitted.
        LostAnswer: nobody knows whether it was submitted. Do not submit it again before `find` has an answer.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _STARTER, str(Path(__file__).resolve().parents[2])],
            input=msgspec.json.encode(package),
            capture_output=True,
            timeout=SEND_TIMEOUT_S,
            env=environment(tuple(package.parameters())),
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise LostAnswer(f"sbatch did not answer within {SEND_TIMEOUT_S:.0f} s") from None
    if done.returncode == 0:
        slurm_id: str = json.loads(done.stdout)["id"]
        return slurm_id
    said = complaint(done.stderr.decode(errors="replace"))
    if any(word in said.lower() for word in _LOST):
        raise LostAnswer(f"sbatch: {said}")
    raise SlurmError(f"sbatch: {said}")


class LostAnswer(SlurmError):
    """sbatch ended without a word on whether the job is in the queue."""


def find(package: Package, patience_s: float | None = None) -> str:
    """The id of a job whose sbatch gave no answer, looked for by its name, and made ready to run; "" if Slurm lacks it.

    Raises:
        SlurmError: slurmctld does not answer either, so that nobody knows.
    """
    deadline = time.monotonic() + (SEARCH_S if patience_s is None else patience_s)
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
    """Give the pickles the names under which the pilots of job `slurm_id` look for theirs. All of them are equal."""
    names = [slurm_id] if package.allocations == 1 else [f"{slurm_id}_{task}" for task in range(package.allocations)]
    waiting = sorted(path for path in package.folder.glob("*.pkl") if "_" not in path.name)
    for path, name in zip(waiting, names, strict=False):
        path.rename(package.folder / f"{name}_submitted.pkl")


_STARTER = "import sys; sys.path.insert(0, sys.argv[1]); from orchestrator.launch.submission import submit; submit()"


def submit() -> None:
    """In the helper process: read a package from standard input, submit it through submitit, print the job's id."""
    from kt_study.__main__ import start_pilot

    package = msgspec.json.decode(sys.stdin.buffer.read(), type=Package)
    executor = _executor(package)
    try:
        jobs = executor.map_array(start_pilot, [package.options] * package.allocations)
    except Exception as error:
        sys.exit(f"sbatch: error: {complaint(str(error)) or type(error).__name__}")
    print(json.dumps({"id": jobs[0].job_id.partition("_")[0]}))


def _executor(package: Package) -> Any:
    import submitit

    try:
        executor = submitit.SlurmExecutor(folder=package.folder)
    except RuntimeError:
        raise SlurmError("there is no srun here; run this on a login node of the cluster") from None
    executor.update_parameters(**package.parameters())
    return executor
