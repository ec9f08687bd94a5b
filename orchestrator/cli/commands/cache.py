"""kt-study cache"""

from __future__ import annotations

import json
import re

import click
import msgspec

from kt_study.errors import UsageError
from kt_study.paths import StudyPaths
from kt_study.study import read_study
from orchestrator.terminal.spans import size
from orchestrator.terminal.study_context import StudyContext, with_study_context

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


@click.group()
def command() -> None:
    """List, verify or clean up the logits cache of the study folder.

    \b
    Examples:
      kt-study cache ls
      kt-study cache gc --max-size 2T
    """


@command.command("ls")
@with_study_context
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def list_entries(context: StudyContext, as_json: bool) -> None:
    """List every cached pass, least recently used first.

    \b
    Examples:
      kt-study cache ls
      kt-study cache ls --json
    """
    from kt_study.cache import entries

    paths = _study_paths(context)
    found = entries(paths)
    if as_json:
        click.echo(json.dumps([msgspec.to_builtins(entry) for entry in found]))
        return
    for entry in found:
        what = f"{entry.split} view {entry.view}" if entry.view >= 0 else entry.split
        click.echo(f"{entry.digest[:12]}  {size(entry.nbytes):>8}  {entry.model[:12]}  {what:<14} {entry.problem}")
    click.echo(f"{len(found)} passes, {size(sum(entry.nbytes for entry in found))} in {paths.cache / 'logits'}")


@command.command("verify")
@with_study_context
@click.pass_context
def verify_entries(ctx: click.Context, context: StudyContext) -> None:
    """Verify every checksum; exit code 1 if an entry is incomplete or altered.

    \b
    Examples:
      kt-study cache verify
    """
    from kt_study.cache import entries, verify

    paths = _study_paths(context)
    broken = verify(paths)
    for entry in broken:
        click.echo(f"{entry.folder}: {entry.problem}; it is computed again when a job needs it")
    click.echo(f"{len(entries(paths))} passes checked, {len(broken)} damaged")
    ctx.exit(1 if broken else 0)


@command.command("gc")
@with_study_context
@click.option("--max-size", required=True, metavar="SIZE", help="Maximum cache size, e.g. 500M or 2T.")
def collect_entries(context: StudyContext, max_size: str) -> None:
    """Delete incomplete entries, and the least recently used ones beyond --max-size. Entries that open jobs need are kept.

    \b
    Examples:
      kt-study cache gc --max-size 2T
      kt-study cache gc --max-size 0  # everything that no open job needs
    """
    from kt_study.cache import collect_garbage, entries

    paths = _study_paths(context)
    gone = collect_garbage(paths, max_size=_bytes(max_size), keep=context.store().needed_by_open_jobs("logits"))
    for entry in entries(paths):
        if entry.foreign:
            click.echo(f"{entry.folder} is kept: it contains {entry.foreign}, which kt-study did not make", err=True)
    click.echo(f"{len(gone)} passes deleted, {size(sum(entry.nbytes for entry in gone))}")


def _study_paths(context: StudyContext) -> StudyPaths:
    """The study's files. Raises StudyFileError if there is no study, instead of reporting an empty cache."""
    read_study(context.study_path)
    return context.paths


def _bytes(text: str) -> int:
    if not (match := re.fullmatch(r"(\d+(?:\.\d+)?)([kmgt]?)b?", text.strip().lower())):
        raise UsageError(f"--max-size {text}: give a size such as 500M, 20G or 2T")
    return int(float(match[1]) * _UNITS[match[2]])
