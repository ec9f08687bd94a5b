"""Private files in the study folder from which pilots on other nodes read the job database's URL."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Sequence
from urllib.parse import quote

from kt_study.database import SECRETS, Address, hosts, is_this_machine, parse_url
from kt_study.errors import DatabaseError
from kt_study.files import private_folder, write_private
from kt_study.pilots import LaunchFiles
from orchestrator.cluster.slurm.cluster import Node


def prepare_study_folder(files: LaunchFiles, database_url: str) -> str:
    """Write the database's URL and its password, if any, to files of mode 0600. Returns the marker's token.

    Raises:
        DatabaseError: a URL that cannot be read.
        DiskError: the study folder cannot be written.
        UntrustedFile: its private folder belongs to another account.
    """
    address = parse_url(database_url)
    url = address.url
    private_folder(files.folder, below=files.root)
    if password := address.conninfo.get("password"):
        escaped = password.replace("\\", "\\\\").replace(":", "\\:")
        write_private(files.passfile, f"*:*:*:*:{escaped}\n".encode(), below=files.root)
        url = _with_option(url, "passfile", str(files.passfile))
    for name in sorted(set(SECRETS) & set(address.conninfo) - {"password"}):  # libpq has no file for these
        url = _with_option(url, name, address.conninfo[name])
    write_private(files.database, f"{url}\n".encode(), below=files.root)
    if not files.marker.exists():
        write_private(files.marker, secrets.token_hex(8).encode(), below=files.root)
    return files.marker.read_text(encoding="utf-8").strip()


def require_reachable(address: Address, nodes: Sequence[Node]) -> None:
    """Refuse a database that only this machine can reach if pilots would run elsewhere.

    Raises:
        DatabaseError: the URL has a loopback address or a Unix socket, and a node is not this machine.
    """
    servers = () if address.is_sqlite else hosts(address)
    if not servers or not all(map(is_this_machine, servers)):
        return
    elsewhere = [node.name for node in nodes if node.host != socket.gethostname() and not is_this_machine(node.address)]
    if elsewhere:
        raise DatabaseError(
            f"the database's address {servers[0] or 'localhost'} means this machine only, and pilots would run on "
            f"{elsewhere[0]} too; run `kt-study db stop`, then `kt-study db start --host $(hostname)`, and use the new URL"
        )


def _with_option(url: str, name: str, value: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}{name}={quote(value)}"
