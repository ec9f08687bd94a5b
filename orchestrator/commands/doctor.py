"""kt-study doctor"""

from __future__ import annotations

import json

import click
import msgspec

from orchestrator.surroundings import Surroundings, with_surroundings


@click.command()
@with_surroundings
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
@click.pass_context
def command(ctx: click.Context, here: Surroundings, as_json: bool) -> None:
    """Check everything a study needs here; exit code 3 when something is wrong.

    \b
    kt-study doctor
    """
    from orchestrator.doctor import as_text, examine

    findings = examine(here)
    click.echo(json.dumps([msgspec.to_builtins(finding) for finding in findings]) if as_json else as_text(findings))
    ctx.exit(3 if any(finding.verdict == "wrong" for finding in findings) else 0)
