"""kt-study worker: what it imports, and its exit code."""

from __future__ import annotations

from pathlib import Path

from kt_study.store import open_store
from tests.cli import kt_study, succeeds
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
WORKER = ("worker", "--device", "cpu", "--threads", "1", "--idle", "1")


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
    done = kt_study(tmp_path, *WORKER)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (
        0, "no work is left that could run; 3 done, 0 failed, 0 released, 0 lost",
    ), done.stdout  # fmt: skip


def test_a_worker_that_ends_with_failed_jobs_exits_with_1(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(STUDY_FILE)
    store = open_store(f"sqlite:///{tmp_path}/kt-study.db", create=True)
    store.add_study("tiny", {})
    store.plan("tiny", [job(1, kind="no-such-kind")])
    done = kt_study(tmp_path, *WORKER)
    assert done.returncode == 1, done.stderr
    assert "0 done, 1 failed" in done.stdout.splitlines()[-1]
    assert done.stderr == "kt-study status shows the failures, grouped by cause; kt-study retry tries them again\n"
