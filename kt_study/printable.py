"""Escapes names and messages for terminals, logs and Slurm: one line, without control characters.

Study files may not contain such characters. But class names are names of folders, messages quote the contents of files, and
a database may belong to another account.
"""

from __future__ import annotations

import logging
import os
import re
from typing import Any

_ACTING = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, ends of lines, what reorders text, and bytes of a file name that are no UTF-8."""


def printable(text: str) -> str:
    """The text with each control character and end of line written as its code, such as \\x1b or \\n."""
    return _ACTING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def printable_json(text: str) -> str:
    """JSON with the same characters as \\u escapes, which mean the same; ends of lines stay, since JSON has them between values."""
    return _ACTING.sub(lambda found: found[0] if found[0] == "\n" else f"\\u{ord(found[0]):04x}", text)


def not_utf8(name: str) -> str:
    """The error for the name of a file that Python could not decode: which one, and what to do."""
    written = os.fsencode(name)
    try:
        written.decode()
    except UnicodeDecodeError:
        return f"the name {written!r} is not UTF-8; rename that file or folder"
    return f"the name {written!r} is UTF-8, and this locale is not; set LC_ALL=C.UTF-8"


def acting_character(value: Any, path: str = "$") -> str:
    """The first place of a TOML tree, as `$.transfer.students`, whose text or key would act; empty when there is none."""
    if isinstance(value, str):
        return path if _ACTING.search(value) else ""
    if isinstance(value, list):
        return next(filter(None, (acting_character(inner, path) for inner in value)), "")
    if isinstance(value, dict):
        for key, inner in value.items():
            if found := acting_character(key, path) or acting_character(inner, f"{path}.{key}"):
                return found
    return ""


class OneLine(logging.Formatter):
    """A log's formatter: each message on one line. Tracebacks keep their lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """As logging's, of the message in printable form."""
        record.message = printable(record.message)
        return super().formatMessage(record)
