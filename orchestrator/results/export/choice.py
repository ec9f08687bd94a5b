"""Selects the transfer to export, and checks that its student was kept."""

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

LISTED = 8
"""Transfers named in an error."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the command line asks for; None leaves it open. Names are those of the result rows."""

    student: str | None = None
    teacher: str | None = None
    objective: str | None = None
    seed: int | None = None
    job: int | None = None


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A transfer whose student is there: its row and digest, the file, and how many transfers matched in all."""

    row: Row
    digest: str
    weights: Path
    matches: int


def choose(store: JobStore, study: str, paths: StudyPaths, wanted: Wanted) -> Chosen:
    """The most accurate of the study's transfers that fit, of equally accurate ones the first whose student was kept.

    Raises:
        UsageError: no transfer fits, no accuracy tells several apart, or the student was not kept.
    """
    rows = [row for batch in store.results("transfers", study) for row in batch]
    if not rows:
        raise UsageError(f"study {study!r} has no finished transfers yet; `kt-study status` says how far it is")
    fitting = _fitting(rows, wanted, store)
    digests = {row["job_id"]: store.job(row["job_id"]).digest for row in fitting}
    kept = {job for job, digest in digests.items() if paths.weights(digest).is_file()}
    if len(fitting) > 1 and any(row["acc_after"] is None for row in fitting):
        raise UsageError(
            f"{len(fitting)} transfers fit, and without labels no accuracy tells them apart: choose by --job: "
            f"{_listed(fitting, kept)}"
        )
    best = min(fitting, key=lambda row: (-(row["acc_after"] or 0.0), row["job_id"] not in kept, row["job_id"]))
    if best["job_id"] not in kept:
        raise UsageError(_not_kept(best, fitting, kept))
    digest = digests[best["job_id"]]
    return Chosen(row=best, digest=digest, weights=paths.weights(digest), matches=len(fitting))


def _fitting(rows: list[Row], wanted: Wanted, store: JobStore) -> list[Row]:
    """Filter the rows by one option after another, so that the error names the option that no row matches."""
    wishes = {"job_id": wanted.job, "student": wanted.student, "teacher": wanted.teacher}
    wishes |= {"objective": wanted.objective, "seed": wanted.seed}
    for column, wish in wishes.items():
        if wish is None:
            continue
        fitting = [row for row in rows if row[column] == wish]
        if not fitting:
            mistyped = wish not in {*OBJECTIVES, *(model.name for model in store.models())}
            raise UsageError(_none_fits(column, wish, [row[column] for row in rows], mistyped=mistyped))
        rows = fitting
    return rows


def _none_fits(column: str, wish: Any, there: Sequence[Any], *, mistyped: bool) -> str:
    known = sorted(set(there))
    flag = "--job" if column == "job_id" else f"--{column}"
    listed = ", ".join(map(str, known[:LISTED])) + (", ..." if len(known) > LISTED else "")
    hint = nearest(wish, known) if isinstance(wish, str) and mistyped else ""
    return f"no finished transfer with {flag} {wish}{hint} (there: {listed})"


def _not_kept(best: Row, fitting: Iterable[Row], kept: set[int]) -> str:
    why = {"none": "was not kept", "best": "was beaten by another, or is gone"}.get(best["keep"], "is gone")
    others = [row for row in fitting if row["job_id"] in kept]
    advice = f"; kept are: {_listed(others, kept)}" if others else ""
    return (
        f'the student of job {best["job_id"]} ({_spelled(best)}) {why}: set keep = "all" in [transfer], have it made '
        f"again by kt-study plan and kt-study launch, and export then{advice}"
    )


def _listed(rows: Sequence[Row], kept: set[int]) -> str:
    named = [
        f"--job {row['job_id']} ({_spelled(row)}{'' if row['job_id'] in kept else ', not kept'})"
        for row in rows[:LISTED]
    ]
    return ", ".join(named) + (f" and {len(rows) - LISTED} more" if len(rows) > LISTED else "")


def _spelled(row: Row) -> str:
    accuracy = "" if row["acc_after"] is None else f", {row['acc_after']:.2f} %"
    return f"{row['student']} taught by {row['teacher']}, {row['objective']}, seed {row['seed']}{accuracy}"
