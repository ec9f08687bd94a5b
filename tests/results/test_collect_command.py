"""`kt-study collect` as it is typed: what it says, and what it leaves behind when it refuses."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from kt_study.errors import DatabaseError, NothingPlanned, UsageError
from kt_study.store import open_store
from orchestrator.cli.commands.collect import command
from tests.store.making import STUDY, claim_one, job, model, plan, row
from tests.users import BOB, User, folder_of


def collected(folder: Path, *arguments: str) -> str:
    (folder / "study.toml").write_text(f'[study]\nname = "{STUDY}"\n[dataset]\nkind = "digits"\n')
    asked = ["--study", str(folder / "study.toml"), *arguments]
    return CliRunner().invoke(command, asked, catch_exceptions=False).stdout


def test_a_refusal_makes_no_folder(tmp_path: Path, url: str) -> None:
    with pytest.raises(NothingPlanned, match="`kt-study plan` creates"):
        collected(tmp_path, "--db", f"sqlite:///{tmp_path}/none.db")
    plan(open_store(url, create=True), job(1), study="another")
    with pytest.raises(UsageError, match=f"no study '{STUDY}' in the database"):
        collected(tmp_path, "--db", url)
    with pytest.raises(DatabaseError):
        collected(tmp_path, "--db", "postgresql://127.0.0.1:1/none")
    assert not (tmp_path / "results").exists()


def test_a_lock_of_somebody_who_may_only_read_keeps_nobody_from_collecting(url: str) -> None:
    with folder_of(User(0, gid=0)) as folder:
        plan(open_store(url, create=True), job(1))
        collected(folder, "--db", url)
        lock = folder / "results" / ".collect.lock"
        assert stat.S_IMODE(lock.stat().st_mode) == 0o600
        lock.chmod(0o644)  # as older versions left it
        hold = "import fcntl, time; fcntl.flock(open('results/.collect.lock'), fcntl.LOCK_EX); print(flush=True); time.sleep(60)"
        with BOB.start(folder, sys.executable, "-c", hold) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "\n"
            assert "1 jobs" in collected(folder, "--db", url)
            holder.kill()
        assert stat.S_IMODE(lock.stat().st_mode) == 0o600


def test_what_a_training_starts_from_is_no_model_of_the_study(tmp_path: Path, url: str) -> None:
    store = open_store(url, create=True)
    store.add_models([model("k1", "ours"), model("k2", "theirs"), model("k3", "ours:untrained")])
    plan(store, job(1, teacher="k1", student="k2"), job(2, kind="train", student="k3"))
    store.finish(claim_one(store, kinds=["logits"]), row())
    said = collected(tmp_path, "--db", url)
    assert " 2 models (and 1 untrained start), " in said
    assert json.loads(collected(tmp_path, "--db", url, "--json"))["rows"]["models"] == 3, "rows are counted as they are"
    plan(store, job(3, teacher="k1", student="k2"), study="other")
    assert " 4 models (and 1 untrained start), " in collected(
        tmp_path, "--db", url, "--all", "--out", f"{tmp_path}/all"
    )
