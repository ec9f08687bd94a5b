"""Notifications: one message at the end of a study and one at its first failure, by webhook or by a command.

Pilots check for these events after each failed job and when they exit, `launch --wait` at its end, `status` on each call. The
first process that sees an event creates its marker file (O_EXCL, which is also atomic on a shared folder) and sends the
message; all others find the marker. So an event is sent at most once, whichever workers are killed. A failure to send is
harmless: sending is tried twice, and the marker records the error. The webhook's address is a secret: launch writes it to
one file of mode 0600, and it is in no log, argument list or database. Only the channels of the caller's own study are used,
and only if no other account could have written them or the command's files.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from kt_study.errors import DatabaseError, DiskError, StudyFileError, UntrustedFile
from kt_study.files import private_folder, write_private
from kt_study.pilots import LaunchFiles
from kt_study.records import Record
from kt_study.study import NotifySection, is_web_address
from kt_study.trust import read_own, require_own

if TYPE_CHECKING:
    from kt_study.store import FailureGroup, JobStore, Workload

log = logging.getLogger("kt-study.notify")

Event = Literal["finished", "failure"]

TRIES = 2
TIMEOUT_S = 10.0
"""Seconds that a webhook or a command may take."""
_REDIRECTED = "it answered with a redirect"


class Channels(Record, frozen=True, kw_only=True):
    """Where messages are sent, and which; stored in `LaunchFiles.channels`, mode 0600."""

    webhook: str = ""
    command: str = ""
    on: tuple[str, ...] = ("finished", "failure")


class Message(Record, frozen=True, kw_only=True):
    """The JSON that a webhook receives. A command receives only `text`, on standard input."""

    event: Event
    study: str
    text: str
    workload: dict[str, Any]
    failures: list[dict[str, Any]]


def channels_of(section: NotifySection, folder: Path) -> Channels | None:
    """Where the messages of a study are sent; None if the study file configures none.

    Raises:
        StudyFileError: a webhook file that cannot be read, or an address that is not http or https. The address is secret.
        UntrustedFile: another account can write the webhook file.
    """
    webhook = os.environ.get("KT_STUDY_WEBHOOK") or section.webhook or _read(section.webhook_file, folder)
    if webhook and not is_web_address(webhook):
        raise StudyFileError(
            "[notify] the webhook is not an https:// address; correct it in the study file or its file"
        )
    if not webhook and not section.command:
        return None
    return Channels(webhook=webhook, command=section.command, on=tuple(section.on))


def prepare(files: LaunchFiles, study: str, channels: Channels | None, workload: Workload) -> None:
    """Before workers start: write the channels for them, and delete the markers of events that a new run may bring again.

    Raises:
        DiskError: the study folder cannot be written.
        UntrustedFile: another account can write a file of the command, or owns the private folder.
    """
    if channels is None:
        files.channels(study).unlink(missing_ok=True)
        return
    _require_own_command(channels.command, files.root)
    write_private(files.channels(study), msgspec.json.encode(channels), below=files.root)
    if workload.ready_now or workload.ready_later:
        files.sent(study, "finished").unlink(missing_ok=True)
    if not workload.failed:
        files.sent(study, "failure").unlink(missing_ok=True)


def send_due(store: JobStore, study: str, files: LaunchFiles) -> None:
    """Send all messages that are due and not sent yet, unless the study is another account's.

    Raises nothing: a failed message must not harm the study.
    """
    try:
        if files.channels(study).stat().st_uid != os.geteuid():
            return
        channels = msgspec.json.decode(read_own(files.channels(study), files.root), type=Channels)
        _require_own_command(channels.command, files.root)
    except (OSError, msgspec.DecodeError):
        return
    except UntrustedFile as error:
        log.warning("no message is sent: %s", error)
        return
    try:
        _send_due(store, study, channels, files)
    except (OSError, DatabaseError, DiskError, UntrustedFile) as error:
        log.warning("no message could be sent: %s", error)


def _send_due(store: JobStore, study: str, channels: Channels, files: LaunchFiles) -> None:
    workload = store.workload(study)
    failures = store.failures(study) if workload.failed else []
    for event in events(workload):
        if event in channels.on and _claim(files, study, event):
            outcome = deliver(channels, message(event, study, workload, failures), files.root)
            with contextlib.suppress(DiskError, UntrustedFile):
                write_private(files.sent(study, event), f"{outcome}\n".encode(), below=files.root)


def events(workload: Workload) -> list[Event]:
    """The events that a study's workload shows."""
    found: list[Event] = ["failure"] if workload.failed else []
    if workload.done + workload.failed and not (workload.running or workload.ready_now or workload.ready_later):
        found.append("finished")
    return found


