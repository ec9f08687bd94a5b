"""One small study, run by a real worker, whose students many tests export."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli import succeeds
from tests.databases import Databases, databases, postgres_server
from tests.export.study import draw_digits, train_checkpoints, write_study

__all__ = ["databases", "postgres_server"]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, databases: Databases) -> Path:
    """A study folder after plan and launch --wait: two networks, four transfers, every student kept."""
    folder = tmp_path_factory.mktemp("tiny")
    draw_digits(folder, train=40, val=40)
    train_checkpoints(folder, steps=12)
    write_study(folder)
    databases.settle(folder)
    succeeds(folder, "plan")
    succeeds(folder, "launch", "--workers", "1", "--wait", timeout=600)
    return folder
