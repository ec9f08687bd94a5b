"""A command on a terminal of its own, as a person has it: a pty of a given size."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from types import TracebackType

PATIENCE_S = 120.0


def _in_the_foreground(slave: int) -> None:
    """The terminal is the process's own, and Ctrl-C reaches it even where the tests run in the background."""
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """`kt-study ARGUMENTS` on a terminal; everything it has written so far is `text`."""

    def __init__(self, folder: Path, *arguments: str, size: tuple[int, int] = (24, 80), **environment: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
        known = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "kt_study", *arguments],
            cwd=folder,
            env={**known, "TERM": "xterm-256color", **environment},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: _in_the_foreground(slave),
        )
        os.close(slave)
        self.text = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        os.close(self._master)

    def wait_for(self, wanted: str) -> None:
        """Read until `wanted` has been written since the last call."""
        begin = len(self.text)
        deadline = time.monotonic() + PATIENCE_S
        while wanted not in self.text[begin:]:
            assert time.monotonic() < deadline, f"no {wanted!r} in {self.text!r}"
            assert self._read(), f"it ended without {wanted!r}: {self.text!r}"

    def press_ctrl_c(self) -> None:
        """As a person would: the terminal sends the signal."""
        os.write(self._master, b"\x03")

    def ends(self) -> int:
        """Read to the end. Returns the exit code."""
        deadline = time.monotonic() + PATIENCE_S
        while self._read():
            assert time.monotonic() < deadline, f"it does not end: {self.text!r}"
        return self._process.wait(PATIENCE_S)

    def _read(self) -> bool:
        """Read what there is, for a second at most. Returns whether the other side is still open."""
        ready, _, _ = select.select([self._master], [], [], 1.0)
        if not ready:
            return True
        try:
            chunk = os.read(self._master, 65536)
        except OSError:  # Linux says so when the last writer has gone
            return False
        self.text += chunk.decode(errors="replace")
        return bool(chunk)
