"""Long-running commands wait while the job database is unreachable, as workers do, and print a note."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import click

from kt_study.errors import DatabaseError, NothingPlanned, SchemaMismatch
from orchestrator.terminal.spans import span

T = TypeVar("T")

TRY_AGAIN_S = 5.0
PATIENCE_S = 5.0
"""How long the calls of a store retry by themselves, before the user is told that the database is away."""


def waited_for(step: Callable[[], T], say: Callable[[str], None] = lambda line: click.echo(line, err=True)) -> T:
    """Do a step; where the database is away do it again, from its start, until the database has answered.

    Only for what has reached its database before: one that cannot be opened at all may be a slip in its URL.

    Args:
        step: harms nothing when it is done again after it failed anywhere in its middle.
        say: called when the database goes away, and when it is back.

    Raises:
        NothingPlanned, SchemaMismatch: it answers, and waiting does not help.
    """
    asked = time.time()
    try:
        return step()
    except (NothingPlanned, SchemaMismatch):
        raise
    except DatabaseError as error:
        say(
            f"the database has been away since {time.strftime('%H:%M:%S', time.localtime(asked))}: {error}; waiting for it"
        )
    while True:
        time.sleep(TRY_AGAIN_S)
        try:
            result = step()
        except (NothingPlanned, SchemaMismatch):
            raise
        except DatabaseError:
            continue
        say(f"the database is back after {span(time.time() - asked)}")
        return result
