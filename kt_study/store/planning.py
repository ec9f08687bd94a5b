"""Adds a study's jobs, each once, even if it is planned again or by several planners.

The jobs are first copied into temporary tables, in chunks and without a lock, and then written in one transaction that
excludes other planners. Sets of digests are compared with joins and NOT EXISTS: for NOT IN, and for an IN in the column list,
PostgreSQL reads the whole set for each row once the set exceeds work_mem, which takes days for a million jobs.

Jobs planned before may get new needs: planning names a `remake` only while its student's file is missing, so one that is
done is done again, and jobs wait for the remakes and shared trainings that they need from now on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from kt_study.errors import UsageError
from kt_study.hashing import canonical_json
from kt_study.records import PlannedJob
from kt_study.store.connections import Store
from kt_study.store.expressions import chunks, now
from kt_study.store.records import Planned
from kt_study.store.transitions import AFRESH, add_needs, reopen
from kt_study.tables import job_needs, jobs, studies, study_jobs

CHUNK = 10_000  # jobs in memory
ANALYSE_FROM = 5_000  # new jobs after which the database's statistics are renewed
PLANNING_LOCK = 5_730_412  # key of PostgreSQL's advisory lock that keeps two planners apart
PREPARE = {
    "postgresql": ("SET work_mem = '128MB'", "SET maintenance_work_mem = '128MB'", "SET temp_buffers = '64MB'"),
    "sqlite": ("PRAGMA temp_store=FILE", "PRAGMA cache_size=-65536"),  # KiB
}

_staging = sa.MetaData()


def _temporary(name: str, **columns: Any) -> sa.Table:
    return sa.Table(name, _staging, *(sa.Column(*each) for each in columns.items()), prefixes=["TEMPORARY"])


_COPIED = ("kind", "digest", "spec", "priority", "estimate_s", "teacher", "student")
planned = _temporary("planned", position=sa.BigInteger, **{name: jobs.c[name].type for name in _COPIED})
planned_needs = _temporary("planned_needs", digest=sa.Text, needs=sa.Text)
known_needs = _temporary("known_needs", id=sa.BigInteger, digest=sa.Text, done=sa.Boolean)
_INDEXES = (sa.Index("planned_digest", planned.c.digest), sa.Index("planned_needs_digest", planned_needs.c.digest))

_needed = jobs.alias("needed")
_IN_PLAN = sa.and_(planned.c.digest == jobs.c.digest, planned.c.kind == jobs.c.kind)
_PLANNED_JOBS = sa.select(jobs.c.id).join(planned, _IN_PLAN).order_by(jobs.c.id)
_LAST = sa.bindparam("last", type_=sa.BigInteger)  # the highest id of a job planned before


class Planning(Store):
    """Adding jobs."""

    def plan(self, study: str, jobs: Iterable[PlannedJob]) -> Planned:
        """Add jobs to a study: new ones as rows, known ones as shared; cancelled ones and done remakes are reopened.

        A need may be planned in the same call, before or after the job that needs it, or be in the database already; one
        that is done blocks nothing. The jobs may come from a generator: a million of them take a few hundred MB here.

        Raises:
            UsageError: an unknown study, or a need that does not exist. Nothing is added then.
        """
        with self._database.private() as connection:
            distinct = _stage(connection, jobs)
            done = self._database.write_on(connection, lambda open_one: _write(open_one, study, distinct))
            if done.new >= ANALYSE_FROM and connection.dialect.name == "postgresql":
                # Not on SQLite: our indexes serve every statement, and statistics could only keep it from using them.
                _run(connection, "ANALYZE jobs, job_needs, study_jobs")
        return done


def _run(connection: sa.Connection, *commands: str) -> None:
    with connection.begin():
        for command in commands:
            connection.exec_driver_sql(command)


def _stage(connection: sa.Connection, planned_jobs: Iterable[PlannedJob]) -> int:
    """Copy the jobs into temporary tables and count the distinct ones. Takes no lock."""
    _run(connection, *PREPARE[connection.dialect.name])
    with connection.begin():
        _staging.create_all(connection, checkfirst=False)
    seen: set[str] = set()
    for chunk in chunks(planned_jobs, CHUNK):
        rows, needs = _staged_rows(chunk, seen)
        with connection.begin():
            _load(connection, planned, rows)
            _load(connection, planned_needs, needs)
    if connection.dialect.name == "postgresql":
        _run(connection, "ANALYZE planned", "ANALYZE planned_needs")
    return len(seen)


def _load(connection: sa.Connection, table: sa.Table, rows: list[tuple[Any, ...]]) -> None:
    if connection.dialect.name == "postgresql":  # COPY, which Core lacks, takes a fifth of the time
        with connection.connection.cursor() as cursor, cursor.copy(f"COPY {table.name} FROM STDIN") as copy:  # type: ignore[attr-defined]
            for row in rows:
                copy.write_row(row)
    elif rows:
        connection.exec_driver_sql(f"INSERT INTO {table.name} VALUES ({', '.join('?' * len(rows[0]))})", rows)


def _staged_rows(chunk: list[PlannedJob], seen: set[str]) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    rows: list[tuple[Any, ...]] = []
    needs: list[tuple[Any, ...]] = []
    for job in chunk:
        if job.digest in seen:
            continue
        if job.digest in job.needs:
            raise UsageError(f"job {job.kind} {job.digest} needs itself")
        seen.add(job.digest)
        spec = canonical_json(job.spec)
        estimate_s = float(job.estimate_s)
        rows.append((len(seen), job.kind, job.digest, spec, job.priority, estimate_s, job.teacher, job.student))
        needs += [(job.digest, needed) for needed in dict.fromkeys(job.needs)]
    return rows, needs


def _write(connection: sa.Connection, study: str, distinct: int) -> Planned:
    """The plan's one transaction. Workers continue meanwhile."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(PLANNING_LOCK)))
    study_id, paused = _study(connection, study)
    last = connection.execute(sa.select(sa.func.coalesce(sa.func.max(jobs.c.id), 0))).scalar_one()
    # Planned remakes that are done are done once more.
    remakes = _PLANNED_JOBS.where(planned.c.kind == "remake", jobs.c.state == "done").with_for_update(of=jobs)
    reopen(connection, connection.scalars(remakes).all(), paused=paused)
    _find_needs(connection)
    new = _add_jobs(connection, paused)
    if new:
        _add_needs(connection, last)
    links = _link(connection, study_id, paused)
    _count_finished_needs(connection, last)
    _add_needs_to_known_jobs(connection, last)
    _keep_more(connection)
    for chunk in chunks(connection.scalars(_PLANNED_JOBS.where(jobs.c.state == "cancelled")).all()):
        connection.execute(sa.update(jobs).where(jobs.c.id.in_(chunk)).values(**AFRESH, paused=paused))
    return Planned(new=new, linked=links - new, existing=distinct - links)


