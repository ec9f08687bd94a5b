"""kt-study report: which studies it is about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import orchestrator.results.report
from kt_study.errors import StudyFileError
from orchestrator.cli.commands.report import command
from tests.cli import succeeds

STUDY = '[study]\nname = "mine"\n[dataset]\nkind = "digits"\n'


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str | None]:
    """The study that each report was about, None for all; commands run in an empty folder."""
    asked: list[str | None] = []

    def write_report(results: Path, out: Path, study: str | None, **_: Any) -> Path:  # noqa: ARG001
        asked.append(study)
        return out / "index.html"

    monkeypatch.setattr(orchestrator.results.report, "write_report", write_report)
    monkeypatch.chdir(tmp_path)
    return asked


def report(*arguments: str) -> None:
    CliRunner().invoke(command, arguments, catch_exceptions=False)


def test_parquet_without_a_study_file_is_reported_whole(reported: list[str | None]) -> None:
    report("--results", "elsewhere")
    assert reported == [None]


def test_a_study_file_chooses_its_study(reported: list[str | None]) -> None:
    Path("study.toml").write_text(STUDY)
    Path("other.toml").write_text(STUDY.replace("mine", "other"))
    report()
    report("--results", "elsewhere")
    report("--results", "elsewhere", "--study", "other.toml")
    report("--results", "elsewhere", "--all")
    assert reported == ["mine", "mine", "other", None]


@pytest.mark.parametrize("arguments", [(), ("--results", "elsewhere", "--study", "mistyped.toml")])
def test_a_study_file_that_is_missed_is_said(reported: list[str | None], arguments: tuple[str, ...]) -> None:
    with pytest.raises(StudyFileError, match=r"\.toml: no such study file"):
        report(*arguments)
    assert reported == []


def test_the_page_repeats_how_the_study_was_planned(tmp_path: Path) -> None:
    succeeds(tmp_path, "init")
    few = ("--pairs", "2", "--complementarity-pairs", "all")
    for options in (few, ("--pairs", "2", "--grid", "lr=1e-3,1e-4"), few, (*few, "--dry-run")):
        succeeds(tmp_path, "plan", *options)
    succeeds(tmp_path, "collect")
    succeeds(tmp_path, "report")
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert (
        "<pre>kt-study plan --pairs 2 --complementarity-pairs all\nkt-study plan --pairs 2 --grid lr=1e-3,1e-4\n"
        "kt-study launch\nkt-study collect\nkt-study report</pre>" in page
    )
