"""Names and messages that would move a cursor, change colours or add lines do so nowhere."""

from __future__ import annotations

import csv
import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from kt_study.errors import StudyFileError
from kt_study.printable import OneLine, printable
from kt_study.records import Failure
from kt_study.store import open_store
from kt_study.study import read_study
from orchestrator.cli import status, watch
from orchestrator.cli.commands import status as status_command
from orchestrator.results.query import QueryResult, render
from tests.cli import refused
from tests.store.making import STUDY, claim_one, job, plan
from tests.terminal import Terminal

EVIL = "a\x1b[2J\x1b]0;title\x07\nb\r\x9bc\u202ed\u2028e\x7f"
TOLD = r"a\x1b[2J\x1b]0;title\x07\nb\r\x9bc\u202ed\u2028e\x7f"
ACTING = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]")

MINIMAL = '[study]\nname = "x"\n[dataset]\nkind = "digits"\n'
MODEL = '[[model]]\nname = "a"\ntimm = "resnet18"\n'


def test_what_acts_is_written_as_its_code_and_the_rest_as_it_is() -> None:
    assert printable(EVIL) == TOLD
    assert printable("n\udce9e") == r"n\udce9e"  # a byte of a file name that is no UTF-8
    assert printable("Bär, 熊, שלום, 🐻, naïve") == "Bär, 熊, שלום, 🐻, naïve"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (MINIMAL.replace('"x"', '"x\\n"'), "[study] name"),
        (MINIMAL + 'val = "images\\u001b[2J"\n', "[dataset] val"),
        (MINIMAL + 'name = "two\\nlines"\n', "[dataset] name"),
        (MINIMAL + MODEL.replace('"a"', '"a\\u009b"'), "[[model]] name"),
        (MINIMAL + MODEL + 'checkpoint = "w\\u202e.pth"\n', "[[model]] checkpoint"),
        (MINIMAL + '[transfer]\nstudents = ["*", "b\\r*"]\n', "[transfer] students"),
        (MINIMAL + '"a\\u001b[2Jb" = 3\n', "[dataset]"),
    ],
)
def test_a_study_file_with_such_a_name_is_refused_in_one_line(tmp_path: Path, text: str, place: str) -> None:
    (tmp_path / "study.toml").write_text(text)
    with pytest.raises(StudyFileError) as said:
        read_study(tmp_path / "study.toml")
    assert str(said.value) == f"{tmp_path}/study.toml: {place}: a control character or the end of a line; take it out"


def test_arguments_and_commands_are_the_users_own(tmp_path: Path) -> None:
    text = MINIMAL + MODEL + 'arguments = { prompt = "a\\nb" }\n[notify]\ncommand = """mail\n-s x"""\n'
    (tmp_path / "study.toml").write_text(text)
    assert read_study(tmp_path / "study.toml").notify.command == "mail\n-s x"


def test_a_study_folder_with_such_a_name_is_refused(tmp_path: Path) -> None:
    """Its path would stand in the sbatch script."""
    folder = tmp_path / "a\n#SBATCH --uid=0"
    folder.mkdir()
    (folder / "study.toml").write_text(MINIMAL)
    line = refused(folder, "status")
    assert (
        line
        == f"kt-study: {tmp_path}/a\\n#SBATCH --uid=0: a control character or the end of a line in the path; rename the folder"
    )


def test_status_shows_what_a_failure_said_on_one_line(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/kt-study.db"
    store = open_store(url, create=True)
    plan(store, job(1), job(2))
    failure = Failure(error=EVIL, message=EVIL, traceback="", group="0" * 12, transient=False)
    claim = claim_one(store, worker=EVIL, limit=1)
    store.fail(claim, failure)
    claim_one(store, worker=EVIL, limit=1)
    (tmp_path / "study.toml").write_text(f'[study]\nname = "{STUDY}"\n[dataset]\nkind = "digits"\n')

    def shown(*arguments: str) -> str:
        asked = ["--study", str(tmp_path / "study.toml"), "--db", url, *arguments]
        return CliRunner().invoke(status_command.command, asked, catch_exceptions=False).output

    for text in (shown(), shown("--job", str(claim.job_id)), shown("--why", str(claim.job_id))):
        assert TOLD in text
        assert not ACTING.search(text)
    seen = status.summary(store, STUDY, status_command.LaunchFiles(root=tmp_path))
    page = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in watch.page(seen, width=400)]
    assert any(TOLD in line for line in page)
    assert not any(ACTING.search(line) or "\n" in line for line in page)


def test_a_workers_log_is_shown_without_what_acts(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"one\ttwo\n10%\r20%\x1b[31m red\n" + b"\xff\n")
    store = open_store(f"sqlite:///{tmp_path}/kt-study.db", create=True)
    plan(store, job(1))
    row = store.job(claim_one(store).job_id)
    attempt = row.attempts[-1].__class__(**{**_fields(row.attempts[-1]), "log": str(log)})
    shown = status.log_of(row.__class__(**{**_fields(row), "attempts": (attempt,)}))
    assert shown == "one     two\n10%\n20%\\x1b[31m red\n\ufffd"


def _fields(record: object) -> dict[str, object]:
    return {name: getattr(record, name) for name in record.__struct_fields__}  # type: ignore[attr-defined]


def test_a_table_keeps_its_lines_whatever_its_cells_hold() -> None:
    table = render(QueryResult(columns=(EVIL, "n"), rows=[(EVIL, 1), ("b", 2)]), "table").decode()
    assert len(table.splitlines()) == 4
    assert not ACTING.search(table)
    assert table.splitlines()[0].startswith(TOLD)


def test_a_log_has_a_line_for_each_message(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        logging.getLogger("x").info("class %s of %d", EVIL, 3)
    assert OneLine("%(levelname)s %(message)s").format(caplog.records[0]) == f"INFO class {TOLD} of 3"


def test_a_query_on_a_terminal_writes_what_acts_as_codes_and_to_a_file_as_it_is(tmp_path: Path) -> None:
    open_store(f"sqlite:///{tmp_path}/kt-study.db", create=True)
    codes = ", ".join(str(ord(character)) for character in EVIL)
    query = ("query", f"SELECT char({codes}) AS evil, 1 AS n", "--db", f"sqlite:///{tmp_path}/kt-study.db", "--format")
    (tmp_path / "study.toml").write_text(MINIMAL)
    for style in ("csv", "json", "table"):
        with Terminal(tmp_path, *query, style) as terminal:
            assert terminal.ends() == 0
        shown = terminal.text.replace("\r\n", "\n")
        assert not ACTING.search(shown), shown
        if style == "csv":
            assert shown == f"evil,n\n{TOLD},1\n"
        if style == "json":
            assert json.loads(shown) == [{"evil": EVIL, "n": 1}]
    with (tmp_path / "rows.csv").open("wb") as file:
        subprocess.run([sys.executable, "-m", "kt_study", *query, "csv"], cwd=tmp_path, stdout=file, check=True)
    with (tmp_path / "rows.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["evil", "n"], [EVIL, "1"]]
    with Terminal(tmp_path, *query, "parquet") as terminal:
        assert terminal.ends() == 2
    assert "redirect it to a file" in terminal.text
