"""Long-running commands wait while the job database is unreachable, as workers do, and print a note."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import click

from kt_study.errors import DatabaseError, NothingPlanned, SchemaMismatch
from orchestrator.terminal.spans import span

T = TypeVar("T")

RETRY_EVERY_S = 5.0
PATIENCE_S = 5.0
"""How long the store retries before the outage is reported to the user."""


def through_outages(
    step: Callable[[], T], report: Callable[[str], None] = lambda line: click.echo(line, err=True)
) -> T:
    """Run `step`; while the database is down, run it again from its start.

    Only for a database that was reached before: one that cannot be opened at all may have a wrong URL.

    Args:
        step: may be repeated after it has failed at any point.
        report: called when the database goes away, and when it is back.

    Raises:
        NothingPlanned, SchemaMismatch: the database answers, and waiting does not help.
    """
    asked = time.time()
    try:
        return step()
    except (NothingPlanned, SchemaMismatch):
        raise
    except DatabaseError as error:
        report(
            f"the database has been away since {time.strftime('%H:%M:%S', time.localtime(asked))}: {error}; waiting for it"
        )
    while True:
        time.sleep(RETRY_EVERY_S)
        try:
            result = step()
        except (NothingPlanned, SchemaMismatch):
            raise
        except DatabaseError:
            continue
        report(f"the database is back after {span(time.time() - asked)}")
        return result
