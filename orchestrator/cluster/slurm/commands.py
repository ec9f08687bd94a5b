"""Runs Slurm's commands with a time limit, and turns their errors into one line."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

from kt_study.errors import SlurmError

TIMEOUT_S = 45.0

LOOK_AT = "look at `scontrol ping` and at SLURM_CONF"
"""The advice if Slurm does not work here."""

_KEPT = frozenset({"SLURM_CONF", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT", "SLURM_MPI_TYPE"})
_SECRETS = frozenset({"KT_STUDY_DB", "PGPASSWORD"})
_SLURMS_OWN = ("SLURM_", "SLURMD_", "SRUN_", "SQUEUE_", "SACCT_", "SCANCEL_", "SINFO_", "SCONTROL_")
_NEEDED_BY_PILOTS = frozenset(
    f"SBATCH_{name}"
    for name in ("TIMELIMIT", "SIGNAL", "REQUEUE", "NO_REQUEUE", "ARRAY_INX", "OPEN_MODE", "OUTPUT", "ERROR", "GPUS",
                 "GPUS_PER_NODE", "GPUS_PER_TASK", "JOB_NAME", "WAIT", "WCKEY")
)  # fmt: skip
_VARIABLES = {
    "mem": ("MEM_PER_NODE", "MEM_PER_CPU", "MEM_PER_GPU"),
    "cpus_per_task": ("CPUS_PER_TASK", "CPUS_PER_GPU"),
}
"""Options of sbatch whose variables have other names, or that contradict another option's variable."""


def run(*argv: str, timeout_s: float = TIMEOUT_S, overridden: Sequence[str] = ()) -> str:
    """Standard output of a Slurm command. Times in it are seconds since 1970, if the command has a choice.

    Args:
        argv: the command.
        timeout_s: how long to wait for it, in seconds.
        overridden: as for `environment`.

    Raises:
        SlurmError: not installed here, no answer within `timeout_s` seconds, or a refusal, with Slurm's message.
    """
    env = environment(overridden) | {"SLURM_TIME_FORMAT": "%s"}
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=timeout_s, check=False, env=env, errors="replace"
        )
    except FileNotFoundError:
        raise SlurmError(f"there is no {argv[0]} here; run this on a login node of the cluster") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{argv[0]} did not answer within {timeout_s:.0f} s; see `scontrol ping`") from None
    if done.returncode:
        text = error_text(done.stderr or done.stdout) or f"exit code {done.returncode}"
        unconfigured = ("fetch config", "configuration file", "contact slurm contr")
        advice = f"; {LOOK_AT}" if any(words in text.lower() for words in unconfigured) else ""
        raise SlurmError(f"{argv[0]}: {text}{advice}")
    return done.stdout


def environment(overridden: Sequence[str] = ()) -> dict[str, str]:
    """This process's environment, for Slurm's commands, without:

    - the database's URL, which may contain a password and would be passed to the batch job;
    - variables of an allocation in which this process may run, and those with which squeue and others would hide jobs;
    - SBATCH_* of the `overridden` options and of those that pilots depend on: they take precedence over a script.
    """
    options = {name.replace("-", "_") for name in overridden}
    variables = {variable for name in options for variable in _VARIABLES.get(name, (name.upper(),))}
    hidden = _SECRETS | _NEEDED_BY_PILOTS | {f"SBATCH_{name}" for name in variables}
    return {
        name: value
        for name, value in os.environ.items()
        if name not in hidden and (name in _KEPT or not name.startswith(_SLURMS_OWN))
    }


def error_text(text: str) -> str:
    """All errors in a command's output, in one line, without the command's name.

    The first often contains the site's own advice; the last may be "Unspecified error".
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error:" in line.lower() or "failure:" in line.lower()] or lines[-1:]
    texts = [line.split("error: ")[-1].removeprefix("allocation failure: ") for line in errors]
    return "; ".join(dict.fromkeys(texts))
