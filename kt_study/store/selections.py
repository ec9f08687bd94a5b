"""What users do to jobs they pick out: cancel, pause, resume, retry."""

from __future__ import annotations

from typing import Any

from kt_study.store.backend import Transaction
from kt_study.store.records import Selection
from kt_study.store.transitions import close

OPEN = "('blocked', 'ready', 'running')"
UNFINISHED = "('blocked', 'ready', 'running', 'failed')"

# A job that several studies share goes on for the others: it is picked only if no other study still wants it.
_UNWANTED = """NOT EXISTS (
    SELECT 1 FROM study_jobs osj JOIN studies os ON os.id = osj.study_id
    WHERE osj.job_id = j.id AND os.name <> :study AND NOT os.cancelled AND NOT ({also}))"""


def where(tx: Transaction, selection: Selection) -> tuple[str, dict[str, Any]]:
    """SQL over `jobs j` for a selection, and its parameters."""
    terms = ["true"]
    parameters: dict[str, Any] = {}
    for name, column in (("study", None), ("kind", "j.kind"), ("state", "j.state")):
        value = getattr(selection, name)
        if value is not None and column:
            terms.append(f"{column} = :{name}")
            parameters[name] = str(value)
    if selection.study is not None:
        terms.append("EXISTS (SELECT 1 FROM study_jobs sj JOIN studies s ON s.id = sj.study_id "
                     "WHERE sj.job_id = j.id AND s.name = :study)")  # fmt: skip
        parameters["study"] = selection.study
    if selection.job_ids is not None:
        terms.append(tx.among("j.id", "job_ids"))
        parameters["job_ids"] = list(selection.job_ids)
    if selection.pair is not None:
        for role, pattern in zip(("teacher", "student"), selection.pair, strict=True):
            if pattern != "*":
                terms.append(_names(tx, role))
                parameters[f"{role}_glob"] = tx.glob(pattern)
    if selection.error_group is not None:
        terms.append(
            "EXISTS (SELECT 1 FROM past_attempts a WHERE a.job_id = j.id AND a.fence = j.fence AND a.error_group = :error_group)"
        )
        parameters["error_group"] = selection.error_group
    return " AND ".join(terms), parameters


def _names(tx: Transaction, role: str) -> str:
    """A model is meant by its key or by its name."""
    by_key = tx.like_glob(f"j.{role}", f"{role}_glob")
    by_name = tx.like_glob("m.name", f"{role}_glob")
    return f"({by_key} OR j.{role} IN (SELECT m.key FROM models m WHERE {by_name}))"


def _picked(tx: Transaction, selection: Selection, *conditions: str) -> list[int]:
    """Ids of the selected jobs, their rows locked in one order, so that two commands do not deadlock."""
    terms, parameters = where(tx, selection)
    statement = f"SELECT j.id FROM jobs j WHERE {' AND '.join((terms, *conditions))} ORDER BY j.id {tx.for_update}"
    return [job_id for (job_id,) in tx.rows(statement, **parameters)]


def _is_whole_study(selection: Selection) -> bool:
    return selection.study is not None and selection == Selection(study=selection.study)


def _mark_study(tx: Transaction, selection: Selection, assignment: str) -> None:
    """What is done to a whole study holds for the jobs that it may be given later, too."""
    if _is_whole_study(selection):
        tx.change(f"UPDATE studies SET {assignment} WHERE name = :study", study=selection.study)


def cancel(tx: Transaction, selection: Selection) -> int:
    """Open and failed jobs to cancelled, their leases ended."""
    _mark_study(tx, selection, "cancelled = true")
    alone = [_UNWANTED.format(also="false")] if selection.study is not None else []
    ids = _picked(tx, selection, f"j.state IN {UNFINISHED}", *alone)
    if ids:
        among = tx.among("id", "ids")
        close(tx, f"state = 'running' AND {among}", "cancelled", ids=ids)
        statement = f"UPDATE jobs SET state = 'cancelled', lease_until = NULL, changed_at = {tx.now} WHERE {among}"
        tx.change(statement, ids=ids)
    return len(ids)


def unfinished(tx: Transaction, study: str) -> list[tuple[int, str]]:
    """(id, digest) of the jobs that cancelling the whole study would pick."""
    terms, parameters = where(tx, Selection(study=study))
    alone = _UNWANTED.format(also="false")
    statement = f"SELECT j.id, j.digest FROM jobs j WHERE {terms} AND j.state IN {UNFINISHED} AND {alone} ORDER BY j.id"
    return [(job_id, digest) for job_id, digest in tx.rows(statement, **parameters)]


def pause(tx: Transaction, selection: Selection) -> int:
    """Open jobs are not claimed any more, and those that run are handed back."""
    _mark_study(tx, selection, "paused = true")
    alone = [_UNWANTED.format(also="os.paused")] if selection.study is not None else []
    ids = _picked(tx, selection, f"j.state IN {OPEN} AND NOT j.paused", *alone)
    if ids:
        tx.change(f"UPDATE jobs SET paused = true WHERE {tx.among('id', 'ids')}", ids=ids)
    return len(ids)


def resume(tx: Transaction, selection: Selection) -> int:
    """Paused jobs may be claimed again."""
    _mark_study(tx, selection, "paused = false")
    ids = _picked(tx, selection, "j.paused")
    if ids:
        tx.change(f"UPDATE jobs SET paused = false WHERE {tx.among('id', 'ids')}", ids=ids)
    return len(ids)


def retry(tx: Transaction, selection: Selection) -> int:
    """Failed jobs start afresh, those that back off start now; cancelled ones only when they are named by their ids."""
    states = ["j.state = 'failed'", f"(j.state = 'ready' AND j.not_before > {tx.now})"]
    if selection.job_ids is not None:
        states.append("j.state = 'cancelled'")
    ids = _picked(tx, selection, f"({' OR '.join(states)})")
    if ids:
        tx.change(
            f"UPDATE jobs SET state = CASE WHEN needs_open = 0 THEN 'ready' ELSE 'blocked' END, attempts = 0, crashes = 0, "
            f"not_before = 0, changed_at = {tx.now} WHERE {tx.among('id', 'ids')}",
            ids=ids,
        )
    return len(ids)
