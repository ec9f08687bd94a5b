"""A study belongs to the folder that planned it: another folder that uses its name is refused, with both ways out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from kt_study.store import open_store
from tests.cli import kt_study, refused, succeeds
from tests.command_line import tiny

STUDY_FILE = tiny.STUDY_FILE.replace("[complementarity]\npairs = 0", "[complementarity]\npairs = 1")


@pytest.fixture
def folders(tmp_path: Path, either_url: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two folders with the same study file and one database outside both; the study is planned in the first."""
    monkeypatch.setenv("KT_STUDY_DB", either_url)
    made = tmp_path / "first", tmp_path / "second"
    for folder in made:
        folder.mkdir()
        (folder / "study.toml").write_text(STUDY_FILE)
    succeeds(made[0], "plan")
    return made


def test_the_other_folder_is_refused_until_it_adopts_the_study(folders: tuple[Path, Path], either_url: str) -> None:
    first, second = folders
    store = open_store(either_url)
    before = store.study("tiny"), store.summary("tiny").counts
    for command in (["plan"], ["plan", "--dry-run"], ["launch", "--workers", "1"]):
        assert refused(second, *command) == (
            f"kt-study: study 'tiny' of this database was planned in {first}, where its jobs have their files; choose "
            "another name in study.toml, or move the study to this folder with `kt-study plan --adopt`"
        )
    assert (store.study("tiny"), store.summary("tiny").counts) == before
    assert [path.name for path in second.iterdir()] == ["study.toml"]
    wrong = [one for one in json.loads(kt_study(second, "doctor", "--json").stdout) if one["what"] == "study"]
    assert [(one["verdict"], str(first) in one["found"]) for one in wrong] == [("wrong", True)]

    assert "0 new jobs" in succeeds(second, "plan", "--adopt")
    assert store.study("tiny")["folder"] == str(second)
    assert kt_study(first, "plan").returncode == 2
    succeeds(second, "plan")


def test_another_name_is_another_study(folders: tuple[Path, Path], either_url: str) -> None:
    _, second = folders
    (second / "study.toml").write_text(STUDY_FILE.replace('name = "tiny"', 'name = "other"'))
    succeeds(second, "plan")
    assert open_store(either_url).study("other")["folder"] == str(second)


def test_another_path_to_the_same_folder_is_the_same_folder(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folders[0])
    succeeds(tmp_path / "link", "plan")


def test_a_folder_that_is_moved_or_copied_with_its_database_goes_on(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/study.toml").write_text(STUDY_FILE)
    succeeds(tmp_path / "a", "plan")
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    shutil.move(tmp_path / "a", tmp_path / "b")
    for name in ("b", "copy"):
        succeeds(tmp_path / name, "plan")
        seen = json.loads(kt_study(tmp_path / name, "status", "--json").stdout)
        assert (seen["folder"], seen["database"]) == (str(tmp_path / name), str(tmp_path / name / "kt-study.db"))
