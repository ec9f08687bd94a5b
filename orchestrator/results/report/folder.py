"""The report folder. Only files of a report are overwritten in it."""

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


def part_path(out: Path, study: str, kind: str, key: str, suffix: str) -> Path:
    """The file of a figure or table (`kind`) of a study, such as figures/STUDY/figure-4a.svg."""
    return out / f"{kind}s" / quote(study, safe="") / f"{kind}-{key}.{suffix}"


def mark(out: Path, studies: Iterable[str]) -> None:
    """Mark the folder as a report of kt-study's. It must be one already, or have none of a report's files.

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
        patterns = [
            part_path(out, study, *kind) for study in studies for kind in (("figure", "*", "*"), ("table", "*", "csv"))
        ]
        require_ours(marker, [path for pattern in patterns for path in pattern.parent.glob(pattern.name)])
    if not marker.exists():
        write_text(marker, "kt-study report overwrites the page, figures and tables in this folder.\n")


def _is_our_page(page: Path) -> bool:
    try:
        with page.open("rb") as stream:
            return _TITLE in stream.read(4096)
    except OSError:
        return False