def _study(connection: sa.Connection, name: str) -> tuple[int, bool]:
    # Locked, so that a pause or cancellation at this moment comes before the plan or finds its jobs.
    locked = sa.select(studies.c.id, studies.c.paused).with_for_update(key_share=True)
    row = connection.execute(locked.where(studies.c.name == name)).first()
    if row is None:
        raise UsageError(f"no study {name!r} in the database; add it before its jobs")
    reopened = sa.update(studies).where(studies.c.id == row.id, studies.c.cancelled)
    connection.execute(reopened.values(cancelled=False))
    return row.id, row.paused


def _find_needs(connection: sa.Connection) -> None:
    """Needed jobs that the database has, and whether they were done at this moment. Raises UsageError for other needs."""
    connection.execute(sa.delete(known_needs))  # an earlier try may have filled it
    needed = sa.select(jobs.c.id, jobs.c.digest, jobs.c.state == "done")
    needed = needed.where(jobs.c.digest.in_(sa.select(planned_needs.c.needs)))
    connection.execute(sa.insert(known_needs).from_select(["id", "digest", "done"], needed))
    is_planned = sa.exists().where(planned.c.digest == planned_needs.c.needs)
    is_known = sa.exists().where(known_needs.c.digest == planned_needs.c.needs)
    unknown = connection.execute(sa.select(planned_needs).where(~is_planned, ~is_known).limit(1)).first()
    if unknown:
        raise UsageError(
            f"job {unknown.digest} needs job {unknown.needs}, which is neither planned with it nor in the database"
        )


def _add_jobs(connection: sa.Connection, paused: bool) -> int:
    """Add the new jobs. Only one planner writes, so NOT EXISTS suffices; ON CONFLICT takes longer."""
    met = sa.exists().where(known_needs.c.digest == planned_needs.c.needs, known_needs.c.done)
    unmet = sa.select(planned_needs.c.digest, sa.func.count().label("number")).where(~met)
    unmet_needs = unmet.group_by(planned_needs.c.digest).subquery("unmet")
    number = sa.func.coalesce(unmet_needs.c.number, 0)
    columns = {name: planned.c[name] for name in planned.c.keys()[1:]} | {
        "state": sa.case((number == 0, "ready"), else_="blocked"),
        "paused": sa.literal(paused),
        "needs_open": number,
        "created_at": now(),
        "changed_at": now(),
    }
    rows = sa.select(*columns.values()).join(unmet_needs, unmet_needs.c.digest == planned.c.digest, isouter=True)
    rows = rows.where(~sa.exists().where(_IN_PLAN)).order_by(planned.c.position)
    return _insert(connection, jobs, list(columns), rows)


