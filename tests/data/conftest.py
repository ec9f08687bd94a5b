from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from kt_study.paths import StudyPaths
from tests.require import require


@pytest.fixture
def paths(tmp_path: Path) -> StudyPaths:
    return StudyPaths(root=tmp_path / "study")


@pytest.fixture
def trained() -> nn.Module:
    """A small network of timm's with weights that no seed of a study gives."""
    torch.manual_seed(99)
    return timm.create_model("test_resnet", num_classes=10)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    require("root", os.geteuid() == 0 and shutil.which("mount") is not None, "mounting a small disk needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True)
    require("root", done.returncode == 0, "this system does not let root mount a tmpfs")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)  # an error that a test has caught may hold a file of it open


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Small networks run no faster on several threads, and much slower beside other tests."""
    torch.set_num_threads(1)
