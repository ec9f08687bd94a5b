"""retry, cancel, pause and resume: what they pick, and what they say when that is nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from kt_study.errors import UsageError
from kt_study.store import JobStore, Selection, open_store
from orchestrator.cli.commands import cancel, pause, resume, retry
from tests.databases import Databases
from tests.store.making import STUDY, claim_one, job, lasting, model, passing, plan

COMMANDS = {"cancel": cancel.command, "pause": pause.command, "resume": resume.command, "retry": retry.command}
CAUSES = ("0fdfec6b1234", "0fdfec6b9999", "77aa00000000")


@pytest.fixture
def folder(tmp_path: Path, databases: Databases) -> Path:
    """A study of five jobs: one done, three failed from three causes, one ready."""
    (tmp_path / "study.toml").write_text(f'[study]\nname = "{STUDY}"\n[dataset]\nkind = "digits"\n')
    databases.settle(tmp_path)
    store = open_store(databases.url(tmp_path), create=True)
    store.add_models([model("k1", "resnet18"), model("k2", "vit_tiny")])
    plan(store, *(job(n, kind="transfer", teacher="k1", student="k2", priority=9 - n) for n in range(5)))
    store.finish(claim_one(store), {})
    for cause in CAUSES:
        store.fail(claim_one(store), lasting(group=cause))
    return tmp_path


@pytest.fixture
def store(folder: Path, databases: Databases) -> JobStore:
    return open_store(databases.url(folder))


def say(folder: Path, *arguments: str) -> str:
    asked = [*arguments[1:], "--study", str(folder / "study.toml")]
    return CliRunner().invoke(COMMANDS[arguments[0]], asked, catch_exceptions=False).output


def test_the_name_of_a_cause_that_status_shows_is_enough(folder: Path, store: JobStore) -> None:
    assert say(folder, "retry", "--error", "77aa0000") == "1 job put back to ready\n"
    store.fail(claim_one(store), passing())  # it backs off
    assert say(folder, "pause", "--error", passing().group) == "1 job paused\n"
    assert say(folder, "cancel", "--error", CAUSES[0]) == "1 job cancelled\n"
    with pytest.raises(UsageError, match=f"that may be {CAUSES[0]}, {CAUSES[1]}; give more digits"):
        say(folder, "cancel", "--error", "0fdfec6b")


@pytest.mark.parametrize("act", COMMANDS)
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--job", "1", "--job", "99999"), "--job 99999: study 'study' has no such job; `kt-study query "),
        (("--error", "zzz"), r"--error zzz: no job .* such a cause \(there are: 0fdfec6b, 0fdfec6b, 77aa0000\)"),
        (("--teacher", "nope*"), r"--teacher nope\*: no job of study 'study' has such a teacher$"),
        (("--student", "vit_tinny"), r"no job of study 'study' has such a student; did you mean 'vit_tiny'\?"),
    ],
)
def test_what_the_study_does_not_have_is_refused(
    folder: Path, store: JobStore, act: str, arguments: tuple[str, ...], line: str
) -> None:
    with pytest.raises(UsageError, match=line):
        say(folder, act, *arguments)
    assert store.tally(Selection()) == {"done": 1, "failed": 3, "ready": 1}


def test_a_selection_that_changes_nothing_says_how_its_jobs_stand(folder: Path, store: JobStore) -> None:
    assert say(folder, "cancel", "--job", "1") == "0 jobs cancelled; selected jobs: 1 done\n"
    assert (
        say(folder, "retry", "--job", "5", "--job", "1") == "0 jobs put back to ready; selected jobs: 1 done, 1 ready\n"
    )
    assert say(folder, "cancel", "--job", "5", "--error", CAUSES[0]) == "0 jobs cancelled; selected jobs: none\n"
    assert say(folder, "pause") == "1 job paused\n"
    assert say(folder, "pause") == "0 jobs paused; selected jobs: 1 done, 3 failed, 1 paused\n"
    assert say(folder, "resume") == "1 job resumed\n"
    assert say(folder, "cancel") == "4 jobs cancelled\n"
    assert store.failures(STUDY) == []