def _insert(connection: sa.Connection, table: sa.Table, columns: list[str], rows: sa.Select[Any]) -> int:
    added = sa.insert(table).from_select(columns, rows).execution_options(preserve_rowcount=True)
    return connection.execute(added).rowcount


def _add_needs(connection: sa.Connection, last: int) -> None:
    rows = (
        sa.select(jobs.c.id, _needed.c.id)
        .select_from(planned_needs)
        .join(jobs, sa.and_(jobs.c.digest == planned_needs.c.digest, jobs.c.id > _LAST))
        .join(_needed, _needed.c.digest == planned_needs.c.needs)
    )
    connection.execute(sa.insert(job_needs).from_select(["job_id", "needs_id"], rows), {"last": last})


def _link(connection: sa.Connection, study_id: int, paused: bool) -> int:
    """Link the study to those of its jobs that it lacks; those that other studies have paused continue for it."""
    held = sa.exists().where(study_jobs.c.study_id == study_id, study_jobs.c.job_id == jobs.c.id)
    if not paused:
        resumed = sa.update(jobs).where(jobs.c.paused, jobs.c.state.in_(["blocked", "ready", "running"]), ~held)
        connection.execute(resumed.where(jobs.c.id.in_(_PLANNED_JOBS.order_by(None))).values(paused=False))
    rows = _PLANNED_JOBS.with_only_columns(sa.literal(study_id), jobs.c.id).where(~held)
    return _insert(connection, study_jobs, ["study_id", "job_id"], rows)


def _count_finished_needs(connection: sa.Connection, last: int) -> None:
    """Count needed jobs that were finished since `_find_needs`. The others are locked: who finishes them waits until this
    plan is committed, and then sees the new needs."""
    open_needs = sa.select(known_needs.c.id).where(~known_needs.c.done)
    connection.execute(
        sa.select(jobs.c.id).where(jobs.c.id.in_(open_needs)).order_by(jobs.c.id).with_for_update(key_share=True)
    ).all()
    done = (
        sa.select(job_needs.c.job_id, sa.func.count().label("number"))
        .join(known_needs, sa.and_(known_needs.c.id == job_needs.c.needs_id, ~known_needs.c.done))
        .join(_needed, sa.and_(_needed.c.id == known_needs.c.id, _needed.c.state == "done"))
        .where(job_needs.c.job_id > _LAST)
        .group_by(job_needs.c.job_id)
        .subquery("met")
    )
    state = sa.case((jobs.c.needs_open == done.c.number, "ready"), else_=jobs.c.state)
    counted = sa.update(jobs).where(jobs.c.id == done.c.job_id)
    connection.execute(counted.values(needs_open=jobs.c.needs_open - done.c.number, state=state), {"last": last})


def _add_needs_to_known_jobs(connection: sa.Connection, last: int) -> None:
    """Let jobs planned before wait for the remakes and shared trainings that they need from now on."""
    kinds = planned.c.kind.in_(["remake", "shared"])
    if connection.execute(sa.select(planned.c.kind).where(kinds).limit(1)).first() is None:
        return  # as in most plans: the next statement is slow
    known = sa.exists().where(job_needs.c.job_id == jobs.c.id, job_needs.c.needs_id == _needed.c.id)
    pairs = (
        sa.select(jobs.c.id, _needed.c.id)
        .select_from(planned)
        .join(planned_needs, planned_needs.c.needs == planned.c.digest)
        .join(_needed, _needed.c.digest == planned.c.digest)
        .join(jobs, jobs.c.digest == planned_needs.c.digest)
        .where(kinds, _needed.c.state != "done", jobs.c.id <= _LAST, jobs.c.state.not_in(["running", "done"]), ~known)
    )
    add_needs(connection, [(job_id, needs_id) for job_id, needs_id in connection.execute(pairs, {"last": last})])


def _keep_more(connection: sa.Connection) -> None:
    """What a job keeps of its student is no part of its digest (`kt_study.hashing.job_digest`): one that has not started yet
    may be changed to keep more, and never less, for another study may rely on it."""
    any_of_it, all_of_it = '"keep":"', '"keep":"all"'
    more = sa.or_(
        ~jobs.c.spec.contains(any_of_it),
        sa.and_(planned.c.spec.contains(all_of_it), ~jobs.c.spec.contains(all_of_it)),
    )
    unkept = _PLANNED_JOBS.where(jobs.c.state.not_in(["running", "done"]), planned.c.spec.contains(any_of_it), more)
    for chunk in chunks(connection.scalars(unkept.with_for_update(of=jobs)).all()):
        connection.execute(sa.update(jobs).where(_IN_PLAN, jobs.c.id.in_(chunk)).values(spec=planned.c.spec))
