"""The development cluster: its daemons, files and commands."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from processes import Process

CLUSTER = "ktdev"
NODES = ("node1", "node2", "node3")
GPUS_PER_NODE = 2
NODE_SIZE = f"CPUs=4 SocketsPerBoard=1 CoresPerSocket=4 RealMemory=8192 Gres=gpu:fake:{GPUS_PER_NODE}"
ACCOUNTS = ("research", "teaching")
QOS = ("normal", "long")
DAEMONS = ("munged", "mariadbd", "slurmdbd", "slurmctld", *NODES)
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
COMMAND_TIMEOUT_S = 60.0


class ClusterError(Exception):
    """One line: what is wrong, where, and what to do."""


class MachineError(ClusterError):
    """This machine cannot run a development cluster."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """One development cluster, by its directory."""

    root: Path

    @property
    def slurm_conf(self) -> Path:
        return self.root / "etc/slurm.conf"

    @property
    def munge_socket(self) -> Path:
        return self.root / "run/munge.socket"

    @property
    def mariadb_socket(self) -> Path:
        return self.root / "run/mariadb.sock"

    @property
    def environment(self) -> dict[str, str]:
        """The environment of daemons and commands, without the caller's."""
        return {
            "PATH": PATH,
            "HOME": str(self.root),
            "LC_ALL": "C",
            "SLURM_CONF": str(self.slurm_conf),
            "MYSQL_UNIX_PORT": str(self.mariadb_socket),
        }

    def log(self, daemon: str) -> Path:
        return self.root / "log" / f"{daemon}.out"

    def record(self, daemon: str) -> Path:
        return self.root / "run" / f"{daemon}.json"

    def process(self, daemon: str) -> Process | None:
        """The daemon's process, if it is alive and we started it."""
        try:
            process = Process(**json.loads(self.record(daemon).read_text()))
        except FileNotFoundError:
            return None
        return process if process.alive else None

    def call(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(argv, env=self.environment, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S)

    def query(self, *argv: str) -> list[str]:
        """The lines that a command prints; none if it fails."""
        done = self.call(*argv)
        return done.stdout.splitlines() if done.returncode == 0 else []

    def demand(self, *argv: str) -> None:
        done = self.call(*argv)
        if done.returncode != 0:
            reason = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
            raise ClusterError(f"{argv[0]} failed: {reason} (logs: {self.root / 'log'})")


def write(path: Path, text: str) -> None:
    """Write atomically, readable by the owner only, as slurmdbd.conf and the munge key must be."""
    aside = path.with_name(f"{path.name}.new")
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.rename(path)
