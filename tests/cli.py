"""Runs the command line as a user does: a process, a folder, an exit code, two streams."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def kt_study(
    folder: Path, *arguments: str, timeout: float = 120, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`kt-study ARGUMENTS` in `folder`, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "kt_study", *arguments],
        cwd=folder,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def succeeds(folder: Path, *arguments: str, timeout: float = 120) -> str:
    """The standard output of a command that must end with 0."""
    done = kt_study(folder, *arguments, timeout=timeout)
    assert done.returncode == 0, f"kt-study {' '.join(arguments)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def refused(folder: Path, *arguments: str, code: int = 2) -> str:
    """The one line that a command says when it refuses; no traceback, nothing on standard output."""
    done = kt_study(folder, *arguments)
    assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]
