"""Every test here runs on SQLite and on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kt_study.store import JobStore, open_store
from tests.postgres import postgres_server, postgres_url

__all__ = ["postgres_server", "postgres_url"]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a database that nothing else uses, with the present tables."""
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres_url"))
    made = f"sqlite:///{tmp_path / 'kt-study.db'}"
    open_store(made, create=True).close()
    return made


@pytest.fixture
def store(url: str) -> Iterator[JobStore]:
    """A store whose retries come at once."""
    opened = open_store(url, first_backoff_s=0.0, patience_s=10.0)
    yield opened
    opened.close()
