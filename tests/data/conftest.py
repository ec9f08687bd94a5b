from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kt_study.paths import StudyPaths


@pytest.fixture
def paths(tmp_path: Path) -> StudyPaths:
    return StudyPaths(root=tmp_path / "study")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Small networks run no faster on several threads, and much slower beside other tests."""
    torch.set_num_threads(1)
