"""A database that lacks a column is not a database that is away: nothing waits for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from kt_study.database import parse_url, sqlalchemy_engine
from kt_study.errors import SchemaMismatch
from kt_study.failures import is_transient
from kt_study.store import JobStore
from kt_study.store.spool import Spool
from tests.store.making import claim_one, job, plan


def test_a_missing_column_is_said_at_once_and_nothing_is_spooled(store: JobStore, tmp_path: Path) -> None:
    engine = sqlalchemy_engine(parse_url(store.url))
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE trainings RENAME COLUMN seconds TO gone"))
    engine.dispose()
    plan(store, job(1))
    spool = Spool(tmp_path / "spool")
    try:
        with pytest.raises(SchemaMismatch, match="seconds") as caught:
            spool.finish(store, claim_one(store), {"trainings": [{"model": "m", "seconds": 1.0}]})
    finally:
        with engine.begin() as connection:
            connection.execute(sa.text("ALTER TABLE trainings RENAME COLUMN gone TO seconds"))
        engine.dispose()
    assert spool.waiting() == []
    assert not is_transient(caught.value)
