"""Plans that are written are written on SQLite and on a real PostgreSQL."""

from __future__ import annotations

from tests.databases import databases, postgres_server

__all__ = ["databases", "postgres_server"]
