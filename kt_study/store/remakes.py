"""What jobs planned before may come to need: a student that is gone is made again, a training is shared from now on.

Planning names a `remake` only while its student's file is missing (`orchestrator.planning.layout`). It is the only kind of job
that is done more than once, for it writes no rows, only that file.
"""

from __future__ import annotations

from kt_study.store.backend import Transaction

_PICK_DONE = """
SELECT j.id FROM planned p JOIN jobs j ON j.digest = p.digest AND j.kind = p.kind
WHERE p.kind = 'remake' AND j.state = 'done' ORDER BY j.id {for_update}
"""
_KEEP_ATTEMPT = """
INSERT INTO past_attempts (job_id, fence, worker, started_at, ended_at, outcome, progress)
SELECT id, fence, worker, started_at, changed_at, 'done', progress FROM jobs WHERE {among}
"""
_WAIT_AGAIN = """
UPDATE jobs SET needs_open = needs_open + d.count, state = CASE WHEN state = 'ready' THEN 'blocked' ELSE state END
FROM (SELECT n.job_id, count(*) AS count FROM job_needs n WHERE {among} GROUP BY n.job_id) d WHERE jobs.id = d.job_id
"""
_REOPEN = """
UPDATE jobs SET state = CASE WHEN needs_open = 0 THEN 'ready' ELSE 'blocked' END, attempts = 0, crashes = 0, not_before = 0,
    paused = (SELECT paused FROM studies WHERE id = :study), changed_at = {now}
WHERE {among}
"""
_ANY = "SELECT kind FROM planned WHERE kind IN ('remake', 'shared') LIMIT 1"  # few plans: the next one takes its time
_NEWLY_NEEDED = """
SELECT j.id, m.id FROM planned p JOIN planned_needs n ON n.needs = p.digest JOIN jobs m ON m.digest = p.digest
JOIN jobs j ON j.digest = n.digest LEFT JOIN job_needs k ON k.job_id = j.id AND k.needs_id = m.id
WHERE p.kind IN ('remake', 'shared') AND m.state <> 'done' AND j.id <= :last AND j.state NOT IN ('running', 'done') AND k.job_id IS NULL
"""
_NEED = "INSERT INTO job_needs (job_id, needs_id) VALUES (:job, :needs)"
_WAIT = """
UPDATE jobs SET needs_open = needs_open + 1, state = CASE WHEN state = 'ready' THEN 'blocked' ELSE state END
WHERE id = :job
"""


def reopen_done(tx: Transaction, study: int) -> None:
    """Open the planned remakes that are done, and block the jobs that need them until they are done once more."""
    ids = [job_id for (job_id,) in tx.rows(_PICK_DONE.format(for_update=tx.for_update))]
    if ids:
        tx.change(_KEEP_ATTEMPT.format(among=tx.among("id", "ids")), ids=ids)
        tx.change(_WAIT_AGAIN.format(among=tx.among("n.needs_id", "ids")), ids=ids)
        tx.change(_REOPEN.format(now=tx.now, among=tx.among("id", "ids")), ids=ids, study=study)


def add_needs(tx: Transaction, last: int) -> None:
    """Let jobs planned before, those up to the id `last`, wait for the remakes and shared trainings they now need too."""
    if not tx.rows(_ANY):
        return
    found = [{"job": job, "needs": needs} for job, needs in tx.rows(_NEWLY_NEEDED, last=last)]
    tx.many(_NEED, found)
    tx.many(_WAIT, [{"job": each["job"]} for each in found])
