"""The options with which retry, cancel, pause and resume select jobs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from kt_study.errors import UsageError
from kt_study.failures import GROUP_SHOWN
from kt_study.nearest import nearest
from kt_study.store import Selection
from orchestrator.cli import completion
from orchestrator.terminal.plural import counted
from orchestrator.terminal.study_context import StudyContext, with_study_context

if TYPE_CHECKING:
    from kt_study.store import JobStore


def with_selection(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --study, --db and the options that select jobs; pass `context` and a `selection`."""

    @with_study_context
    @click.option(
        "--kind",
        shell_complete=completion.kinds,
        help="Only jobs of this kind: train, logits, complementarity, transfer, ...",
    )
    @click.option("--job", "job_ids", type=int, multiple=True, metavar="N", help="Only the jobs with these numbers.")
    @click.option(
        "--teacher",
        default="*",
        shell_complete=completion.models,
        help="Only jobs whose teacher's name matches this glob.",
    )
    @click.option(
        "--student",
        default="*",
        shell_complete=completion.models,
        help="Only jobs whose student's name matches this glob.",
    )
    @click.option(
        "--error",
        "error_group",
        shell_complete=completion.error_groups,
        help="Only jobs that failed with this cause, by its code in kt-study status.",
    )
    @functools.wraps(command)
    def wrapped(
        context: StudyContext,
        kind: str | None,
        job_ids: tuple[int, ...],
        teacher: str,
        student: str,
        error_group: str | None,
        **kwargs: Any,
    ) -> Any:
        store, study = context.store(), context.name
        if kind is not None:
            _check_kind(store, study, kind)
        _check_numbers(store, study, job_ids)
        _check_glob(store, study, "teacher", teacher)
        _check_glob(store, study, "student", student)
        selection = Selection(
            study=study,
            kind=kind,
            job_ids=job_ids or None,
            pair=(teacher, student) if (teacher, student) != ("*", "*") else None,
            error_group=_whole_group(store, study, error_group) if error_group is not None else None,
        )
        return command(context, selection, **kwargs)

    return wrapped


def outcome_line(store: JobStore, selection: Selection, count: int, done: str) -> str:
    """`2 jobs cancelled`; if it was none, also the states of the selected jobs."""
    line = f"{counted(count, 'job')} {done}"
    if count:
        return line
    states = ", ".join(f"{number:,} {state}" for state, number in store.tally(selection).items())
    return f"{line}; selected jobs: {states or 'none'}"


def _check_kind(store: JobStore, study: str, kind: str) -> None:
    kinds = {kind for kind, _ in store.counts(study)}
    if kinds and kind not in kinds:
        hint = nearest(kind, kinds)
        raise UsageError(f"--kind {kind}: study {study!r} has no such jobs{hint} (it has {', '.join(sorted(kinds))})")


def _check_numbers(store: JobStore, study: str, numbers: tuple[int, ...]) -> None:
    existing = {job.id for job in store.jobs(Selection(study=study, job_ids=numbers), limit=len(numbers))}
    for number in numbers:
        if number not in existing:
            raise UsageError(
                f"--job {number}: study {study!r} has no such job; `kt-study query 'SELECT id, kind, state FROM jobs'` "
                "lists them"
            )


def _check_glob(store: JobStore, study: str, role: str, glob: str) -> None:
    pair = (glob, "*") if role == "teacher" else ("*", glob)
    if glob != "*" and not store.tally(Selection(study=study, pair=pair)):
        hint = nearest(glob, [model.name for model in store.models()])
        raise UsageError(f"--{role} {glob}: no job of study {study!r} has such a {role}{hint}")


def _whole_group(store: JobStore, study: str, start: str) -> str:
    """The error group with this beginning; `status` shows its first digits."""
    groups = store.error_groups(study)
    found = [group for group in groups if group.startswith(start)]
    if start in groups or len(found) == 1:
        return start if start in groups else found[0]
    if found:
        raise UsageError(f"--error {start}: that may be {', '.join(found)}; give more digits")
    known = ", ".join(group[:GROUP_SHOWN] for group in groups) or "none"
    raise UsageError(f"--error {start}: no job of study {study!r} failed with such a cause (there are: {known})")
