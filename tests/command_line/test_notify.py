"""Messages of long runs: a real web server, a real command, and pilots that all see the same end."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from kt_study import notify
from kt_study.errors import StudyFileError
from kt_study.pilots import LaunchFiles
from kt_study.store import JobStore, open_store
from kt_study.study import NotifySection, read_study, recorded
from tests.cli import kt_study, succeeds
from tests.command_line.tiny import STUDY_FILE
from tests.store.making import STUDY, claim_one, job, lasting, plan, row

SECRET = "token-3141592653"


class Hook(ThreadingHTTPServer):
    """A webhook that keeps what it gets and answers with `code`."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.code = 200
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{SECRET}"


class _Handler(BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append({"path": self.path, **json.loads(body)})
        self._answer()

    def do_GET(self) -> None:
        self.server.got.append({"path": self.path, "event": "GET"})
        self._answer()

    def _answer(self) -> None:
        self.send_response(self.server.code)
        self.send_header("Location", f"{self.server.url}/elsewhere")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hook() -> Iterator[Hook]:
    server = Hook()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def files(tmp_path: Path) -> LaunchFiles:
    return LaunchFiles(root=tmp_path)


@pytest.fixture
def store(either_url: str, monkeypatch: pytest.MonkeyPatch) -> JobStore:
    monkeypatch.setenv("KT_STUDY_DB", either_url)
    made = open_store(either_url)
    plan(made, *(job(number) for number in range(3)))
    return made


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify.time, "sleep", lambda _: None)
    monkeypatch.delenv("KT_STUDY_WEBHOOK", raising=False)


def arm(store: JobStore, files: LaunchFiles, **section: Any) -> None:
    channels = notify.channels_of(NotifySection(**section), files.root)
    notify.prepare(files, STUDY, channels, store.workload(STUDY))


def look(store: JobStore, files: LaunchFiles) -> None:
    notify.send_due(store, STUDY, files)


def finish_all(store: JobStore) -> None:
    while claims := store.claim("worker"):
        store.finish(claims[0], row())


def test_one_message_at_the_end_and_none_before(store: JobStore, files: LaunchFiles, hook: Hook) -> None:
    arm(store, files, webhook=hook.url)
    look(store, files)
    store.finish(claim_one(store), row())
    look(store, files)
    assert hook.got == []
    finish_all(store)
    look(store, files)
    look(store, files)
    (message,) = hook.got
    assert message["path"] == f"/{SECRET}"
    assert (message["event"], message["study"], message["failures"]) == ("finished", STUDY, [])
    assert message["workload"] == {"done": 3}
    assert message["text"].splitlines()[0] == f"kt-study: study {STUDY} is complete"


def test_the_first_failure_is_told_once_and_then_the_end(store: JobStore, files: LaunchFiles, hook: Hook) -> None:
    arm(store, files, webhook=hook.url)
    store.fail(claim_one(store), lasting("first"))
    look(store, files)
    store.fail(claim_one(store), lasting("second"))
    look(store, files)
    assert [message["event"] for message in hook.got] == ["failure"]
    assert hook.got[0]["failures"] == [{"group": "first", "error": "ValueError", "message": "wrong", "count": 1}]
    finish_all(store)
    look(store, files)
    assert [message["event"] for message in hook.got] == ["failure", "finished"]
    assert "is over" in hook.got[1]["text"]


def test_only_what_was_asked_for(store: JobStore, files: LaunchFiles, hook: Hook) -> None:
    arm(store, files, webhook=hook.url, on=["finished"])
    store.fail(claim_one(store), lasting())
    look(store, files)
    assert hook.got == []


def test_of_many_pilots_that_see_the_end_one_tells(store: JobStore, files: LaunchFiles, hook: Hook) -> None:
    arm(store, files, webhook=hook.url)
    finish_all(store)
    code = (
        "import sys; from pathlib import Path; from kt_study import notify; from kt_study.pilots import LaunchFiles; "
        "from kt_study.store import open_store; sys.stdin.read(); "
        f"notify.send_due(open_store({store.url!r}), {STUDY!r}, LaunchFiles(root=Path({str(files.root)!r})))"
    )
    pilots = [subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) for _ in range(6)]
    for pilot in pilots:
        assert pilot.stdin is not None
        pilot.stdin.close()
    assert [pilot.wait(120) for pilot in pilots] == [0] * 6
    assert len(hook.got) == 1


def test_a_study_that_grows_is_told_of_again(store: JobStore, files: LaunchFiles, hook: Hook) -> None:
    arm(store, files, webhook=hook.url)
    finish_all(store)
    look(store, files)
    arm(store, files, webhook=hook.url)  # a launch with nothing to do
    look(store, files)
    assert len(hook.got) == 1
    plan(store, job(7))
    arm(store, files, webhook=hook.url)
    finish_all(store)
    look(store, files)
    assert [message["workload"] for message in hook.got] == [{"done": 3}, {"done": 4}]


