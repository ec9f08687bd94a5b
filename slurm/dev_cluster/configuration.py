"""Configuration files, ports, fake GPUs and the database directory."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import zlib
from pathlib import Path
from string import Template

from cluster import GPUS_PER_NODE, NODE_SIZE, NODES, Cluster, ClusterError, write

TEMPLATES = Path(__file__).resolve().parent / "templates"
FIRST_PORT, LAST_PORT = 16820, 32000  # below the kernel's ephemeral range, which starts at 32768


def configure(cluster: Cluster) -> None:
    """Write every file that the daemons need. No daemon runs, so new ports are chosen."""
    for folder in ("etc", "run", "log", "tmp", "spool/slurmctld", *(f"spool/{node}" for node in NODES)):
        (cluster.root / folder).mkdir(parents=True, exist_ok=True)
    ports = free_ports(cluster, 2 + len(NODES))
    values = {
        "root": str(cluster.root),
        "hostname": socket.gethostname().partition(".")[0],
        "user": pwd.getpwuid(os.geteuid()).pw_name,
        "slurmctld_port": str(ports[0]),
        "slurmdbd_port": str(ports[1]),
    }
    values["nodes"] = "\n".join(
        f"NodeName={node} NodeHostname={values['hostname']} NodeAddr=127.0.0.1 Port={port} {NODE_SIZE}"
        for node, port in zip(NODES, ports[2:], strict=True)
    )
    for template in TEMPLATES.iterdir():
        write(cluster.root / "etc" / template.name, Template(template.read_text()).substitute(values))
    write(cluster.root / "etc/gres.conf", fake_gpus(cluster))
    if not (cluster.root / "etc/munge.key").exists():
        write(cluster.root / "etc/munge.key", os.urandom(128).hex())
    if not (cluster.root / "mariadb").exists():
        create_database(cluster, values["user"])


def fake_gpus(cluster: Cluster) -> str:
    """gres.conf. Each GPU must be a character device; the number at the end of its name is its index."""
    lines = []
    for node in NODES:
        folder = cluster.root / "gpu" / node
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(GPUS_PER_NODE):
            link(folder / f"gpu{index}", Path("/dev/null"))
        lines.append(f"NodeName={node} Name=gpu Type=fake File={folder}/gpu[0-{GPUS_PER_NODE - 1}]")
    return "\n".join(lines) + "\n"


def link(path: Path, target: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def create_database(cluster: Cluster, user: str) -> None:
    """Create the database in another folder and rename it, so that an incomplete one is never used."""
    aside = cluster.root / "mariadb.new"
    shutil.rmtree(aside, ignore_errors=True)
    cluster.demand(
        "mariadb-install-db",
        "--no-defaults",
        f"--datadir={aside}",
        f"--tmpdir={cluster.root / 'tmp'}",  # it deletes the temporary tables of all others in its folder
        f"--user={user}",
        "--auth-root-authentication-method=socket",
        f"--auth-root-socket-user={user}",
        "--skip-test-db",
        "--innodb-log-file-size=32M",
    )
    aside.rename(cluster.root / "mariadb")


def free_ports(cluster: Cluster, count: int) -> list[int]:
    """Consecutive free ports of the loopback address; each directory starts its search at a different port."""
    blocks = [range(first, first + count) for first in range(FIRST_PORT, LAST_PORT, count)]
    here = zlib.crc32(str(cluster.root).encode()) % len(blocks)
    for ports in blocks[here:] + blocks[:here]:
        if all(is_free(port) for port in ports):
            return list(ports)
    raise ClusterError(f"no {count} free ports between {FIRST_PORT} and {LAST_PORT} on 127.0.0.1")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
