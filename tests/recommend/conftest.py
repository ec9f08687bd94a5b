"""A job database for each test, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

from tests.results.conftest import store, url

__all__ = ["store", "url"]
