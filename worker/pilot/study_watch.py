"""A thread that checks whether the study of a worker still exists and was not stopped.

It is a separate thread, since a hanging network file system must not block the heartbeat.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from kt_study.database import parse_url
from kt_study.pilots import PilotOptions, last_stop

CHECK_EVERY_S = 5.0
STOP_COMMAND = "kt-study stop"


class StudyWatch:
    """Calls `on_end` once with a reason: `kt-study stop` was called, or the study's files are gone.

    The study folder, the token in its marker (if it has one) and its SQLite file count as gone after they were missing for
    the length of a lease: a network file system may show a wrong state for less. An error other than a missing file does
    not count.
    """

    def __init__(self, options: PilotOptions, database_url: str, on_end: Callable[[str], None]) -> None:
        self._options, self._on_end = options, on_end
        address = parse_url(database_url)
        self._database = Path(address.path) if address.is_sqlite else None
        self._marker = _token(options.files.marker)
        self._missing_since: float | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="study-watch", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def end(self) -> None:
        """Stop the thread."""
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(min(CHECK_EVERY_S, self._options.lease_s / 6)):
            if reason := self._reason_to_stop():
                self._on_end(reason)
                return

    def _reason_to_stop(self) -> str:
        """Why to stop, or empty."""
        if last_stop(self._options.files) not in ("", self._options.after_stop):
            return STOP_COMMAND
        missing = self._missing()
        now = time.monotonic()
        if not missing:
            self._missing_since = None
        elif self._missing_since is None:
            self._missing_since = now
        elif now - self._missing_since >= self._options.lease_s:
            return missing
        return ""

    def _missing(self) -> str:
        """Which file of the study is missing, or empty."""
        root = Path(self._options.root)
        if _is_gone(root):
            return f"the loss of its study: the folder {root} is gone"
        if self._marker and _token(self._options.files.marker) not in (None, self._marker):
            return f"the loss of its study: {self._options.files.marker} is gone, or another study's"
        if self._database is not None and _is_gone(self._database):
            return f"the loss of its study: the database {self._database} is gone"
        return ""


def _is_gone(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _token(file: Path) -> str | None:
    """The token in a file: empty if there is no such file, None after another error."""
    try:
        return file.read_text(encoding="utf-8").strip()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (OSError, UnicodeDecodeError):
        return None
