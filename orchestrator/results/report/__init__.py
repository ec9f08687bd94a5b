"""`kt-study report`: every figure and table of the paper from a study's own parquet, on one page that needs no network.

The rows of a study are a `StudyResults`. From it `figures` makes a `Plot` each and `tables` a frame each. A plot is
described once (`plot`) and converted to Vega-Lite (`charts`), which the page draws in the browser and vl-convert in the
files. Importing this package imports no pandas; `write_report` does.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Progress = Callable[[str], None]
"""Called with one line for each study, figure and page written."""


def write_report(results: Path, out: Path, study: str | None = None, progress: Progress | None = None) -> Path:
    """Write the report of a results folder.

    Args:
        results: what `kt-study collect` wrote; nothing else is read.
        out: index.html, figures/<study>/*.png and *.svg, and tables/<study>/*.csv go here.
        study: report this study only; all of them when None.
        progress: called for every study, figure and page.

    Returns:
        The path of index.html.

    Raises:
        UsageError: no results, no such study in them, or a page, figure or table in `out` that kt-study did not make.
        DiskError: `out` cannot be written.
    """
    from orchestrator.results.report.write import write

    return write(results, out, study, progress or (lambda _: None))
