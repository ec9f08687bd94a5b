"""The meaning of a pilot's exit code and Slurm state, and which nodes are bad."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from signal import Signals

from kt_study.pilots import ProbeExit
from kt_study.records import Record
from orchestrator.cluster.slurm.listing import Run

DEATHS_TO_EXCLUDE = 3

SLURM_IO_SETUP = 53  # Slurm's "signal" of a job whose output files could not be opened

_PROBE = {
    ProbeExit.NO_STUDY: "the study folder {root} is missing; it must be on a disk that all nodes share",
    ProbeExit.NO_PYTHON: "there is no kt-study in {python}; its virtual environment must be on a disk that all nodes "
    "share",
    ProbeExit.NO_DATABASE: "the job database cannot be reached from this node",
    ProbeExit.NO_GPU: "torch sees no GPU",
    ProbeExit.UNTRUSTED: "others can write the study folder or a file in it; the worker's log names the file",
    ProbeExit.LOST_GPU: "its GPU failed during a job",
}  # fmt: skip
_FATAL_SIGNALS = (Signals.SIGILL, Signals.SIGABRT, Signals.SIGBUS, Signals.SIGFPE, Signals.SIGKILL, Signals.SIGUSR1,
           Signals.SIGSEGV, Signals.SIGUSR2, Signals.SIGTERM)  # fmt: skip
_HARMLESS = ("COMPLETED", "PREEMPTED", "TIMEOUT", "CANCELLED", "REQUEUED", "DEADLINE")


class BadNode(Record, frozen=True, kw_only=True):
    """A node to exclude, and why."""

    node: str
    reason: str


def probe_error(code: int, *, root: str, python: str) -> str:
    """The message of an exit code of `ProbeExit`."""
    return _PROBE[ProbeExit(code)].format(root=root, python=python)


def failure(run: Run, *, root: str, python: str) -> str:
    """Why a run failed, one line; empty if it did not fail or has not ended.

    Args:
        run: from Slurm's accounting.
        root: the study folder.
        python: the interpreter of the pilots.
    """
    if not run.is_over or run.state in _HARMLESS:
        return ""
    if run.signal == SLURM_IO_SETUP:
        return probe_error(ProbeExit.NO_STUDY, root=root, python=python)
    if run.exit_code in list(ProbeExit):
        return probe_error(run.exit_code, root=root, python=python)
    if run.state == "NODE_FAIL":
        return "the node failed"
    if run.state == "OUT_OF_MEMORY":
        return "the pilot used more memory than it was allocated; launch with more --mem"
    signal = signal_of(run)
    return f"the pilot ended {f'by {signal}' if signal else f'with exit code {run.exit_code}'} ({run.state})"


def signal_of(run: Run) -> str:
    """The name of the signal that ended a pilot; empty if none did.

    Slurm records a signal only for the batch script. Its exit code is srun's: for a task ended by a signal, the number of
    the signal, or 128 more if a shell was in between. A pilot itself never exits with such a code.
    """
    number = run.signal or run.exit_code % 128
    return Signals(number).name if run.signal or number in _FATAL_SIGNALS else ""


def is_fault_of_node(run: Run) -> bool:
    """Whether one such failure is enough to exclude the node. A lost GPU may be the fault of a job."""
    unfit = run.exit_code in set(ProbeExit) - {ProbeExit.LOST_GPU, ProbeExit.UNTRUSTED}
    return run.is_over and (unfit or run.signal == SLURM_IO_SETUP)


def is_unrelated_to_node(run: Run) -> bool:
    """Whether a failure has nothing to do with its node: a job is too large, or no node can use the database or the study."""
    return run.state == "OUT_OF_MEMORY" or run.exit_code in (ProbeExit.NO_DATABASE, ProbeExit.UNTRUSTED)


def bad_nodes(runs: Iterable[Run], probe_errors: Mapping[str, str], *, root: str, python: str) -> list[BadNode]:
    """Nodes on which a probe failed, or three pilots died and none has ended normally since; sorted by name.

    Args:
        runs: from Slurm's accounting.
        probe_errors: node -> the error of its probe.
        root, python: as for `failure`.
    """
    faults: dict[str, list[str]] = {}
    certain: set[str] = set()
    for run in sorted((run for run in runs if run.is_over and run.node), key=lambda run: run.ended_at):
        line = failure(run, root=root, python=python)
        if line and not is_unrelated_to_node(run):
            faults.setdefault(run.node, []).append(line)
            certain |= {run.node} if is_fault_of_node(run) else set()
        elif run.state == "COMPLETED":
            faults.pop(run.node, None)
            certain.discard(run.node)
    reasons = {
        node: lines[-1] if node in certain else f"{len(lines)} pilots died there: {lines[-1]}"
        for node, lines in faults.items()
        if node in certain or len(lines) >= DEATHS_TO_EXCLUDE
    }
    return [BadNode(node=node, reason=reason) for node, reason in sorted({**reasons, **probe_errors}.items())]


def errors_by_node(runs: Iterable[Run], probe_errors: Mapping[str, str], *, root: str, python: str) -> dict[str, str]:
    """The latest error of each node: that of its probe if there is one, else of the latest failed run."""
    found: dict[str, str] = {}
    for run in sorted(runs, key=lambda run: run.ended_at):
        if line := failure(run, root=root, python=python):
            found[run.node or "?"] = line
    return {**found, **probe_errors}
