"""The transfers that a study has run with one objective, and those that are comparable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import sqlalchemy as sa
from msgspec.structs import replace

from kt_study.records import TransferSpec
from kt_study.settings import SETTINGS, Settings, named
from kt_study.tables import jobs, results
from orchestrator.results.recommend.evaluated import EvaluatedStudent
from orchestrator.results.rows import of_study
from orchestrator.results.streaming import Reader, Select

_NUMBERS = (
    "delta_transf",
    "delta_transf_low",
    "delta_transf_high",
    "acc_teacher",
    "acc_before",
    "rho_pos_before",
    "rho_neg_before",
    "transfer_rate_strict_top100",
    "seconds",
)

_SAME_RESULT = {name: SETTINGS[name].default for name in named("execution", "output")}
"""Settings that change a result less than another seed does."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One transfer from one teacher. Accuracies and rates in %, deltas in points."""

    job: str  # digest
    teacher: str  # key
    student: str  # key
    settings: Settings
    delta: float
    delta_low: float | None
    delta_high: float | None
    delta_acc: float
    rho_pos: float
    rho_neg: float
    rate: float | None  # % of the positive flips that were gained
    seconds: float | None
    device: str | None
    diverged: bool


def read_measured(reader: Reader, evaluated: EvaluatedStudent, objective: str) -> list[Measured]:
    """Every transfer of this objective from one teacher on the student's data set, oldest job first."""
    rows = results["transfers"]
    columns = [rows.c[name] for name in ("teacher_key", "student_key", "device", "diverged", *_NUMBERS)]
    select: Select = sa.select(jobs.c.digest, jobs.c.spec, *columns).join(jobs, jobs.c.id == rows.c.job_id)
    select = of_study(select, evaluated.study, rows.c.job_id).where(
        rows.c.dataset_key == evaluated.dataset.key,
        rows.c.objective == objective,
        rows.c.multi_teacher == Settings().multi_teacher,
        rows.c.delta_transf.is_not(None),
    )
    return [_measured(*row) for row in reader.rows(select.order_by(rows.c.job_id))]


def comparable(found: Sequence[Measured], wanted: Settings) -> tuple[list[Measured], str]:
    """The transfers with one set of settings, the last one of each pair, and a note if others are left out.

    The settings are the study file's or, if nothing was run with them, those with the most transfers.
    """
    counts = Counter(_comparison_key(one.settings) for one in found)
    if not counts:
        return [], ""
    own = _comparison_key(wanted)
    chosen = own if own in counts else counts.most_common(1)[0][0]
    last = {(one.student, one.teacher): one for one in found if _comparison_key(one.settings) == chosen}
    note = ""
    if chosen != own:
        note = (
            f"no transfers with the study file's settings ({_difference(own, chosen)}); used instead: {counts[chosen]} "
            f"transfers run with {_difference(chosen, own)}"
        )
    elif len(counts) > 1:
        note = f"{counts.total() - counts[chosen]} transfers with other settings than the study file's are left out"
    return list(last.values()), note


def _comparison_key(settings: Settings) -> Settings:
    """The settings, with those that do not change a result at their default."""
    return replace(settings, **_SAME_RESULT)


def _difference(settings: Settings, other: Settings) -> str:
    """Where settings differ from others: `epochs = 20, lr = 0.001`."""
    names = [name for name in Settings.__struct_fields__ if getattr(settings, name) != getattr(other, name)]
    return ", ".join(f"{name} = {getattr(settings, name)}" for name in names)


def _measured(
    digest: str, spec: str, teacher: str, student: str, device: str | None, diverged: object, *numbers: float | None
) -> Measured:
    at: dict[str, Any] = dict(zip(_NUMBERS, numbers, strict=True))  # none of those below that are float is missing
    return Measured(
        job=digest,
        teacher=teacher,
        student=student,
        settings=msgspec.json.decode(spec, type=TransferSpec).settings,
        delta=at["delta_transf"],
        delta_low=at["delta_transf_low"],
        delta_high=at["delta_transf_high"],
        delta_acc=at["acc_teacher"] - at["acc_before"],
        rho_pos=at["rho_pos_before"],
        rho_neg=at["rho_neg_before"],
        rate=at["transfer_rate_strict_top100"],
        seconds=at["seconds"],
        device=device,
        diverged=bool(diverged),
    )
