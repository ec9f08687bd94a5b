"""Adding a study's jobs: each once, however often and by however many planners it is planned."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kt_study.errors import UsageError
from kt_study.hashing import canonical_json
from kt_study.store import remakes
from kt_study.store.backend import Backend, Row, Staging, Transaction, chunks
from kt_study.store.records import Planned
from kt_study.words import PlannedJob

CHUNK = 10_000  # jobs in memory at a time
ANALYSE_FROM = 5_000  # new jobs from which the database's figures are worth renewing

# Sets of digests are compared with joins and NOT EXISTS: PostgreSQL answers NOT IN and an IN among the columns by reading
# the whole set for each row as soon as it outgrows work_mem, which at a million jobs takes days.

# One planner at a time writes (`Staging.transact`), so what is not there yet stays so: no ON CONFLICT, which takes longer.
_INSERT = """
INSERT INTO jobs (kind, digest, spec, state, paused, priority, estimate_s, teacher, student, needs_open, needed,
    created_at, changed_at)
SELECT p.kind, p.digest, p.spec, CASE WHEN coalesce(o.count, 0) = 0 THEN 'ready' ELSE 'blocked' END,
    (SELECT paused FROM studies WHERE id = :study), p.priority, p.estimate_s, p.teacher, p.student, coalesce(o.count, 0),
    w.needs IS NOT NULL, {now}, {now}
FROM planned p LEFT JOIN (
    SELECT n.digest, count(*) AS count FROM planned_needs n
    WHERE NOT EXISTS (SELECT 1 FROM known_needs k WHERE k.digest = n.needs AND k.done) GROUP BY n.digest
) o ON o.digest = p.digest LEFT JOIN (SELECT DISTINCT needs FROM planned_needs) w ON w.needs = p.digest
WHERE NOT EXISTS (SELECT 1 FROM jobs j WHERE j.digest = p.digest AND j.kind = p.kind) ORDER BY p.position
"""
_NEEDS = """
INSERT INTO job_needs (job_id, needs_id)
SELECT j.id, m.id FROM planned_needs n JOIN jobs j ON j.digest = n.digest AND j.id > :last JOIN jobs m ON m.digest = n.needs
"""
_LINK = """
INSERT INTO study_jobs (study_id, job_id)
SELECT :study, j.id FROM planned p JOIN jobs j ON j.digest = p.digest AND j.kind = p.kind
WHERE NOT EXISTS (SELECT 1 FROM study_jobs s WHERE s.study_id = :study AND s.job_id = j.id) ORDER BY j.id
"""
_UNKNOWN = """
SELECT n.digest, n.needs FROM planned_needs n
WHERE NOT EXISTS (SELECT 1 FROM planned p WHERE p.digest = n.needs)
    AND NOT EXISTS (SELECT 1 FROM known_needs k WHERE k.digest = n.needs) LIMIT 1
"""
_KNOWN = """
INSERT INTO known_needs SELECT j.id, j.digest, j.state = 'done' FROM jobs j
WHERE j.digest IN (SELECT needs FROM planned_needs)
"""
# While the rows above were written, workers went on. A needed job that was open when `known_needs` was filled may be done
# now. The rest are kept from ending until this plan is committed, after which ending them sees the new needs.
_HOLD = """
SELECT j.id FROM jobs j WHERE j.id IN (SELECT id FROM known_needs WHERE NOT done) ORDER BY j.id {for_update}
"""
_MARK = """
UPDATE jobs SET needed = true WHERE NOT needed AND id IN (SELECT id FROM known_needs WHERE NOT done)
"""
_SETTLE = """
UPDATE jobs SET needs_open = needs_open - d.count, state = CASE WHEN needs_open = d.count THEN 'ready' ELSE state END
FROM (
    SELECT n.job_id, count(*) AS count FROM job_needs n JOIN known_needs k ON k.id = n.needs_id JOIN jobs m ON m.id = k.id
    WHERE NOT k.done AND m.state = 'done' AND n.job_id > :last GROUP BY n.job_id
) d WHERE jobs.id = d.job_id
"""
_PICK_CANCELLED = """
SELECT j.id FROM jobs j JOIN planned p ON p.digest = j.digest AND p.kind = j.kind
WHERE j.state = 'cancelled' ORDER BY j.id
"""
_REOPEN = """
UPDATE jobs SET state = CASE WHEN needs_open = 0 THEN 'ready' ELSE 'blocked' END, attempts = 0, crashes = 0, not_before = 0,
    paused = (SELECT paused FROM studies WHERE id = :study), changed_at = {now}
WHERE state = 'cancelled' AND {among}
"""
# A student's file is no part of a job's identity (`kt_study.hashing.job_digest`): a job that no worker has taken yet is
# told to keep more than it was planned with, and never less, for another study may rely on it.
_PICK_UNKEPT = """
SELECT j.id FROM jobs j JOIN planned p ON p.digest = j.digest AND p.kind = j.kind
WHERE j.state NOT IN ('running', 'done') AND p.spec LIKE '%"keep":"%' AND (
    j.spec NOT LIKE '%"keep":"%' OR (p.spec LIKE '%"keep":"all"%' AND j.spec NOT LIKE '%"keep":"all"%'))
