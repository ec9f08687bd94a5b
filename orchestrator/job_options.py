"""The options by which retry, cancel, pause and resume choose jobs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from kt_study.errors import UsageError
from kt_study.nearest import nearest
from kt_study.store import Selection
from orchestrator.surroundings import Surroundings, with_surroundings


def with_selection(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command --study, --db and the options that choose jobs; hand it `here` and a `selection`."""

    @with_surroundings
    @click.option("--kind", help="Only jobs of this kind: train, logits, complementarity, transfer, ...")
    @click.option("--job", "job_ids", type=int, multiple=True, metavar="N", help="Only these jobs, by number.")
    @click.option("--teacher", default="*", help="Only jobs whose teacher's name matches this glob.")
    @click.option("--student", default="*", help="Only jobs whose student's name matches this glob.")
    @click.option("--error", "error_group", help="Only jobs that failed from this cause, as kt-study status names it.")
    @functools.wraps(command)
    def wrapped(
        here: Surroundings,
        kind: str | None,
        job_ids: tuple[int, ...],
        teacher: str,
        student: str,
        error_group: str | None,
        **kwargs: Any,
    ) -> Any:
        if kind is not None:
            _check_kind(kind, here)
        selection = Selection(
            study=here.name,
            kind=kind,
            job_ids=job_ids or None,
            pair=(teacher, student) if (teacher, student) != ("*", "*") else None,
            error_group=error_group,
        )
        return command(here, selection, **kwargs)

    return wrapped


def _check_kind(kind: str, here: Surroundings) -> None:
    there = {kind for kind, _ in here.store().counts(here.name)}
    if there and kind not in there:
        hint = nearest(kind, there)
        raise UsageError(
            f"--kind {kind}: study {here.name!r} has no such jobs{hint} (it has {', '.join(sorted(there))})"
        )
