"""Long work shows a bar on a terminal and plain lines in a log."""

from __future__ import annotations

from pathlib import Path

import pytest

from kt_study.store import open_store
from orchestrator.terminal import progress
from tests.cli import kt_study
from tests.databases import Databases, url_of
from tests.store.making import claim_one, job, plan, row
from tests.terminal import Terminal


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, databases: Databases) -> Path:
    """A study of three jobs, done, not collected."""
    made = tmp_path_factory.mktemp("progress")
    (made / "study.toml").write_text('[study]\nname = "study"\n[dataset]\nkind = "digits"\n')
    databases.settle(made)
    store = open_store(url_of(made), create=True)
    plan(store, *(job(number) for number in range(3)))
    for _ in range(3):
        store.finish(claim_one(store), row())
    return made


def test_a_bar_on_a_terminal(folder: Path) -> None:
    with Terminal(folder, "collect", "--out", "on-terminal") as terminal:
        assert terminal.ends() == 0
    assert "\rcollecting: " in terminal.text
    assert "3 jobs" in terminal.text.splitlines()[-1]
    with Terminal(folder, "report", "--results", "on-terminal", "--out", "page") as terminal:
        assert terminal.ends() == 0
    assert "\rreporting: " in terminal.text


def test_nothing_but_text_in_a_log(folder: Path) -> None:
    done = kt_study(folder, "collect", "--out", "in-a-log")
    assert done.returncode == 0
    assert "\r" not in done.stdout + done.stderr
    assert "\x1b" not in done.stdout + done.stderr


def test_a_log_says_of_how_many(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.shown("preparing", "images", 5000) as advance:
        now[0] = 10.0
        advance("train", 1200)
    assert capsys.readouterr().err == "preparing: 1,200 of 5,000 images, train\n"


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.shown("collecting", "rows") as advance:
        for second in range(25):
            now[0] = second
            advance("transfers", 100)
    assert capsys.readouterr().err.splitlines() == [
        "collecting: 1,100 rows, transfers",
        "collecting: 2,100 rows, transfers",
    ]