ORDER BY j.id {for_update}
"""
_KEEP = """
UPDATE jobs SET spec = p.spec FROM planned p WHERE p.digest = jobs.digest AND p.kind = jobs.kind AND {among}
"""
_CONTINUE = """
UPDATE jobs SET paused = false WHERE paused AND state IN ('blocked', 'ready', 'running')
    AND id IN (SELECT j.id FROM planned p JOIN jobs j ON j.digest = p.digest AND j.kind = p.kind)
    AND NOT EXISTS (SELECT 1 FROM study_jobs s WHERE s.study_id = :study AND s.job_id = jobs.id)
    AND NOT (SELECT paused FROM studies WHERE id = :study)
"""


def plan(backend: Backend, study: str, jobs: Iterable[PlannedJob]) -> Planned:
    """See JobStore.plan."""
    with backend.staging() as staging:
        distinct = _stage(staging, jobs)
        planned = staging.transact(lambda tx: _write(tx, study, distinct))
        if planned.new >= ANALYSE_FROM:
            staging.analyse()
    return planned


def _stage(staging: Staging, jobs: Iterable[PlannedJob]) -> int:
    """Copy the jobs into temporary tables, a chunk at a time, and count the distinct ones. Takes no lock."""
    staging.make(
        "planned",
        "position bigint, kind text, digest text, spec text, priority integer, estimate_s double precision, teacher text, "
        "student text",
    )
    staging.make("planned_needs", "digest text, needs text")
    staging.make("known_needs", "id bigint, digest text, done boolean")
    seen: set[str] = set()
    for chunk in chunks(jobs, CHUNK):
        rows, needs = _staged_rows(chunk, seen)
        staging.load("planned", rows)
        staging.load("planned_needs", needs)
    staging.ready(("planned", "digest"), ("planned_needs", "digest"))
    return len(seen)


def _staged_rows(chunk: list[PlannedJob], seen: set[str]) -> tuple[list[Row], list[Row]]:
    rows: list[Row] = []
    needs: list[Row] = []
    for job in chunk:
        if job.digest in seen:
            continue
        if job.digest in job.needs:
            raise UsageError(f"job {job.kind} {job.digest} needs itself")
        seen.add(job.digest)
        spec = canonical_json(job.spec)
        position = len(seen)
        rows.append(
            (position, job.kind, job.digest, spec, job.priority, float(job.estimate_s), job.teacher, job.student)
        )
        needs += [(job.digest, needed) for needed in dict.fromkeys(job.needs)]
    return rows, needs


def _write(tx: Transaction, study: str, distinct: int) -> Planned:
    study_id = _study_id(tx, study)
    last = tx.rows("SELECT coalesce(max(id), 0) FROM jobs")[0][0]
    remakes.reopen_done(tx, study_id)
    tx.change("DELETE FROM known_needs")  # a first try may have filled it
    tx.change(_KNOWN)
    _require_known_needs(tx)
    new = tx.change(_INSERT.format(now=tx.now), study=study_id)
    if new:
        tx.change(_NEEDS, last=last)
    tx.change(_CONTINUE, study=study_id)
    links = tx.change(_LINK, study=study_id)
    tx.rows(_HOLD.format(for_update=tx.for_update))
    tx.change(_MARK)
    tx.change(_SETTLE, last=last)
    remakes.add_needs(tx, last)
    _keep_more(tx)
    _reopen_cancelled(tx, study_id)
    return Planned(new=new, linked=links - new, existing=distinct - links)


def _study_id(tx: Transaction, study: str) -> int:
    found = tx.rows("SELECT id FROM studies WHERE name = :study", study=study)
    if not found:
        raise UsageError(f"no study {study!r} in the database; add it before its jobs")
    tx.change("UPDATE studies SET cancelled = false WHERE id = :id AND cancelled", id=found[0][0])
    study_id: int = found[0][0]
    return study_id


def _require_known_needs(tx: Transaction) -> None:
    if unknown := tx.rows(_UNKNOWN):
        digest, needs = unknown[0]
        raise UsageError(f"job {digest} needs job {needs}, which is neither planned with it nor in the database")


def _keep_more(tx: Transaction) -> None:
    ids = [job_id for (job_id,) in tx.rows(_PICK_UNKEPT.format(for_update=tx.for_update))]
    if ids:
        tx.change(_KEEP.format(among=tx.among("jobs.id", "ids")), ids=ids)


def _reopen_cancelled(tx: Transaction, study: int) -> None:
    ids: list[Any] = [job_id for (job_id,) in tx.rows(_PICK_CANCELLED)]
    if ids:
        tx.change(_REOPEN.format(now=tx.now, among=tx.among("id", "ids")), ids=ids, study=study)
