"""A short draw of the fault run (tests/faults) on the development cluster with a PostgreSQL of its own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import disk
from tests.faults.catalogue import FAULTS, SLURM
from tests.faults.run import Ground, Tally, drawn, on_cluster, play, unbroken
from tests.require import require
from tests.slurm.dev_cluster import DevCluster

SEED, ROUND = 1, 2


@pytest.fixture
def ground(cluster: DevCluster) -> Iterator[Ground]:
    trouble = disk.trouble()
    require("root", not trouble, trouble)
    root = Path(tempfile.mkdtemp(prefix="kt-faults-"))
    root.chmod(0o755)  # PostgreSQL runs as another account
    cluster.wait_until_idle()
    with on_cluster(root, cluster, mounts=True) as found:
        yield found
    shutil.rmtree(root)


@pytest.mark.timeout(1800)
def test_a_round_on_slurm_needs_no_hand(ground: Ground) -> None:
    tally = Tally()
    reference = unbroken(ground, SLURM)
    play(ground, ROUND, drawn(SEED, ROUND, list(FAULTS)), reference, seed=SEED, tally=tally, say=print)
    assert tally.tried.total() >= 2
    assert tally.survived == tally.tried
