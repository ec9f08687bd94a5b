"""One small study of the digits zoo, run once by the commands of the README, and looked at by many tests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import kt_study
from tests.cli import succeeds
from tests.databases import Databases, databases, postgres_server

__all__ = ["databases", "postgres_server"]


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory, databases: Databases) -> Iterator[Path]:
    """A study folder after init, plan --pairs 8, launch --workers 2 --wait and collect."""
    folder = tmp_path_factory.mktemp("digits")
    succeeds(folder, "init")
    databases.settle(folder)
    succeeds(folder, "plan", "--pairs", "8")
    succeeds(folder, "launch", "--workers", "2", "--wait", timeout=1200)
    succeeds(folder, "collect")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def results(digits: Path) -> kt_study.load.Results:  # type: ignore[name-defined]
    """The parquet of the digits study."""
    return kt_study.load(digits / "results")
