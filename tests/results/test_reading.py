"""Reading the database of a study that is not ours."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import sqlalchemy as sa

from kt_study.store import open_store
from kt_study.tables import studies
from orchestrator.results.streaming import reading


def test_a_database_at_rest_is_read_in_a_folder_where_we_may_not_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the owner's processes have ended there is no log to read, and we cannot make one."""
    url = f"sqlite:///{tmp_path / 'kt-study.db'}"
    store = open_store(url, create=True)
    store.add_study("theirs", {})
    store.close()
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # noqa: ARG005 -- root may write anywhere
    with reading(url) as reader:
        assert reader.rows(sa.select(studies.c.name)) == [("theirs",)]
        assert [path.name for path in tmp_path.iterdir()] == ["kt-study.db"]
