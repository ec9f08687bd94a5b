"""Operations of users on selected jobs: cancel, pause, resume, retry."""

from __future__ import annotations

import sqlalchemy as sa

from kt_study.store.connections import Store, reads, writes
from kt_study.store.expressions import chunks, fits_glob, now, of_study
from kt_study.store.records import Selection
from kt_study.store.transitions import AFRESH, record_attempts
from kt_study.tables import jobs, models, past_attempts, studies, study_jobs

OPEN = ("blocked", "ready", "running")
UNFINISHED = (*OPEN, "failed")

LAST_ATTEMPT = sa.and_(past_attempts.c.job_id == jobs.c.id, past_attempts.c.fence == jobs.c.fence)


def condition(selection: Selection) -> sa.ColumnElement[bool]:
    """Whether a job is selected."""
    terms: list[sa.ColumnElement[bool]] = []
    if selection.kind is not None:
        terms.append(jobs.c.kind == selection.kind)
    if selection.state is not None:
        terms.append(jobs.c.state == str(selection.state))
    if selection.study is not None:
        terms.append(of_study(selection.study))
    if selection.job_ids is not None:
        terms.append(jobs.c.id.in_(selection.job_ids))
    if selection.pair is not None:
        for column, pattern in zip((jobs.c.teacher, jobs.c.student), selection.pair, strict=True):
            if pattern != "*":  # of a key or a name
                named = sa.select(models.c.key).where(fits_glob(models.c.name, pattern))
                terms.append(fits_glob(column, pattern) | column.in_(named))
    if selection.error_group is not None:
        terms.append(sa.exists().where(LAST_ATTEMPT, past_attempts.c.error_group == selection.error_group))
    return sa.and_(sa.true(), *terms)


def _needed_elsewhere(study: str, *, unpaused: bool = False) -> sa.ColumnElement[bool]:
    """Whether another study still needs the job, so that it must continue."""
    others = sa.select(study_jobs.c.job_id).join(studies, studies.c.id == study_jobs.c.study_id)
    others = others.where(study_jobs.c.job_id == jobs.c.id, studies.c.name != study, ~studies.c.cancelled)
    return (others.where(~studies.c.paused) if unpaused else others).correlate(jobs).exists()


def _lock(connection: sa.Connection, *terms: sa.ColumnElement[bool]) -> list[sa.Row[tuple[int, str]]]:
    """(id, state) of these jobs, locked in one order, so that two commands do not deadlock."""
    locked = sa.select(jobs.c.id, jobs.c.state).where(*terms).order_by(jobs.c.id).with_for_update()
    return list(connection.execute(locked))


def _mark_study(connection: sa.Connection, selection: Selection, **values: bool) -> None:
    """A change to a whole study applies to jobs that are added later, too."""
    if selection.study is not None and selection == Selection(study=selection.study):
        connection.execute(sa.update(studies).where(studies.c.name == selection.study).values(**values))


def _change(connection: sa.Connection, locked: list[sa.Row[tuple[int, str]]], **values: object) -> int:
    for chunk in chunks(job.id for job in locked):
        connection.execute(sa.update(jobs).where(jobs.c.id.in_(chunk)).values(**values))
    return len(locked)


class Selections(Store):
    """Commands of users on selected jobs."""

    @writes
    def cancel(self, connection: sa.Connection, selection: Selection) -> int:
        """Open and failed jobs to cancelled; their workers stop at the next heartbeat. Returns how many.

        Selected by study, a job that another study still needs stays open. Planning opens cancelled jobs again.
        """
        _mark_study(connection, selection, cancelled=True)
        terms = [condition(selection), jobs.c.state.in_(UNFINISHED)]
        if selection.study is not None:
            terms.append(~_needed_elsewhere(selection.study))
        locked = _lock(connection, *terms)
        record_attempts(connection, [job.id for job in locked if job.state == "running"], "cancelled")
        return _change(connection, locked, state="cancelled", lease_until=None, changed_at=now())

    @reads
    def unfinished(self, connection: sa.Connection, study: str) -> list[tuple[int, str]]:
        """(id, digest) of the study's jobs that are open or failed, without those that another study still needs."""
        query = sa.select(jobs.c.id, jobs.c.digest).where(of_study(study), jobs.c.state.in_(UNFINISHED))
        query = query.where(~_needed_elsewhere(study)).order_by(jobs.c.id)
        return [(job_id, digest) for job_id, digest in connection.execute(query)]

    @writes
    def pause(self, connection: sa.Connection, selection: Selection) -> int:
        """Open jobs are no longer claimed; their workers release them. Returns how many were not paused before."""
        _mark_study(connection, selection, paused=True)
        terms = [condition(selection), jobs.c.state.in_(OPEN), ~jobs.c.paused]
        if selection.study is not None:
            terms.append(~_needed_elsewhere(selection.study, unpaused=True))
        return _change(connection, _lock(connection, *terms), paused=True)

    @writes
    def resume(self, connection: sa.Connection, selection: Selection) -> int:
        """Undo pause. Returns how many jobs were paused."""
        _mark_study(connection, selection, paused=False)
        return _change(connection, _lock(connection, condition(selection), jobs.c.paused), paused=False)

    @writes
    def retry(self, connection: sa.Connection, selection: Selection) -> int:
        """Failed jobs start again with all their attempts; those that back off start now. Returns how many.

        Cancelled jobs are included only if they are selected by id.
        """
        states = [jobs.c.state == "failed", sa.and_(jobs.c.state == "ready", jobs.c.not_before > now())]
        if selection.job_ids is not None:
            states.append(jobs.c.state == "cancelled")
        locked = _lock(connection, condition(selection), sa.or_(*states))
        return _change(connection, locked, **AFRESH)
