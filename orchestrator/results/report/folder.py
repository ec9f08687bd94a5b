"""The report folder; files in it that are not the report's are never overwritten."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from kt_study.errors import UsageError
from kt_study.files import require_ours, write_text

PAGE = "index.html"
_MARKER = ".kt-study-report"
_TITLE = b"<title>kt-study: "


def figures_folder(out: Path, study: str) -> Path:
    """Where the figures of a study go."""
    return out / "figures" / quote(study, safe="")


def tables_folder(out: Path, study: str) -> Path:
    """Where the tables of a study go."""
    return out / "tables" / quote(study, safe="")


def claim(out: Path, studies: Iterable[str]) -> None:
    """Mark the folder as a report of kt-study's, if it is one already or none of our files' names is taken.

    Raises:
        UsageError: a page, figure or table that kt-study did not make.
        DiskError: `out` cannot be written.
    """
    page, marker = out / PAGE, out / _MARKER
    if not _is_our_page(page):
        if os.path.lexists(page):
            raise UsageError(
                f"{page} is there already and kt-study did not make it; give another --out, or move it away"
            )
        taken = [path for study in studies for path in figures_folder(out, study).glob("figure-*.*")]
        taken += [path for study in studies for path in tables_folder(out, study).glob("table-*.csv")]
        require_ours(marker, taken)
    if not marker.exists():
        write_text(marker, "The page, figures and tables beside this file are written anew by kt-study report.\n")


def _is_our_page(page: Path) -> bool:
    try:
        with page.open("rb") as stream:
            return _TITLE in stream.read(4096)
    except OSError:
        return False
