"""The doctor on a compute node: one short srun, with the shell lines of the pilots' own check, and a comparison with this
machine."""

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
from orchestrator.cluster.doctor.findings import Finding
from orchestrator.cluster.doctor.machine import PACKAGES
from orchestrator.cluster.launch.private import prepare_study_folder
from orchestrator.cluster.launch.request import SlurmRequest
from orchestrator.cluster.launch.submission import look_around
from orchestrator.cluster.slurm.commands import complaint, environment, run
from orchestrator.cluster.slurm.endings import probe_trouble
from orchestrator.cluster.slurm.listing import NAME_PREFIX

LOOK_S = 240.0  # on the node: torch's first import from a shared disk is slow
MINUTES = 5
LOOK_EVERY_S = 1.0
COMPARED = ("python", *PACKAGES, "ffcv")


class NodeRequest(Record, frozen=True, kw_only=True):
    """Which node to look at: any that the request fits, or a certain one; and how long to wait for it, in seconds."""

    request: SlurmRequest  # fitted to the cluster
    node: str = ""
    patience_s: float = 60.0


def examine_node(root: Path, database_url: str, wish: NodeRequest, here: Sequence[Finding]) -> list[Finding]:
    """What a compute node has of what a pilot needs, and how it differs from this machine.

    Args:
        root: the study folder.
        database_url: of the job database.
        wish: where to look.
        here: what was found on this machine.

    Raises:
        DatabaseError, DiskError: the study folder cannot be prepared for pilots.
    """
    marker = prepare_study_folder(LaunchFiles(root=root), database_url)
    name = f"{NAME_PREFIX}doctor-{secrets.token_hex(4)}"
    srun = subprocess.Popen(
        _srun(name, wish, _script(root, marker, wish.request)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(("partition", "time", "nodes", "ntasks")),
    )
    try:
        return _judged(_outcome(srun, name, wish), root, wish, here)
    finally:
        _end(srun, name)


class _Outcome(Record, frozen=True, kw_only=True):
    """How the srun ended; `waiting` is Slurm's reason where it never began."""

    code: int = 0
    out: str = ""
    err: str = ""
    waiting: str = ""


def _script(root: Path, marker: str, request: SlurmRequest) -> str:
    lines = look_around(str(root), marker, LaunchFiles(root=root).marker, hold_s=0)
    words = [sys.executable, "-P", "-m", "kt_study", "doctor", "--json", "--on-node", str(root)]
    return "\n".join([*request.setup, "echo $SLURMD_NODENAME", *lines, f"exec {shlex.join(words)}"])


def _srun(name: str, wish: NodeRequest, script: str) -> list[str]:
    request = wish.request
    given = {
        "partition": request.partition, "account": request.account, "qos": request.qos,
        "constraint": request.constraint, "mem": str(request.mem), "exclude": request.exclude, "nodelist": wish.node,
        "cpus-per-task": request.cpus_per_task, "gpus-per-node": request.gpus_per_node if request.gpus else "",
        "gres": request.gres, **request.other_options,
    }  # fmt: skip
    options = [f"--{option}" if value is True else f"--{option}={value}" for option, value in given.items() if value]
    return ["srun", f"--job-name={name}", "--nodes=1", "--ntasks=1", f"--time={MINUTES}", "--chdir=/", *options,
            "bash", "-c", script]  # fmt: skip


def _outcome(srun: subprocess.Popen[str], name: str, wish: NodeRequest) -> _Outcome:
    """The end of the srun; it is given up when it has not begun within the wish's patience."""
    began, since = False, time.monotonic()
    while True:
        try:
            out, err = srun.communicate(timeout=LOOK_EVERY_S)
            return _Outcome(code=srun.returncode, out=out, err=err)
        except subprocess.TimeoutExpired:
            passed = time.monotonic() - since
        if not began and passed > wish.patience_s:
            began, reason = _has_begun(name)
            if not began:
                return _Outcome(waiting=reason)
        if passed > wish.patience_s + LOOK_S:
            return _Outcome(code=-1, err=f"no answer within {LOOK_S:.0f} s")


def _has_begun(name: str) -> tuple[bool, str]:
    try:
        said = run("squeue", "--me", "--noheader", f"--name={name}", "--format=%T|%r").strip()
    except SlurmError as error:
        return False, str(error)
    state, _, reason = said.partition("|")
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


def _judged(outcome: _Outcome, root: Path, wish: NodeRequest, here: Sequence[Finding]) -> list[Finding]:
    where = wish.node or f"partition {wish.request.partition!r}"
    if outcome.waiting:
        found = f"{where}: still pending after {wish.patience_s:.0f} s ({outcome.waiting})"
        do = "nothing was looked at there; --patience waits longer, another --partition may be free"
        return [Finding(what="node", verdict="wrong", found=found, do=do)]
    node, _, said = outcome.out.partition("\n")
    if outcome.code in list(ProbeExit):
        line = probe_trouble(outcome.code, root=str(root), python=sys.executable)
        return [Finding(what="node", verdict="wrong", found=line, node=node)]
    try:
        there = msgspec.json.decode(said.strip().splitlines()[-1], type=list[Finding])
    except (IndexError, msgspec.MsgspecError):
        line = complaint(outcome.err) or complaint(outcome.out) or f"exit code {outcome.code}"
        return [Finding(what="node", verdict="wrong", found=f"{where}: srun: {line}")]
    return [
        msgspec.structs.replace(finding, node=node)
        for finding in [*_with_gpu(there, wish), *differences(here, there)]
        if finding.what not in COMPARED or finding.verdict == "wrong"
    ]


def _with_gpu(there: Sequence[Finding], wish: NodeRequest) -> Iterator[Finding]:
    """A node that gave a GPU on which torch sees none cannot be worked on."""
    for finding in there:
        if finding.what == "gpu" and finding.verdict == "note" and wish.request.gpus:
            do = "look at `nvidia-smi` on that node, or launch with --device cpu"
            found = f"Slurm gave {wish.request.gpus} GPUs, and torch sees none; {finding.found}"
            yield Finding(what="gpu", verdict="wrong", found=found, do=do)
        else:
            yield finding


def differences(here: Sequence[Finding], there: Sequence[Finding]) -> Iterator[Finding]:
    """One line on whether the node has this machine's packages, or one for each that differs."""
    mine = {finding.what: finding.found for finding in here}
    theirs = {finding.what: finding.found for finding in there}
    differing = [what for what in COMPARED if what in mine and mine[what] != theirs.get(what)]
    for what in differing:
        yield Finding(
            what="differs",
            verdict="wrong",
            found=f"{what} is {theirs.get(what, 'missing')} there and {mine[what]} here",
            do="look for PYTHONPATH and for packages in a home folder that is not shared",
        )
    if not differing:
        yield Finding(
            what="as here", verdict="ok", found="the same Python, packages and study folder as on this machine"
        )
