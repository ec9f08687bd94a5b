from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postgres import Server
from tests.require import require
from tests.slurm.dev_cluster import DevCluster, dev_cluster
from tests.slurm.study import ClusterStudy

NOT_THIS_MACHINE = 3


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevCluster]:
    """A real Slurm: that of KT_STUDY_DEV_CLUSTER, which stays up, or one of the session's own."""
    kept = os.environ.get("KT_STUDY_DEV_CLUSTER")
    root = Path(kept) if kept else tmp_path_factory.mktemp("slurm")
    done = dev_cluster(root, "up")
    require("slurm", done.returncode != NOT_THIS_MACHINE, done.stderr.strip())
    try:
        assert done.returncode == 0, done.stderr
        yield DevCluster(root=root, greeting=done.stdout)
    finally:
        if not kept:
            dev_cluster(root, "down")
            shutil.rmtree(root / "mariadb", ignore_errors=True)  # the bulk of it; the logs stay


@pytest.fixture
def study(cluster: DevCluster, postgres_server: Server, tmp_path: Path) -> Iterator[ClusterStudy]:
    """A study folder and a PostgreSQL database of the test's own, on the cluster."""
    cluster.wait_until_idle()
    made = ClusterStudy(folder=tmp_path / "study", url=postgres_server.database(), cluster=cluster)
    yield made
    made.end()
    assert dev_cluster(cluster.root, "up").returncode == 0  # whatever the test broke
    cluster.wait_until_idle()
