"""kt-study query"""

from __future__ import annotations

import sys

import click

from kt_study.errors import UsageError
from orchestrator.cli import completion
from orchestrator.terminal.study_context import StudyContext, with_study_context


@click.command()
@with_study_context
@click.argument("name_or_select", required=False, shell_complete=completion.queries)
@click.option("--format", "style", type=click.Choice(["table", "csv", "json", "parquet"]), default="table")
@click.option("--set", "given", multiple=True, metavar="NAME=VALUE", help="Set a parameter of the query.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Maximum run time of the query in seconds.",
)
def command(
    context: StudyContext, name_or_select: str | None, style: str, given: tuple[str, ...], timeout: float
) -> None:
    """Query the results database, with a named query or your own SELECT. Queries are read-only.

    \b
    Examples:
      kt-study query  # the named queries
      kt-study query success-rate --format csv
      kt-study query "SELECT teacher, avg(delta_transf) FROM transfers GROUP BY teacher"
    """
    from orchestrator.results.query import named_queries, pairs_in_files, render, run_query

    if name_or_select is None:
        for query in named_queries().values():
            click.echo(f"{query.name:<22}{query.title}")
        return
    parameters = dict(_parameter(text) for text in given)
    answer = run_query(context.database_url, name_or_select, parameters, timeout_s=timeout)
    click.echo(render(answer, style, on_terminal=sys.stdout.isatty()), nl=False)
    if pairs := pairs_in_files(context.database_url, name_or_select, timeout_s=timeout):
        click.echo(
            f"{pairs:,} pairs of --complementarity-pairs all are not in the database but in parquet: `kt-study collect`, "
            'then kt_study.load("results/").all_pairs',
            err=True,
        )


def _parameter(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--set {text}: give NAME=VALUE")
    return name, value
