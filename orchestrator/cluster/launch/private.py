"""What pilots on other nodes find in the study folder and nobody else should read: where the job database is."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from collections.abc import Iterator, Sequence
from urllib.parse import quote

from kt_study.database import Address, is_this_machine, parse_url
from kt_study.errors import DatabaseError
from kt_study.files import write_text
from kt_study.pilots import LaunchFiles
from orchestrator.cluster.slurm.cluster import Node


def prepare_study_folder(files: LaunchFiles, database_url: str) -> str:
    """Write the database's URL and, where it has one, its password to files of mode 0600. Returns the marker's word.

    Raises:
        DatabaseError: a URL that cannot be read.
        DiskError: the study folder cannot be written.
    """
    address = parse_url(database_url)
    url = address.url
    with _private():
        if password := address.conninfo.get("password"):
            write_text(files.passfile, f"*:*:*:*:{_escaped(password)}\n")
            url += f"{'&' if '?' in url else '?'}passfile={quote(str(files.passfile))}"
        write_text(files.database, url + "\n")
        if not files.marker.exists():
            write_text(files.marker, secrets.token_hex(8))
    return files.marker.read_text(encoding="utf-8").strip()


def require_reachable(address: Address, nodes: Sequence[Node]) -> None:
    """Refuse a database that is found on this machine's loopback or Unix socket only when pilots would sit elsewhere.

    Raises:
        DatabaseError: the address in the URL is that of this machine only, and a node is not this machine.
    """
    host = address.conninfo.get("hostaddr") or address.conninfo.get("host", "")
    if address.is_sqlite or not is_this_machine(host):
        return
    elsewhere = [node.name for node in nodes if node.host != socket.gethostname() and not is_this_machine(node.address)]
    if elsewhere:
        raise DatabaseError(
            f"the database's address {host or 'localhost'} means this machine only, and pilots would run on "
            f"{elsewhere[0]} too; start it with `kt-study db start --host` and this machine's name, and give that URL"
        )


def _escaped(password: str) -> str:
    return password.replace("\\", "\\\\").replace(":", "\\:")


@contextlib.contextmanager
def _private() -> Iterator[None]:
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)
