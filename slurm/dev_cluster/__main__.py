"""A real Slurm with accounting on one machine, for development and tests.

    slurm/dev-cluster up [--install]    start it, or repair it; quick when it is already up
    slurm/dev-cluster status [--json]   daemons, nodes, partitions, accounting
    slurm/dev-cluster down [DAEMON...]  stop it, or only the daemons named (up starts them again)

Three nodes (node1 to node3; 4 CPUs, 8 GiB and 2 fake GPUs each), the partitions gpu, low and high, slurmdbd on a
separate MariaDB. All files are in one directory: --dir, else KT_STUDY_DEV_CLUSTER, else in the user's state folder.
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 the machine cannot run one, or (status) something is down.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster import CLUSTER, DAEMONS, PATH, Cluster, ClusterError, MachineError
from report import print_status, status
from start import up
from stop import down

# The "-core" packages contain MariaDB without a service that starts automatically.
PACKAGES = ("slurmctld", "slurmd", "slurmdbd", "slurm-client", "munge", "mariadb-server-core", "mariadb-client-core")
PROGRAMS = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "slurmdbd": "slurmdbd",
    "sbatch": "slurm-client",
    "munged": "munge",
    "mariadbd": "mariadb-server-core",
    "mariadb": "mariadb-client-core",
}
# A Unix socket's path holds 107 characters; slurmstepd's is spool/NODE/NODE_JOB.STEP, at most 40 of them.
LONGEST_DIRECTORY = 65


def install() -> None:
    if os.geteuid() != 0:
        raise MachineError("--install needs root, because it runs apt-get; install by hand: " + " ".join(PACKAGES))
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for argv in (["apt-get", "update", "-q"], ["apt-get", "install", "-yq", "--no-install-recommends", *PACKAGES]):
        if subprocess.run(argv, env=quiet, stdout=sys.stderr).returncode != 0:
            raise ClusterError(f"{' '.join(argv[:2])} failed; its message is above")


def check_machine(cluster: Cluster) -> None:
    if len(str(cluster.root)) > LONGEST_DIRECTORY:
        raise MachineError(f"{cluster.root}: Unix sockets need at most {LONGEST_DIRECTORY} letters; shorten --dir")
    if sys.platform != "linux" or os.geteuid() != 0:
        raise MachineError("the development cluster needs Linux and root, because slurmd does")
    if missing := sorted({package for program, package in PROGRAMS.items() if not shutil.which(program, path=PATH)}):
        raise MachineError(f"missing packages: {' '.join(missing)}; run `slurm/dev-cluster up --install`")


def claim(cluster: Cluster) -> None:
    """Mark the directory as ours. Raises MachineError if it has other content."""
    marker, conf = cluster.root / "kt-study-dev-cluster", cluster.slurm_conf
    ours = marker.exists() or (conf.is_file() and f"ClusterName={CLUSTER}\n" in conf.read_text(errors="replace"))
    if not ours and cluster.root.exists() and (not cluster.root.is_dir() or any(cluster.root.iterdir())):
        raise MachineError(f"{cluster.root} holds something that slurm/dev-cluster did not make; give an empty --dir")
    cluster.root.mkdir(parents=True, exist_ok=True)
    marker.touch()


@contextmanager
def only_one(cluster: Cluster) -> Iterator[None]:
    """Of two `up` at once, the second waits and finds the cluster up."""
    claim(cluster)
    with (cluster.root / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def default_directory() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(os.environ.get("KT_STUDY_DEV_CLUSTER") or Path(state) / "kt-study/dev-cluster")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="slurm/dev-cluster", description=(__doc__ or "").partition("\n")[0])
    directory = argparse.ArgumentParser(add_help=False)
    directory.add_argument(
        "--dir", type=Path, default=default_directory(), help="folder of all files (default: %(default)s)"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    up_parser = commands.add_parser("up", parents=[directory], help="start it, or repair it")
    up_parser.add_argument("--install", action="store_true", help="apt-get install what is missing first")
    status_parser = commands.add_parser(
        "status", parents=[directory], help="show what runs; exit code 3 if something does not"
    )
    status_parser.add_argument("--json", action="store_true", help="output as JSON")
    down_parser = commands.add_parser("down", parents=[directory], help="stop it; the accounting data are kept")
    down_parser.add_argument("daemons", nargs="*", metavar="DAEMON", help=f"only these: {', '.join(DAEMONS)}")
    given = parser.parse_args()
    if unknown := set(getattr(given, "daemons", [])) - set(DAEMONS):
        parser.error(f"unknown daemon {', '.join(sorted(unknown))}; there are {', '.join(DAEMONS)}")
    return given


def run(given: argparse.Namespace) -> int:
    cluster = Cluster(root=given.dir.resolve())
    if given.command == "status":
        report = status(cluster)
        print(json.dumps(report, indent=2)) if given.json else print_status(report)
        return 0 if report["up"] else 3
    if given.command == "down":
        with only_one(cluster):
            stopped = down(cluster, given.daemons)
        print(f"stopped: {', '.join(stopped) or 'nothing ran'}")
        return 0
    if given.install:
        install()
    check_machine(cluster)
    began = time.monotonic()
    with only_one(cluster):
        started = up(cluster)
    print(f"# started in {time.monotonic() - began:.1f} s: {', '.join(started) or 'nothing, all of it ran'}")
    print(f"export SLURM_CONF={cluster.slurm_conf}")
    return 0


def main() -> int:
    try:
        return run(arguments())
    except (ClusterError, subprocess.TimeoutExpired, OSError) as error:
        print(f"dev-cluster: {error}", file=sys.stderr)
        return 3 if isinstance(error, MachineError) else 1


if __name__ == "__main__":
    sys.exit(main())
