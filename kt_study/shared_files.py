"""Files outside the packages: beside the packages in a checkout, under share/kt-study in an installation."""

from __future__ import annotations

import sys
from pathlib import Path


def shared_folder(name: str, holds: str) -> Path | None:
    """A folder that came with this program.

    Args:
        name: its path in a checkout, such as sql/queries.
        holds: glob of what it must hold, so that a foreign folder of that name is skipped.
    """
    homes = [Path(__file__).resolve().parent.parent]
    homes += [Path(prefix) / "share" / "kt-study" for prefix in (sys.prefix, sys.base_prefix)]
    return next((home / name for home in homes if any((home / name).glob(holds))), None)


def missing(what: str) -> str:
    """The error for such files that are not found."""
    return f"{what} are missing from {sys.prefix}/share/kt-study/sql; install kt-study again"
