"""Every test here runs on SQLite and on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kt_study.store import JobStore, open_store


@pytest.fixture
def url(either_url: str) -> str:
    """URL of a database that nothing else uses, with the present tables."""
    return either_url


@pytest.fixture
def store(url: str) -> Iterator[JobStore]:
    """A store whose retries come at once."""
    opened = open_store(url, first_backoff_s=0.0, patience_s=10.0)
    yield opened
    opened.close()
