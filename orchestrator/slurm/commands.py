"""Slurm's commands, run with a time limit; what they complain about becomes one line."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

from kt_study.errors import SlurmError

TIMEOUT_S = 45.0

_OURS = frozenset({"SLURM_CONF", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT", "SLURM_MPI_TYPE"})
_SECRETS = frozenset({"KT_STUDY_DB", "PGPASSWORD"})


def run(*argv: str, timeout_s: float = TIMEOUT_S) -> str:
    """Standard output of a Slurm command. Times in it are seconds since 1970, where the command lets us choose.

    Raises:
        SlurmError: not installed here, no answer within `timeout_s` seconds, or a refusal, in its own last words.
    """
    env = environment() | {"SLURM_TIME_FORMAT": "%s"}
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=timeout_s, check=False, env=env, errors="replace"
        )
    except FileNotFoundError:
        raise SlurmError(f"there is no {argv[0]} here; run this on a login node of the cluster") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{argv[0]} did not answer within {timeout_s:.0f} s; see `scontrol ping`") from None
    if done.returncode:
        raise SlurmError(f"{argv[0]}: {complaint(done.stderr or done.stdout) or f'exit code {done.returncode}'}")
    return done.stdout


def environment(overridden: Sequence[str] = ()) -> dict[str, str]:
    """This process's environment as Slurm's commands should see it.

    Without the database's URL, which may carry a password and would travel with a batch job; without the variables of
    an allocation that we may ourselves sit in; without SBATCH_* for the `overridden` options: they win over a script.
    """
    hidden = _SECRETS | {f"SBATCH_{name.upper().replace('-', '_')}" for name in overridden}
    return {
        name: value
        for name, value in os.environ.items()
        if name not in hidden and (name in _OURS or not name.startswith(("SLURM_", "SLURMD_", "SRUN_")))
    }


def complaint(text: str) -> str:
    """The line of a command's output that says what is wrong, without the command's name in front."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if "error:" in line.lower() or "failure:" in line.lower()] or lines
    return telling[-1].split("error: ")[-1].removeprefix("allocation failure: ") if telling else ""
