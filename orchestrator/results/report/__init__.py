"""`kt-study report`: every figure and table of the paper from a study's own parquet, on one page that needs no network.

Rows become a `Material` (one study), a `Drawing` for each module of `figures`, a frame for each module of `tables`. A
drawing is described once (`plot`) and made into Vega-Lite (`charts`), which the page draws in the browser and
vl-convert in the files. Importing this package imports no pandas; `write_report` does.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Progress = Callable[[str], None]
"""Told what is being made, one line each."""


def write_report(results: Path, out: Path, study: str | None = None, progress: Progress | None = None) -> Path:
    """Write the report of a results folder.

    Args:
        results: what `kt-study collect` wrote; nothing else is read.
        out: index.html, figures/<study>/*.png and *.svg, and tables/<study>/*.csv go here.
        study: report this study only; all of them when None.
        progress: called for every figure and table.

    Returns:
        The path of index.html.

    Raises:
        UsageError: no results, no such study in them, or a page, figure or table of others in `out`.
        DiskError: `out` cannot be written.
    """
    from orchestrator.results.report.write import write

    return write(results, out, study, progress or (lambda _: None))
