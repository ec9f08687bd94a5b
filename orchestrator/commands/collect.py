"""kt-study collect"""

from __future__ import annotations

import json
from pathlib import Path

import click

from orchestrator.progress import shown
from orchestrator.surroundings import Surroundings, with_surroundings


@click.command()
@with_surroundings
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the parquet; results/ beside the study file.")
@click.option("--all", "everything", is_flag=True, help="Collect every study of the database, not only this one.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def command(here: Surroundings, out: Path | None, everything: bool, as_json: bool) -> None:
    """Write the results as parquet, only what is new.

    \b
    Examples:
      kt-study collect
      kt-study collect --out /shared/results --all
    """
    from orchestrator.collect import collect

    study = None if everything else here.name
    with shown("collecting", "rows") as advance:
        found = collect(here.database_url, out or here.paths.results, study, folder=here.folder, progress=advance)
    if as_json:
        click.echo(json.dumps({"out": str(found.out), "rows": found.rows, "written": len(found.written)}))
        return
    rows = ", ".join(f"{count:,} {table}" for table, count in found.rows.items() if count)
    click.echo(f"{found.out}: {rows or 'no rows yet'}; {len(found.written)} files written")
