"""kt-study worker: what it imports, and its exit code."""

from __future__ import annotations

from pathlib import Path

import pytest

from kt_study.store import open_store
from tests.cli import kt_study, refused, succeeds
from tests.command_line.tiny import STUDY_FILE
from tests.planning.support import FOUR, model_table, write_study
from tests.planning.test_odd_files import FOLDER, classes
from tests.store.making import job

MINE = """
import helper
from torch import nn

def net(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(helper.PIXELS, num_classes))
"""
OURS = ("-m", "kt_study", "worker", "--device", "cpu", "--threads", "1", "--idle", "1")


def test_files_beside_the_study_file_hide_nothing_that_is_installed(tmp_path: Path) -> None:
    """In plan and in the worker alike; a factory finds its own modules there in both."""
    classes(tmp_path / "val")
    for name in ("timm", "PIL", "safetensors", "random"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('a file of the user')\n")
    (tmp_path / "helper.py").write_text("PIXELS = 3 * 32 * 32\n")
    (tmp_path / "mine.py").write_text(MINE)
    own = {"timm": None, "factory": "mine:net", "arguments": {"num_classes": 2}}
    write_study(tmp_path, FOLDER, "[complementarity]\npairs = 1\n", FOUR[0], model_table("own", **own))
    assert "3 new jobs" in succeeds(tmp_path, "plan", "--pairs", "0")
    done = kt_study(tmp_path, *OURS[2:])
    assert (done.returncode, done.stdout.splitlines()[-1]) == (
        0, "no work is left that could run; 3 done, 0 failed, 0 given back, 0 lost",
    ), done.stdout  # fmt: skip


@pytest.mark.parametrize("name", ["token", "timm", "worker"])
def test_a_factory_in_a_file_with_a_name_that_is_taken(tmp_path: Path, name: str) -> None:
    classes(tmp_path / "val")
    (tmp_path / f"{name}.py").write_text("def net(): pass\n")
    write_study(tmp_path, FOLDER, *FOUR, model_table("own", timm=None, factory=f"{name}:net"))
    line = refused(tmp_path.parent, "plan", "--study", f"{tmp_path.name}/study.toml")
    assert f"correct `factory` or `arguments`; {tmp_path}/{name}.py is hidden by /" in line
    assert line.endswith(": rename it")


def test_a_worker_that_ends_with_failed_jobs_exits_with_1(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(STUDY_FILE)
    store = open_store(f"sqlite:///{tmp_path}/kt-study.db", create=True)
    store.add_study("tiny", {})
    store.plan("tiny", [job(1, kind="no-such-kind")])
    for ended in ("0 done, 1 failed", "0 done, 0 failed"):  # also one that finds them failed
        done = kt_study(tmp_path, *OURS[2:])
        assert done.returncode == 1, done.stderr
        assert ended in done.stdout.splitlines()[-1]
        assert done.stderr == (
            "see kt-study status for the failures, grouped by cause; kt-study retry tries them again\n"
        )
    succeeds(tmp_path, "cancel")
    assert kt_study(tmp_path, *OURS[2:]).returncode == 0
