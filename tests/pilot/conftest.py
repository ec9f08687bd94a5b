"""A job kind that tests steer, and a store with a study in it."""

from __future__ import annotations

import pytest

from kt_study.store import JobStore, open_store
from tests.pilot.small_jobs import Kind
from worker.pilot import pilot as pilot_module


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
