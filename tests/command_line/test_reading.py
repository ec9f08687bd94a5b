"""Whose study it is not, or may not be written, can still read it."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kt_study.store import open_store
from tests.planning.support import FOUR
from tests.results import synthetic
from tests.users import ALICE, BOB, User, folder_of

STUDY_FILE = "\n".join(['[study]\nname = "tiny"', '[dataset]\nkind = "digits"', *FOUR])


@pytest.fixture
def folder() -> Iterator[Path]:
    """Alice's study with results, in the database and as parquet; Bob may read everything and write nothing."""
    with folder_of(ALICE) as made:
        (made / "study.toml").write_text(STUDY_FILE)
        store = open_store(f"sqlite:///{made}/kt-study.db", create=True)
        synthetic.fill(store, synthetic.make_world(models=3, n=100, classes=4), study="tiny")
        store._database.close()
        assert User(0, gid=0).kt_study(made, "collect").returncode == 0
        with contextlib.closing(sqlite3.connect(made / "kt-study.db")) as last:
            last.execute("SELECT count(*) FROM jobs")  # whose end takes SQLite's log away, as that of a worker does
        assert not (made / "kt-study.db-wal").exists()
        for path in (made / "kt-study.db", made / "study.toml", *made.rglob("*")):
            ALICE.owns(path)
        yield made


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A folder of Bob's."""
    with folder_of(BOB) as made:
        yield made


def done(process: subprocess.CompletedProcess[str]) -> str:
    assert process.returncode == 0, process
    return process.stdout


def one_line(process: subprocess.CompletedProcess[str], code: int) -> str:
    assert (process.returncode, process.stdout) == (code, ""), process
    (line,) = process.stderr.strip().splitlines()
    return line


def files(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_reader_sees_status_results_and_report(folder: Path, elsewhere: Path) -> None:
    before = files(folder)
    assert "study tiny" in done(BOB.kt_study(folder, "status"))
    assert "job 1: " in done(BOB.kt_study(folder, "status", "--job", "1"))
    counted = done(BOB.kt_study(folder, "query", "SELECT count(*) AS n FROM jobs", "--format", "csv"))
    assert counted.splitlines()[0] == "n"
    assert "transfers" in done(BOB.kt_study(folder, "collect", "--out", str(elsewhere / "results")))
    page = done(BOB.kt_study(folder, "report", "--out", str(elsewhere / "report"))).strip()
    assert Path(page).stat().st_size > 1000
    assert files(folder) == before, "nothing is left beside the database, which Alice could not write"


@pytest.mark.parametrize("mode", [0o755, 0o1777])
def test_a_reader_leaves_nothing_beside_the_database_of_another(folder: Path, mode: int) -> None:
    """Files that SQLite makes for a reader would be Bob's, and Alice's workers could not write them."""
    folder.chmod(mode)
    before = files(folder)
    done(BOB.kt_study(folder, "status"))
    done(BOB.kt_study(folder, "query", "success-rate"))
    assert files(folder) == before


def test_a_reader_sees_what_a_worker_has_just_written(folder: Path) -> None:
    with sqlite3.connect(folder / "kt-study.db") as writer:
        writer.execute("UPDATE jobs SET state = 'cancelled'")
        writer.commit()
        assert (folder / "kt-study.db-wal").stat().st_size
        assert "cancelled" in done(BOB.kt_study(folder, "status"))


def test_the_database_may_be_named_in_the_study_file_of_another(folder: Path) -> None:
    named = STUDY_FILE.replace("[dataset]", f'database = "sqlite:///{folder}/kt-study.db"\n[dataset]', 1)
    (folder / "study.toml").write_text(named)
    assert "study tiny" in done(BOB.kt_study(folder, "status"))


def test_what_writes_is_refused_before_any_work(folder: Path) -> None:
    before = files(folder)
    line = one_line(BOB.kt_study(folder, "plan"), 3)
    assert line == (
        f"kt-study: {folder} is read-only for you (drwxr-xr-x, owner {ALICE.uid}), and a plan is written there; plan in a "
        "copy of the study folder, or look at the plan with --dry-run"
    )
    assert "dry run: nothing written" in done(BOB.kt_study(folder, "plan", "--dry-run"))
    assert "results: cannot be written: Permission denied; choose another folder with --out" in one_line(
        BOB.kt_study(folder, "collect"), 3
    )
    for command in ("cancel", "pause"):
        line = one_line(BOB.kt_study(folder, command), 3)
        assert (
            f"readonly database; you may not write it (owner {ALICE.uid}), or its disk is read-only: only status, q"
            in line
        )
    assert files(folder) == before


def test_the_owner_of_a_folder_without_write_permission_is_a_reader_too(folder: Path) -> None:
    (folder / "kt-study.db").chmod(0o444)
    folder.chmod(0o555)
    assert "study tiny" in done(ALICE.kt_study(folder, "status"))
    assert f"{folder} is read-only for you (dr-xr-xr-x, owner {ALICE.uid})" in one_line(
        ALICE.kt_study(folder, "plan"), 3
    )
