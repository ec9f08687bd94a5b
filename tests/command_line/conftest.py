"""Commands that read or write the job table run on SQLite and on a real PostgreSQL."""

from __future__ import annotations

from tests.databases import databases
from tests.postgres import either_url, postgres_server, postgres_url

__all__ = ["databases", "either_url", "postgres_server", "postgres_url"]
