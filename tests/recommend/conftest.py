"""A job database for each test, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

from tests.results.conftest import postgres_server, postgres_url, store, url

__all__ = ["postgres_server", "postgres_url", "store", "url"]
