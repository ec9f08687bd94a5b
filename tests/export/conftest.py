"""One small study, run by a real worker, whose students many tests export."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cli import succeeds
from tests.databases import Databases
from tests.export.study import draw_digits, train_checkpoints, write_study


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study folder after plan and launch --wait, on SQLite: two networks, four transfers, every student kept."""
    folder = tmp_path_factory.mktemp("finished") / "study"
    folder.mkdir()
    draw_digits(folder, train=40, val=40)
    train_checkpoints(folder, steps=12)
    write_study(folder)
    succeeds(folder, "plan")
    succeeds(folder, "launch", "--workers", "1", "--wait", timeout=600)
    return folder


@pytest.fixture(scope="session")
def tiny(finished: Path, tmp_path_factory: pytest.TempPathFactory, databases: Databases) -> Path:
    """That study on each kind of database."""
    folder = tmp_path_factory.mktemp("tiny") / "study"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("kt-study.db*"))
    databases.copy(finished, folder)
    databases.settle(folder)
    return folder
