"""The meaning of a pilot's exit code and Slurm state, and which nodes to exclude."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from signal import Signals

from kt_study.pilots import ProbeExit
from kt_study.records import Record
from orchestrator.cluster.slurm.listing import Run

DEATHS_TO_EXCLUDE = 3

SLURM_IO_SETUP = 53  # Slurm's "signal" of a job whose output files could not be opened

_PROBE = {
    ProbeExit.NO_STUDY: "the study folder {root} is not there; it must lie on a disk that all nodes share",
    ProbeExit.NO_PYTHON: "there is no kt-study in {python}; its virtual environment must lie on a disk that all nodes "
    "share",
    ProbeExit.NO_DATABASE: "the job database cannot be reached from there",
    ProbeExit.NO_GPU: "torch sees no GPU there",
    ProbeExit.UNTRUSTED: "others may write the study folder or what lies in it; the log of the worker names the file",
    ProbeExit.LOST_GPU: "its GPU failed in the middle of a job, or a job broke it",
}  # fmt: skip
_DEADLY = (Signals.SIGILL, Signals.SIGABRT, Signals.SIGBUS, Signals.SIGFPE, Signals.SIGKILL, Signals.SIGUSR1,
           Signals.SIGSEGV, Signals.SIGUSR2, Signals.SIGTERM)  # fmt: skip
_HARMLESS = ("COMPLETED", "PREEMPTED", "TIMEOUT", "CANCELLED", "REQUEUED", "DEADLINE")


class BadNode(Record, frozen=True, kw_only=True):
    """A node to keep away from, and why."""

    node: str
    reason: str


def probe_trouble(code: int, *, root: str, python: str) -> str:
    """What an exit code of `ProbeExit` says of its node."""
    return _PROBE[ProbeExit(code)].format(root=root, python=python)


def trouble(run: Run, *, root: str, python: str) -> str:
    """Why a run ended badly, one line; empty when it did not, or has not ended.

    Args:
        run: from Slurm's accounting.
        root: the study folder.
        python: the interpreter of the pilots.
    """
    if not run.is_over or run.state in _HARMLESS:
        return ""
    if run.signal == SLURM_IO_SETUP:
        return probe_trouble(ProbeExit.NO_STUDY, root=root, python=python)
    if run.exit_code in list(ProbeExit):
        return probe_trouble(run.exit_code, root=root, python=python)
    if run.state == "NODE_FAIL":
        return "the node failed"
    if run.state == "OUT_OF_MEMORY":
        return "the pilot used more memory than it was given; launch with more --mem"
    signal = signal_of(run)
    return f"the pilot ended {f'by {signal}' if signal else f'with exit code {run.exit_code}'} ({run.state})"


def signal_of(run: Run) -> str:
    """The name of the signal that ended a pilot; empty where none did.

    Slurm knows that of the batch script alone. Its exit code is srun's, which for a task that a signal ended is the
    signal's number, or 128 more where a shell stood between; no pilot ends with such a code by itself.
    """
    number = run.signal or run.exit_code % 128
    return Signals(number).name if run.signal or number in _DEADLY else ""


def is_fault_of_node(run: Run) -> bool:
    """Whether one such ending is enough to keep away from the node. A lost GPU may be the fault of a job."""
    unfit = run.exit_code in set(ProbeExit) - {ProbeExit.LOST_GPU, ProbeExit.UNTRUSTED}
    return run.is_over and (unfit or run.signal == SLURM_IO_SETUP)


def is_nobodys_fault(run: Run) -> bool:
    """Whether a bad ending says nothing about its node: a job too large, or a database or study folder that is wrong for all."""
    return run.state == "OUT_OF_MEMORY" or run.exit_code in (ProbeExit.NO_DATABASE, ProbeExit.UNTRUSTED)


def bad_nodes(runs: Iterable[Run], said: Mapping[str, str], *, root: str, python: str) -> list[BadNode]:
    """Nodes on which a probe failed, or pilots died three times with no good ending since; sorted by name.

    Args:
        runs: from Slurm's accounting.
        said: by node, what the pilots themselves said was wrong with it.
        root, python: as for `trouble`.
    """
    faults: dict[str, list[str]] = {}
    surely: set[str] = set()
    for run in sorted((run for run in runs if run.is_over and run.node), key=lambda run: run.ended_at):
        line = trouble(run, root=root, python=python)
        if line and not is_nobodys_fault(run):
            faults.setdefault(run.node, []).append(line)
            surely |= {run.node} if is_fault_of_node(run) else set()
        elif run.state == "COMPLETED":
            faults.pop(run.node, None)
            surely.discard(run.node)
    reasons = {
        node: lines[-1] if node in surely else f"{len(lines)} pilots died there: {lines[-1]}"
        for node, lines in faults.items()
        if node in surely or len(lines) >= DEATHS_TO_EXCLUDE
    }
    return [BadNode(node=node, reason=reason) for node, reason in sorted({**reasons, **said}.items())]


def by_node(runs: Iterable[Run], said: Mapping[str, str], *, root: str, python: str) -> dict[str, str]:
    """The latest trouble of each node, in the pilots' own words (`said`, by node) where they could say it."""
    found: dict[str, str] = {}
    for run in sorted(runs, key=lambda run: run.ended_at):
        if line := trouble(run, root=root, python=python):
            found[run.node or "?"] = line
    return {**found, **said}
