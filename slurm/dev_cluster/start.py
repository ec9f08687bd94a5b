"""`up`: starts the daemons that are not running, in order of their dependencies."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import time
from dataclasses import dataclass

from cluster import ACCOUNTS, CLUSTER, DAEMONS, NODES, QOS, Cluster, ClusterError, write
from configuration import configure
from processes import Process, started_at

START_TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Daemon:
    """How a daemon is started, in the foreground so that its pid is known; `probe` succeeds once it responds."""

    name: str
    argv: tuple[str, ...]
    probe: tuple[str, ...]


def up(cluster: Cluster) -> list[str]:
    """Start the daemons that do not run and wait until all respond. Returns the names of those started."""
    missing = [daemon for daemon in DAEMONS if not cluster.process(daemon)]
    if len(missing) == len(DAEMONS):
        configure(cluster)
    for stage in stages(cluster):
        processes = [cluster.process(daemon.name) or launch(cluster, daemon) for daemon in stage]
        for daemon, process in zip(stage, processes, strict=True):
            wait_until_ready(cluster, daemon, process)
            if daemon.name == "slurmdbd":
                fill_accounting(cluster)
    wait_for_nodes(cluster)
    return missing


def stages(cluster: Cluster) -> list[list[Daemon]]:
    """The daemons in the order of their dependencies; those of one stage start together."""
    run, etc, munge = cluster.root / "run", cluster.root / "etc", str(cluster.munge_socket)
    files = [f"--{kind}-file={run / 'munge'}.{kind}" for kind in ("pid", "log", "seed")]
    # --force: munged would refuse a folder that only its owner can enter, such as /root.
    munged = (
        "munged",
        "--foreground",
        "--force",
        "--num-threads=10",
        f"--socket={munge}",
        f"--key-file={etc}/munge.key",
        *files,
    )
    mariadb = ("mariadb", "--no-defaults", f"--socket={cluster.mariadb_socket}", "-e", "select 1")
    return [
        [
            Daemon(name="munged", argv=munged, probe=("munge", "--no-input", "--socket", munge)),
            Daemon(name="mariadbd", argv=("mariadbd", f"--defaults-file={etc / 'my.cnf'}"), probe=mariadb),
        ],
        [Daemon(name="slurmdbd", argv=("slurmdbd", "-D"), probe=("sacctmgr", "-n", "show", "cluster"))],
        [Daemon(name="slurmctld", argv=("slurmctld", "-D"), probe=("scontrol", "ping"))],
        [slurmd(node) for node in NODES],
    ]


def slurmd(node: str) -> Daemon:
    """scontrol queries the slurmd that SLURMD_NODENAME names."""
    probe = ("env", f"SLURMD_NODENAME={node}", "scontrol", "show", "slurmd")
    return Daemon(name=node, argv=("slurmd", "-D", "-N", node), probe=probe)


def launch(cluster: Cluster, daemon: Daemon) -> Process:
    with cluster.log(daemon.name).open("ab") as log:
        child = subprocess.Popen(
            daemon.argv,
            env=cluster.environment,
            cwd=cluster.root,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    process = Process(pid=child.pid, started=started_at(child.pid) or "")
    write(cluster.record(daemon.name), json.dumps(vars(process)))
    return process


def wait_until_ready(cluster: Cluster, daemon: Daemon, process: Process) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while cluster.call(*daemon.probe).returncode != 0:
        log = cluster.log(daemon.name)
        if not process.alive:
            lines = log.read_text(errors="replace").strip().splitlines() or ["no message"]
            raise ClusterError(f"{daemon.name} stopped while starting: {lines[-1]} (see {log})")
        if time.monotonic() > deadline:
            raise ClusterError(f"{daemon.name} does not answer after {START_TIMEOUT_S:.0f} s; see {log}")
        time.sleep(0.1)


def fill_accounting(cluster: Cluster) -> None:
    """Add the cluster, accounts, qualities of service and this user, unless slurmdbd has them."""
    user = pwd.getpwuid(os.geteuid()).pw_name
    if CLUSTER not in cluster.query("sacctmgr", "-nP", "show", "cluster", "format=cluster"):
        cluster.demand("sacctmgr", "-i", "add", "cluster", CLUSTER)
    for kind, column, names in (("account", "account", ACCOUNTS), ("qos", "name", QOS)):
        known = cluster.query("sacctmgr", "-nP", "show", kind, f"format={column}")
        if missing := [name for name in names if name not in known]:
            cluster.demand("sacctmgr", "-i", "add", kind, ",".join(missing))
    known = cluster.query("sacctmgr", "-nP", "show", "assoc", f"user={user}", "format=account")
    if missing := [name for name in ACCOUNTS if name not in known]:
        cluster.demand("sacctmgr", "-i", "add", "user", user, f"account={','.join(missing)}")
        settings = (f"defaultaccount={ACCOUNTS[0]}", f"qos={','.join(QOS)}")
        cluster.demand("sacctmgr", "-i", "modify", "user", user, "set", *settings)


def wait_for_nodes(cluster: Cluster) -> None:
    """Wait until every node responds. Nodes that an administrator drained or set down stay so."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while silent := [node for node, state in node_states(cluster).items() if state.endswith("*") or state == "unknown"]:
        if time.monotonic() > deadline:
            raise ClusterError(
                f"no response from {', '.join(silent)} in {START_TIMEOUT_S:.0f} s; see {cluster.root}/log"
            )
        time.sleep(0.1)


def node_states(cluster: Cluster) -> dict[str, str]:
    """Node -> its state in sinfo; a "*" at the end means that it does not respond."""
    states = dict.fromkeys(NODES, "unknown")
    for line in cluster.query("sinfo", "-hN", "-o", "%N %T"):
        name, _, state = line.partition(" ")
        states[name] = state
    return states
