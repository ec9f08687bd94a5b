from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.require import require
from tests.slurm.dev_cluster import DevCluster, dev_cluster

NOT_THIS_MACHINE = 3


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevCluster]:
    """A real Slurm: that of KT_STUDY_DEV_CLUSTER, which stays up, or one of the session's own."""
    kept = os.environ.get("KT_STUDY_DEV_CLUSTER")
    root = Path(kept) if kept else tmp_path_factory.mktemp("slurm")
    began = time.monotonic()
    done = dev_cluster(root, "up")
    require("slurm", done.returncode != NOT_THIS_MACHINE, done.stderr.strip())
    try:
        assert done.returncode == 0, done.stderr
        yield DevCluster(root=root, greeting=done.stdout, up_seconds=time.monotonic() - began)
    finally:
        if not kept:
            dev_cluster(root, "down")
            shutil.rmtree(root / "mariadb", ignore_errors=True)  # the bulk of it; the logs stay
