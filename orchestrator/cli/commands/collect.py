"""kt-study collect"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.terminal.plural import counted
from orchestrator.terminal.progress import shown
from orchestrator.terminal.study_context import StudyContext, with_study_context

if TYPE_CHECKING:
    from orchestrator.results.collect import Collected


@click.command()
@with_study_context
@click.option("--out", type=click.Path(path_type=Path), help="Output folder (default: results/ beside the study file).")
@click.option("--all", "everything", is_flag=True, help="Collect every study of the database, not only this one.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def command(context: StudyContext, out: Path | None, everything: bool, as_json: bool) -> None:
    """Write the results as parquet; only new rows are written.

    \b
    Examples:
      kt-study collect
      kt-study collect --out /shared/results --all
    """
    from orchestrator.results.collect import collect

    study = None if everything else context.name
    with shown("collecting", "rows") as advance:
        found = collect(
            context.database_url, out or context.paths.results, study, folder=context.folder, progress=advance
        )
    if as_json:
        click.echo(json.dumps({"out": str(found.out), "rows": found.rows, "written": len(found.written)}))
        return
    click.echo(f"{found.out}: {_rows(found) or 'no rows yet'}; {counted(len(found.written), 'file')} written")


def _rows(found: Collected) -> str:
    """The number of rows per table. Untrained starts of trainings do not count as models of the study."""
    counts = found.rows | {"models": found.rows["models"] - found.starts}
    parts = {table: f"{count:,} {table}" for table, count in counts.items() if count}
    if found.starts and "models" in parts:
        parts["models"] += f" (and {counted(found.starts, 'untrained start')})"
    return ", ".join(parts.values())