def message(event: Event, study: str, workload: Workload, failures: list[FailureGroup]) -> Message:
    """The message about an event."""
    head = {"finished": "is over" if workload.failed or workload.blocked else "is complete", "failure": "has a failure"}
    counts = {name: count for name, count in msgspec.to_builtins(workload).items() if count and name != "next_s"}
    lines = [f"kt-study: study {study} {head[event]}", ", ".join(f"{n} {name}" for name, n in counts.items())]
    lines += [f"{group.count} x {group.error}: {group.message}" for group in failures[:5]]
    lines += ["kt-study status shows more; kt-study retry tries failed jobs again"] if failures else []
    groups = [
        {"group": group.group, "error": group.error, "message": group.message, "count": group.count}
        for group in failures
    ]
    return Message(event=event, study=study, text="\n".join(lines), workload=counts, failures=groups)


def deliver(channels: Channels, message: Message, folder: Path) -> str:
    """Send one message to every channel. Returns "sent", or the errors, without addresses."""
    errors = []
    if channels.webhook and (error := _retried(lambda: _post(channels.webhook, message))):
        errors.append(f"webhook: {error}")
    if channels.command and (error := _retried(lambda: _run(channels.command, message, folder))):
        errors.append(f"command: {error}")
    for error in errors:
        log.warning("message %r was not sent: %s", message.event, error)
    return "; ".join(errors) or "sent"


def _retried(send: Callable[[], str]) -> str:
    for _ in range(TRIES - 1):
        if not (error := send()) or error.startswith(_REDIRECTED):
            return error
        time.sleep(1.0)
    return send()


def _post(url: str, message: Message) -> str:
    """Returns the error, "" for none. Errors of urllib may contain the address, so only their class is reported."""
    from urllib.error import HTTPError
    from urllib.request import HTTPRedirectHandler, Request, build_opener

    class NoRedirects(HTTPRedirectHandler):
        """urllib would send a GET without the message to the other address."""

        def redirect_request(self, *_: object) -> None:
            return None

    body = json.dumps({**msgspec.to_builtins(message), "content": message.text}).encode()
    try:
        request = Request(url, data=body, headers={"Content-Type": "application/json"}, method="POST")
        with build_opener(NoRedirects).open(request, timeout=TIMEOUT_S):
            return ""
    except HTTPError as error:
        if 300 <= error.code < 400:
            return f"{_REDIRECTED} ({error.code}), which is not followed; use the address that it redirects to"
        return f"it answered {error.code}"
    except Exception as error:
        return f"it could not be reached ({type(error).__name__})"


def _run(command: str, message: Message, folder: Path) -> str:
    environment = {**os.environ, "KT_STUDY_EVENT": message.event, "KT_STUDY_NAME": message.study}
    try:
        done = subprocess.run(
            shlex.split(command),
            input=message.text + "\n",
            text=True,
            cwd=folder,
            env=environment,
            timeout=TIMEOUT_S,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        return f"it could not be run ({type(error).__name__})"
    return f"it ended with {done.returncode}" if done.returncode else ""


def _require_own_command(command: str, folder: Path) -> None:
    """Refuse a command that runs or reads a file of the study folder that another account can write.

    Raises:
        UntrustedFile: it names the file.
    """
    try:
        named = [folder / word for word in shlex.split(command)]
    except ValueError:
        return  # running it reports the error
    for file in named:
        if file.is_relative_to(folder) and file.is_file():
            require_own(file, folder)


def _claim(files: LaunchFiles, study: str, event: Event) -> bool:
    """Whether this process is the first to see the event."""
    marker = files.sent(study, event)
    private_folder(marker.parent, below=files.root)
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        return False
    return True


def _read(name: str, folder: Path) -> str:
    if not name:
        return ""
    try:
        return read_own(folder / Path(name).expanduser(), folder).decode("utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StudyFileError(
            f"[notify] webhook_file = {name!r} cannot be read; it must contain the address in one line"
        ) from error
