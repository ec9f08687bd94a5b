"""Connections and processes: none is open while the process forks, and none is left open at its end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kt_study.store import open_store
from tests.store.making import claim_one, job, plan


@pytest.mark.parametrize("round_", range(3))
def test_a_child_that_writes_while_its_parent_writes_loses_nothing(tmp_path: Path, round_: int) -> None:  # noqa: ARG001
    """SQLite keeps its locks by process: with a connection open across the fork, commits were lost."""
    url = f"sqlite:///{tmp_path / 'kt-study.db'}"
    store = open_store(url, create=True)
    plan(store, *(job(n) for n in range(300)))
    store.finish(claim_one(store), {})
    children = []
    for name in range(3):
        child = os.fork()
        if child == 0:
            _drain(url, f"child-{name}")
            os._exit(0)
        children.append(child)
    _drain(url, "parent")
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert open_store(url).workload().done == 300


def _drain(url: str, worker: str) -> None:
    store = open_store(url)
    while claims := store.claim(worker):
        store.finish(claims[0], {})


_WORKS_AND_ENDS = """
import sys
from kt_study.store import open_store
from tests.store.making import claim_one, job, plan
store = open_store(sys.argv[1], create=True)
plan(store, job(1))
store.finish(claim_one(store), {})
"""


def test_once_every_process_has_ended_the_file_alone_is_the_database(tmp_path: Path) -> None:
    """Who copies kt-study.db, and not SQLite's log beside it, has every result."""
    url = f"sqlite:///{tmp_path / 'kt-study.db'}"
    subprocess.run([sys.executable, "-c", _WORKS_AND_ENDS, url], cwd=Path(__file__).parents[2], check=True, timeout=300)
    assert [path.name for path in tmp_path.iterdir()] == ["kt-study.db"]
    assert open_store(url).workload().done == 1
