"""A job database for each test, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

from pathlib import Path

import pytest

from kt_study.store import JobStore, open_store


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a database that nothing else uses."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/kt-study.db"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def store(url: str) -> JobStore:
    """The database of `url` with its tables."""
    return open_store(url, create=True)
