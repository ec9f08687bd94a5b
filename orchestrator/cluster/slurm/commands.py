"""Runs Slurm's commands with a time limit, and turns their errors into one line."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

from kt_study.errors import SlurmError

TIMEOUT_S = 45.0

LOOK_AT = "look at `scontrol ping` and at SLURM_CONF"
"""What to do when Slurm does not work here."""

_OURS = frozenset({"SLURM_CONF", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT", "SLURM_MPI_TYPE"})
_SECRETS = frozenset({"KT_STUDY_DB", "PGPASSWORD"})
_NOT_THE_USERS = ("SLURM_", "SLURMD_", "SRUN_", "SQUEUE_", "SACCT_", "SCANCEL_", "SINFO_", "SCONTROL_")
_A_PILOT_LIVES_BY = frozenset(
    f"SBATCH_{name}"
    for name in ("TIMELIMIT", "SIGNAL", "REQUEUE", "NO_REQUEUE", "ARRAY_INX", "OPEN_MODE", "OUTPUT", "ERROR", "GPUS",
                 "GPUS_PER_NODE", "GPUS_PER_TASK", "JOB_NAME", "WAIT", "WCKEY")
)  # fmt: skip
_SPELLINGS = {
    "mem": ("MEM_PER_NODE", "MEM_PER_CPU", "MEM_PER_GPU"),
    "cpus_per_task": ("CPUS_PER_TASK", "CPUS_PER_GPU"),
}
"""Options whose variables for sbatch are not named like them, or that another's variable contradicts."""


def run(*argv: str, timeout_s: float = TIMEOUT_S, overridden: Sequence[str] = ()) -> str:
    """Standard output of a Slurm command. Times in it are seconds since 1970, where the command lets us choose.

    Args:
        argv: the command.
        timeout_s: how long to wait for it, in seconds.
        overridden: as for `environment`.

    Raises:
        SlurmError: not installed here, no answer within `timeout_s` seconds, or a refusal, in its own last words.
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
        said = complaint(done.stderr or done.stdout) or f"exit code {done.returncode}"
        raise SlurmError(f"{argv[0]}: {said}{_advice(said)}")
    return done.stdout


def _advice(said: str) -> str:
    """What to do where a command finds no configuration, or no controller."""
    unconfigured = any(words in said.lower() for words in ("fetch config", "configuration file", "contact slurm contr"))
    return f"; {LOOK_AT}" if unconfigured else ""


def environment(overridden: Sequence[str] = ()) -> dict[str, str]:
    """This process's environment as Slurm's commands should see it.

    Without the database's URL, which may carry a password and would travel with a batch job; without the variables of
    an allocation that we may ourselves sit in, and those by which squeue and its like would leave jobs out; without
    SBATCH_* for the `overridden` options and for what a pilot cannot live without: they win over a script.
    """
    options = {name.replace("-", "_") for name in overridden}
    spelt = {variable for name in options for variable in _SPELLINGS.get(name, (name.upper(),))}
    hidden = _SECRETS | _A_PILOT_LIVES_BY | {f"SBATCH_{name}" for name in spelt}
    return {
        name: value
        for name, value in os.environ.items()
        if name not in hidden and (name in _OURS or not name.startswith(_NOT_THE_USERS))
    }


def complaint(text: str) -> str:
    """What a command's output says is wrong, one line, without the command's name in front.

    All of its errors: the site's own advice stands in the first, and the last may be "Unspecified error".
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if "error:" in line.lower() or "failure:" in line.lower()] or lines[-1:]
    said = [line.split("error: ")[-1].removeprefix("allocation failure: ") for line in telling]
    return "; ".join(dict.fromkeys(said))
