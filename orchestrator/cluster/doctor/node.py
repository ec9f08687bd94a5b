"""The doctor on a compute node: one short srun with the shell lines of the pilots' check, compared with this machine."""

from __future__ import annotations

import contextlib
import secrets
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from kt_study.errors import SlurmError
from kt_study.pilots import LaunchFiles, ProbeExit
from kt_study.records import Record
from orchestrator.cluster.doctor.findings import Finding, ok, wrong
from orchestrator.cluster.doctor.machine import PACKAGES
from orchestrator.cluster.launch.private import prepare_study_folder
from orchestrator.cluster.launch.request import SlurmRequest
from orchestrator.cluster.launch.submission import node_check
from orchestrator.cluster.slurm.commands import environment, error_text, run
from orchestrator.cluster.slurm.endings import probe_error
from orchestrator.cluster.slurm.listing import NAME_PREFIX

CHECK_TIMEOUT_S = 240.0  # on the node: torch's first import from a shared disk is slow
MINUTES = 5
LOOK_EVERY_S = 1.0
COMPARED = ("python", *PACKAGES, "ffcv")


class NodeRequest(Record, frozen=True, kw_only=True):
    """Which node to check, any that fits the request by default, and how long to wait for it, in seconds."""

    request: SlurmRequest  # by `completed_request`
    node: str = ""
    patience_s: float = 60.0


def examine_node(root: Path, database_url: str, target: NodeRequest, here: Sequence[Finding]) -> list[Finding]:
    """Check what a pilot needs on a compute node, and how the node differs from this machine.

    Args:
        root: the study folder.
        database_url: of the job database.
        target: which node.
        here: the findings on this machine.

    Raises:
        DatabaseError, DiskError: the study folder cannot be prepared for pilots.
    """
    marker = prepare_study_folder(LaunchFiles(root=root), database_url)
    name = f"{NAME_PREFIX}doctor-{secrets.token_hex(4)}"
    srun = subprocess.Popen(
        _srun(name, target, _script(root, marker, target.request)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(("partition", "time", "nodes", "ntasks")),
    )
    try:
        return _judged(_outcome(srun, name, target), root, target, here)
    finally:
        _end(srun, name)


class _Outcome(Record, frozen=True, kw_only=True):
    """How the srun ended; `waiting` is Slurm's reason if it never started."""

    code: int = 0
    out: str = ""
    err: str = ""
    waiting: str = ""


def _script(root: Path, marker: str, request: SlurmRequest) -> str:
    lines = node_check(str(root), marker, LaunchFiles(root=root).marker, hold_s=0)
    command = [sys.executable, "-P", "-m", "kt_study", "doctor", "--json", "--on-node", str(root)]
    return "\n".join([*request.setup, "echo $SLURMD_NODENAME", *lines, f"exec {shlex.join(command)}"])


def _srun(name: str, target: NodeRequest, script: str) -> list[str]:
    request = target.request
    given = {
        "partition": request.partition, "account": request.account, "qos": request.qos,
        "constraint": request.constraint, "mem": str(request.mem), "exclude": request.exclude, "nodelist": target.node,
        "cpus-per-task": request.cpus_per_task, "gpus-per-node": request.gpus_per_node if request.gpus else "",
        "gres": request.gres, **request.other_options,
    }  # fmt: skip
    options = [f"--{option}" if value is True else f"--{option}={value}" for option, value in given.items() if value]
    return ["srun", f"--job-name={name}", "--nodes=1", "--ntasks=1", f"--time={MINUTES}", "--chdir=/", *options,
            "bash", "-c", script]  # fmt: skip


def _outcome(srun: subprocess.Popen[str], name: str, target: NodeRequest) -> _Outcome:
    """Wait for the srun; give up if it has not started within the patience of the target."""
    started, since = False, time.monotonic()
    while True:
        try:
            out, err = srun.communicate(timeout=LOOK_EVERY_S)
            return _Outcome(code=srun.returncode, out=out, err=err)
        except subprocess.TimeoutExpired:
            passed = time.monotonic() - since
        if not started and passed > target.patience_s:
            started, reason = _has_started(name)
            if not started:
                return _Outcome(waiting=reason)
        if passed > target.patience_s + CHECK_TIMEOUT_S:
            return _Outcome(code=-1, err=f"no answer within {CHECK_TIMEOUT_S:.0f} s")


def _has_started(name: str) -> tuple[bool, str]:
    try:
        out = run("squeue", "--me", "--noheader", f"--name={name}", "--format=%T|%r").strip()
    except SlurmError as error:
        return False, str(error)
    state, _, reason = out.partition("|")
    return state not in ("PENDING", "CONFIGURING", ""), reason or "Slurm does not list it"


def _end(srun: subprocess.Popen[str], name: str) -> None:
    """Leave nothing in the queue."""
    if srun.poll() is None:
        with contextlib.suppress(SlurmError):
            run("scancel", f"--name={name}")
        srun.terminate()
        try:
            srun.communicate(timeout=10.0)
        except subprocess.TimeoutExpired:
            srun.kill()
            srun.communicate()


def _judged(outcome: _Outcome, root: Path, target: NodeRequest, here: Sequence[Finding]) -> list[Finding]:
    where = target.node or f"partition {target.request.partition!r}"
    if outcome.waiting:
        found = f"{where}: still pending after {target.patience_s:.0f} s ({outcome.waiting})"
        do = "no node was checked; use a longer --patience, or another --partition"
        return [wrong("node", found, do)]
    node, _, report = outcome.out.partition("\n")
    if outcome.code in list(ProbeExit):
        line = probe_error(outcome.code, root=str(root), python=sys.executable)
        return [wrong("node", line, node=node)]
    try:
        there = msgspec.json.decode(report.strip().splitlines()[-1], type=list[Finding])
    except (IndexError, msgspec.MsgspecError):
        line = error_text(outcome.err) or error_text(outcome.out) or f"exit code {outcome.code}"
        return [wrong("node", f"{where}: srun: {line}")]
    return [
        msgspec.structs.replace(finding, node=node)
        for finding in [*_with_gpu(there, target), *differences(here, there)]
        if finding.what not in COMPARED or finding.verdict == "wrong"
    ]


def _with_gpu(there: Sequence[Finding], target: NodeRequest) -> Iterator[Finding]:
    """A node with an allocated GPU that torch does not see is unusable."""
    for finding in there:
        if finding.what == "gpu" and finding.verdict == "note" and target.request.gpus:
            do = "look at `nvidia-smi` on that node, or launch with --device cpu"
            yield wrong("gpu", f"Slurm allocated {target.request.gpus} GPUs, and torch sees none; {finding.found}", do)
        else:
            yield finding


def differences(here: Sequence[Finding], there: Sequence[Finding]) -> Iterator[Finding]:
    """One line per package that differs on the node, or one line if none does."""
    mine = {finding.what: finding.found for finding in here}
    theirs = {finding.what: finding.found for finding in there}
    differing = [what for what in COMPARED if what in mine and mine[what] != theirs.get(what)]
    for what in differing:
        do = "look for PYTHONPATH and for packages in a home folder that is not shared"
        yield wrong("differs", f"{what} is {theirs.get(what, 'missing')} there and {mine[what]} here", do)
    if not differing:
        yield ok("as here", "the same Python, packages and study folder as on this machine")
