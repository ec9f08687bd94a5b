"""Selects the transfer to export, whose student must have been kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kt_study.errors import UsageError
from kt_study.nearest import nearest
from kt_study.objectives import OBJECTIVES
from kt_study.paths import StudyPaths

if TYPE_CHECKING:
    from kt_study.store import JobStore

Row = dict[str, Any]
"""A row of `transfers` with its `job_id`."""

MOST_LISTED = 8
"""Most transfers, or values, listed in an error."""


@dataclass(frozen=True, kw_only=True)
class TransferFilter:
    """The filters of the command line, None for any value. Names are those of the result rows."""

    student: str | None = None
    teacher: str | None = None
    objective: str | None = None
    seed: int | None = None
    job: int | None = None


@dataclass(frozen=True, kw_only=True)
class SelectedTransfer:
    """A transfer whose student was kept: its row and digest, the weights file, and the number of matching transfers."""

    row: Row
    digest: str
    weights: Path
    matches: int


def select_transfer(store: JobStore, study: str, paths: StudyPaths, where: TransferFilter) -> SelectedTransfer:
    """The most accurate of the study's matching transfers; of equally accurate ones the first whose student was kept.

    Raises:
        UsageError: no transfer matches, several match and have no accuracy, or the student was not kept.
    """
    rows = [row for batch in store.results("transfers", study) for row in batch]
    if not rows:
        raise UsageError(f"study {study!r} has no finished transfers yet; see `kt-study status`")
    matching = _matching(rows, where, store)
    digests = {row["job_id"]: store.job(row["job_id"]).digest for row in matching}
    kept = {job for job, digest in digests.items() if paths.weights(digest).is_file()}
    if len(matching) > 1 and any(row["acc_after"] is None for row in matching):
        raise UsageError(
            f"{len(matching)} transfers match, and without labels they have no accuracy to select by; give one of "
            f"{_listed(matching, kept)}"
        )
    best = min(matching, key=lambda row: (-(row["acc_after"] or 0.0), row["job_id"] not in kept, row["job_id"]))
    if best["job_id"] not in kept:
        raise UsageError(_not_kept(best, matching, kept))
    digest = digests[best["job_id"]]
    return SelectedTransfer(row=best, digest=digest, weights=paths.weights(digest), matches=len(matching))


def _matching(rows: list[Row], where: TransferFilter, store: JobStore) -> list[Row]:
    """Apply one filter after another, so that the error names the filter that leaves no row."""
    filters = {"job_id": where.job, "student": where.student, "teacher": where.teacher}
    filters |= {"objective": where.objective, "seed": where.seed}
    for column, value in filters.items():
        if value is None:
            continue
        matching = [row for row in rows if row[column] == value]
        if not matching:
            known = sorted({row[column] for row in rows})
            listed = ", ".join(map(str, known[:MOST_LISTED])) + (", ..." if len(known) > MOST_LISTED else "")
            exists = value in {*OBJECTIVES, *(model.name for model in store.models())}
            hint = nearest(value, known) if isinstance(value, str) and not exists else ""
            flag = column.removesuffix("_id")
            raise UsageError(f"no finished transfer with --{flag} {value}{hint} (there: {listed})")
        rows = matching
    return rows


def _not_kept(best: Row, matching: Iterable[Row], kept: set[int]) -> str:
    reasons = {"none": "was not kept", "best": "was replaced by a better one, or its file is missing"}
    reason = reasons.get(best["keep"], "was kept, but its file is missing")
    others = [row for row in matching if row["job_id"] in kept]
    advice = f"; kept are: {_listed(others, kept)}" if others else ""
    return (
        f'the student of job {best["job_id"]} ({_description(best)}) {reason}: set keep = "all" in [transfer], run '
        f"`kt-study plan` and `kt-study launch`, then export again{advice}"
    )


def _listed(rows: Sequence[Row], kept: set[int]) -> str:
    named = [
        f"--job {row['job_id']} ({_description(row)}{'' if row['job_id'] in kept else ', not kept'})"
        for row in rows[:MOST_LISTED]
    ]
    return ", ".join(named) + (f" and {len(rows) - MOST_LISTED} more" if len(rows) > MOST_LISTED else "")


def _description(row: Row) -> str:
    accuracy = "" if row["acc_after"] is None else f", {row['acc_after']:.2f} %"
    return f"{row['student']} taught by {row['teacher']}, {row['objective']}, seed {row['seed']}{accuracy}"
