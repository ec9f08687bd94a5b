"""What `kt-study status` shows: on a terminal a page that refreshes in place, elsewhere plain blocks."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from kt_study.records import Failure
from kt_study.store import JobStore, open_store
from tests.cli import kt_study
from tests.store.making import claim_one, job, lasting, plan, row
from tests.terminal import PATIENCE_S, Terminal

STUDY = '[study]\nname = "study"\n[dataset]\nkind = "digits"\n'
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f]")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "study.toml").write_text(STUDY)
    return tmp_path


@pytest.fixture
def store(either_url: str, monkeypatch: pytest.MonkeyPatch) -> JobStore:
    monkeypatch.setenv("KT_STUDY_DB", either_url)
    made = open_store(either_url)
    plan(made, *(job(number) for number in range(4)), job(4, kind="transfer"))
    return made


def finish_one(store: JobStore) -> None:
    store.finish(claim_one(store), row())


def test_the_page_refreshes_in_place_and_ends_with_the_study(folder: Path, store: JobStore) -> None:
    with Terminal(folder, "status", "--watch") as terminal:
        terminal.wait_for("0/4")
        store.fail(claim_one(store, kinds=("transfer",)), lasting())
        terminal.wait_for("1 failed")
        for _ in range(4):
            finish_one(store)
        assert terminal.ends() == 1  # a job failed
    pages = terminal.text.split("\x1b[H")
    assert len(pages) > 3
    assert terminal.text.count("\x1b[2J") == 1  # cleared once, then written over
    assert "4/4" in pages[-1]
    assert "study study: over" in pages[-1]
    assert "ValueError" in pages[-1]
    assert "\x1b[32m" in pages[-1]  # done is green
    assert terminal.text.index("\x1b[?25l") < terminal.text.rindex("\x1b[?25h")  # the cursor is back


def test_a_small_window_is_not_overrun(folder: Path, store: JobStore) -> None:
    for number in range(4):
        store.fail(
            claim_one(store), Failure(error="ValueError", message="long " * 30, traceback="", group=f"cause {number}")
        )
    with Terminal(folder, "status", "--watch", size=(10, 50)) as terminal:
        terminal.wait_for("more lines")
        terminal.press_ctrl_c()
        terminal.ends()
    for page in terminal.text.split("\x1b[H")[1:]:
        lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", page).splitlines()
        assert len(lines) <= 10
        assert max(map(len, lines)) <= 50


def test_ctrl_c_leaves_a_clean_terminal(folder: Path, store: JobStore) -> None:
    finish_one(store)
    with Terminal(folder, "status", "--watch") as terminal:
        terminal.wait_for("1/4")
        terminal.press_ctrl_c()
        assert terminal.ends() == 0
    assert "Traceback" not in terminal.text
    assert terminal.text.rstrip().endswith("\x1b[?25h")


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb", "NO_COLOR": "1"}])
def test_no_colour_where_none_is_wanted(folder: Path, store: JobStore, environment: dict[str, str]) -> None:
    finish_one(store)
    with Terminal(folder, "status", **environment) as terminal:
        assert terminal.ends() == 0
    assert "\x1b" not in terminal.text
    with Terminal(folder, "status", "--watch", **environment) as terminal:
        terminal.wait_for("waiting" if "TERM" not in environment else "ready")
        terminal.press_ctrl_c()
        terminal.ends()
    assert not re.search(r"\x1b\[\d+m", terminal.text)
    if "TERM" in environment:
        assert "\x1b" not in terminal.text


def test_colour_on_a_terminal_none_in_a_pipe(folder: Path, store: JobStore) -> None:
    finish_one(store)
    with Terminal(folder, "status") as terminal:
        assert terminal.ends() == 0
    assert "\x1b[32m" in terminal.text
    piped = kt_study(folder, "status").stdout
    assert "\x1b" not in piped
    assert re.sub(r"\x1b\[\d+m", "", terminal.text).splitlines()[:4] == piped.splitlines()[:4]


def test_in_a_log_watch_writes_plain_blocks_when_something_changed(folder: Path, store: JobStore) -> None:
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "kt_study", "status", "--watch"], cwd=folder, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    for _ in range(5):
        finish_one(store)
    rest, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    blocks = re.findall(r"^\d\d:\d\d:\d\d study study$", first + rest, re.MULTILINE)
    assert 2 <= len(blocks) <= 6  # the five jobs at once, or one after another
    assert not CONTROL.search(first + rest)
