"""One small study of the digits zoo, run once by the commands of the README, and looked at by many tests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import kt_study
from tests.cli import succeeds
from tests.databases import Databases


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A study folder after init, plan --pairs 8 and launch --workers 2 --wait, on SQLite. To be copied, not to be changed."""
    folder = tmp_path_factory.mktemp("finished") / "study"
    folder.mkdir()
    succeeds(folder, "init")
    succeeds(folder, "plan", "--pairs", "8")
    succeeds(folder, "launch", "--workers", "2", "--wait", timeout=1200)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def digits(finished: Path, tmp_path_factory: pytest.TempPathFactory, databases: Databases) -> Iterator[Path]:
    """The finished study on each kind of database, after collect."""
    folder = tmp_path_factory.mktemp("digits") / "study"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("kt-study.db*"))
    databases.copy(finished, folder)
    databases.settle(folder)
    succeeds(folder, "collect")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def results(digits: Path) -> kt_study.load.Results:  # type: ignore[name-defined]
    """The parquet of the digits study."""
    return kt_study.load(digits / "results")
