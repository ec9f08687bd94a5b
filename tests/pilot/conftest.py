"""The pilot's tests run on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import pytest

from kt_study.store import JobStore, open_store
from tests.pilot.small_jobs import Kind
from tests.postgres import either_url, postgres_server, postgres_url
from worker.pilot import pilot as pilot_module

__all__ = ["either_url", "postgres_server", "postgres_url"]


@pytest.fixture
def kind(monkeypatch: pytest.MonkeyPatch) -> Kind:
    """Every job is done by this, whatever its kind."""
    made = Kind()
    monkeypatch.setattr(pilot_module, "job_kind", lambda _name: made)
    monkeypatch.setattr(pilot_module, "NO_FIT_PATIENCE_S", 0.5)
    return made


@pytest.fixture
def store(either_url: str) -> JobStore:
    made = open_store(either_url, first_backoff_s=0.0, patience_s=5.0)
    made.add_study("s", {})
    return made
