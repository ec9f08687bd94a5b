"""kt-study report"""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator.terminal.progress import shown
from orchestrator.terminal.study_context import STUDY_FILE, StudyContext, with_study_context


@click.command()
@with_study_context
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    help="Folder written by kt-study collect (default: results/). Without a study file, all its studies are reported.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Output folder (default: report/).")
@click.option("--all", "everything", is_flag=True, help="Report every study in the results, not only this one.")
def command(context: StudyContext, results: Path | None, out: Path | None, everything: bool) -> None:
    """Write figures, tables and an HTML page from the parquet files. Needs no database and no GPU.

    \b
    Examples:
      kt-study report
      kt-study report --results /shared/results --out ~/report --all
    """
    from orchestrator.results.report import write_report

    study = None if everything or _has_no_study(context, results) else context.name
    with shown("reporting", "steps") as advance:
        page = write_report(
            results or context.paths.results, out or context.paths.report, study, progress=lambda step: advance(step, 1)
        )
    click.echo(f"{page}")


def _has_no_study(context: StudyContext, results: Path | None) -> bool:
    """Whether there are only parquet files, without the study file that selects one of their studies."""
    return results is not None and context.study_path == STUDY_FILE and not STUDY_FILE.exists()
