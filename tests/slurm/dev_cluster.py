"""Drives slurm/dev-cluster and the Slurm commands against it."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parents[2] / "slurm" / "dev-cluster"


def dev_cluster(root: Path, command: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run slurm/dev-cluster on the cluster under `root`, whatever its exit code."""
    argv = [str(SCRIPT), command, "--dir", str(root), *options]
    return subprocess.run(argv, capture_output=True, text=True, timeout=200)


def eventually(condition: Callable[[], bool], seconds: float = 60.0, *, every_s: float = 0.2) -> bool:
    """Whether the condition becomes true within that time, asked every `every_s` seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every_s)
    return True


@dataclass(frozen=True, kw_only=True)
class DevCluster:
    """A development cluster that is up, and what `up` printed when it started."""

    root: Path
    greeting: str

    @property
    def slurm_conf(self) -> Path:
        return self.root / "etc/slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        """The caller's environment as `export SLURM_CONF=...` leaves it."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        return {**inherited, "SLURM_CONF": str(self.slurm_conf)}

    def try_run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(argv, env=self.environment, cwd=self.root, capture_output=True, text=True, timeout=120)

    def run(self, *argv: str) -> str:
        """Standard output, stripped; the test fails with the command's message if the command does."""
        done = self.try_run(*argv)
        assert done.returncode == 0, f"{argv}: {done.stderr}"
        return done.stdout.strip()

    def sbatch(self, script: str, *options: str) -> str:
        """Submit shell lines; the id of the job."""
        return self.run("sbatch", "--parsable", "--output=/dev/null", *options, "--wrap", script)

    def job_states(self, job: str) -> list[str]:
        """The states that sacct has of a job, an array's tasks or a requeued job's runs one by one, sorted."""
        lines = self.run("sacct", "-j", job, "--duplicates", "-X", "-n", "-P", "-o", "State").splitlines()
        return sorted(line.split()[0] for line in lines)

    def has_states(self, job: str, states: list[str]) -> bool:
        return self.job_states(job) == states

    def resume_nodes(self) -> set[str]:
        """Resume each node that Slurm took out of service, as an administrator does. Returns the nodes' states before that.

        Slurm drains a node on which a job was still running when slurmctld, back after a crash, started it again ("Duplicate
        jobid"), or whose slurmd died under a job. A node that does not respond ("*") stays as it is.
        """
        seen = self.try_run("sinfo", "-hN", "-p", "gpu", "-o", "%N %T").stdout  # nothing while slurmctld is too busy
        states = dict(line.split() for line in seen.splitlines())
        for node, state in states.items():
            if state.startswith(("drain", "down")) and not state.endswith("*"):
                self.try_run("scontrol", "update", f"nodename={node}", "state=resume")
        return set(states.values())

    def wait_until_idle(self) -> None:
        """Until no job is left and every node takes some again."""

        def is_idle() -> bool:
            return self.resume_nodes() == {"idle"} and self.run("squeue", "-h") == ""

        assert eventually(is_idle, 60), self.run("sinfo", "-N")

    def status(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads(dev_cluster(self.root, "status", "--json").stdout)
        return report