def test_a_command_gets_the_text_on_standard_input(store: JobStore, files: LaunchFiles) -> None:
    (files.root / "take.py").write_text(
        "import os, sys\n"
        "open('told', 'a').write(os.environ['KT_STUDY_EVENT'] + ' ' + sys.argv[1] + '\\n' + sys.stdin.read())\n"
    )
    arm(store, files, command=f"{sys.executable} take.py 'two words; $HOME'")
    finish_all(store)
    look(store, files)
    assert (files.root / "told").read_text().splitlines() == [
        "finished two words; $HOME",  # no shell has read it
        f"kt-study: study {STUDY} is complete",
        "3 done",
    ]


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"command": "no-such-command-at-all"}, "command: it could not be run (FileNotFoundError)"),
        ({"command": "false"}, "command: it ended with 1"),
        ({"command": "unbalanced 'quote"}, "command: it could not be run (ValueError)"),
        ({"webhook": f"http://127.0.0.1:9/{SECRET}"}, "webhook: it could not be reached (URLError)"),
        ({"webhook": f"http://[/{SECRET}"}, "webhook: it could not be reached (ValueError)"),
    ],
)
def test_a_message_that_cannot_be_sent_harms_nothing(
    store: JobStore, files: LaunchFiles, caplog: pytest.LogCaptureFixture, section: dict[str, str], said: str
) -> None:
    arm(store, files, **section)
    finish_all(store)
    look(store, files)
    assert files.sent(STUDY, "finished").read_text() == f"{said}\n"
    assert said in caplog.text
    assert SECRET not in caplog.text


def test_a_webhook_that_errs_is_tried_twice(store: JobStore, files: LaunchFiles, hook: Hook) -> None:
    hook.code = 500
    arm(store, files, webhook=hook.url)
    finish_all(store)
    look(store, files)
    assert len(hook.got) == notify.TRIES == 2
    assert files.sent(STUDY, "finished").read_text() == "webhook: it answered 500\n"


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_webhook_that_redirects_gets_one_message(store: JobStore, files: LaunchFiles, hook: Hook, code: int) -> None:
    hook.code = code
    arm(store, files, webhook=hook.url)
    finish_all(store)
    look(store, files)
    assert [(call["path"], call["event"]) for call in hook.got] == [(f"/{SECRET}", "finished")]
    said = files.sent(STUDY, "finished").read_text()
    assert said.startswith(f"webhook: it answered with a redirect ({code}), which is not followed; use the address")


def test_the_address_comes_from_the_environment_a_file_or_the_study_file(
    files: LaunchFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    (files.root / "hook").write_text("https://file.example/\n")
    assert notify.channels_of(NotifySection(), files.root) is None
    from_file = notify.channels_of(NotifySection(webhook_file="hook"), files.root)
    assert from_file is not None
    assert from_file.webhook == "https://file.example/"
    monkeypatch.setenv("KT_STUDY_WEBHOOK", "https://environment.example/")
    from_environment = notify.channels_of(NotifySection(webhook="https://said.example/"), files.root)
    assert from_environment is not None
    assert from_environment.webhook == "https://environment.example/"
    monkeypatch.delenv("KT_STUDY_WEBHOOK")
    with pytest.raises(StudyFileError, match="webhook_file = 'nowhere' cannot be read"):
        notify.channels_of(NotifySection(webhook_file="nowhere"), files.root)
    with pytest.raises(StudyFileError) as refused:
        notify.channels_of(NotifySection(webhook=f"file:///{SECRET}"), files.root)
    assert SECRET not in str(refused.value)


def test_a_real_run_tells_once_and_keeps_the_address_to_itself(tmp_path: Path, hook: Hook) -> None:
    (tmp_path / "study.toml").write_text(f'{STUDY_FILE}[notify]\nwebhook = "{hook.url}"\n')
    assert SECRET not in json.dumps(recorded(read_study(tmp_path / "study.toml")))
    store = open_store(f"sqlite:///{tmp_path}/kt-study.db", create=True)
    store.add_study("tiny", recorded(read_study(tmp_path / "study.toml")))
    store.plan("tiny", [job(1, kind="no-such-kind")])
    done = kt_study(tmp_path, "launch", "--workers", "1", "--wait", timeout=300)
    assert done.returncode == 1, done.stderr
    assert [message["event"] for message in hook.got] == ["failure", "finished"]
    succeeds_or_fails = kt_study(tmp_path, "status")
    assert succeeds_or_fails.returncode == 1
    assert len(hook.got) == 2
    private = tmp_path / ".kt-study" / "notify" / "tiny.json"
    assert private.stat().st_mode & 0o777 == 0o600
    told = [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert sorted(told) == sorted([private, tmp_path / "study.toml"])


def test_plan_keeps_no_secret_in_the_database(tmp_path: Path) -> None:
    succeeds(tmp_path, "init")
    with (tmp_path / "study.toml").open("a") as file:
        file.write(f'\n[notify]\nwebhook = "https://example.org/{SECRET}"\n')
    succeeds(tmp_path, "plan", "--pairs", "0")
    with sqlite3.connect(tmp_path / "kt-study.db") as database:
        assert not any(SECRET in str(line) for line in database.iterdump())
