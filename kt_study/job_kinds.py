"""The job kinds: one record for each, used by planning, the workers and the documentation.

The work of a kind is `run(spec, context)` in the module of its name in `worker.kinds`. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from kt_study.hashing import job_digest
from kt_study.records import (
    AllPairsSpec,
    ComplementaritySpec,
    LogitsSpec,
    ModelRecord,
    PlannedJob,
    Record,
    TrainSpec,
    TransferSpec,
    as_spec,
)
from kt_study.schema import RESULT_TABLES


class JobKind(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of job; the fields without a default must be given."""

    name: str
    meaning: str  # for docs/concepts.md
    spec: type[Record]
    priority: int  # higher first
    tables: tuple[str, ...]  # of `kt_study.schema`, to which its rows may go
    resumable: bool = False  # resumes from a checkpoint, so that one allocation need not hold a whole job
    batched: bool = False  # takes milliseconds: a worker claims and finishes such jobs in batches

    def __post_init__(self) -> None:
        if unknown := [table for table in self.tables if table not in RESULT_TABLES]:
            raise ValueError(f"job kind {self.name!r}: kt_study/schema.py has no table {unknown[0]!r}")


JOB_KINDS = {
    kind.name: kind
    for kind in (
        JobKind(
            name="train",
            meaning="a model trained on the data set, all layers or the last one",
            spec=TrainSpec,
            priority=30,  # everything else waits for it
            tables=("trainings",),
            resumable=True,
        ),
        JobKind(
            name="logits",
            meaning="a model's logits on one split and view",
            spec=LogitsSpec,
            priority=10,
            tables=("evaluations",),
        ),
        JobKind(
            name="complementarity",
            meaning="the comparison of an ordered pair",
            spec=ComplementaritySpec,
            priority=15,
            tables=("complementarity", "class_flips"),
            batched=True,
        ),
        JobKind(
            name="all_pairs",
            meaning="the comparison of all ordered pairs, in one file",
            spec=AllPairsSpec,
            priority=5,
            tables=("all_pairs",),
        ),
        JobKind(
            name="transfer",
            meaning="a transfer, or one stage of a sequence",
            spec=TransferSpec,
            priority=0,
            tables=("transfers", "transfer_epochs"),
            resumable=True,
        ),
        JobKind(
            name="soup",
            meaning="the mean of the students of several transfers",
            spec=TransferSpec,
            priority=0,
            tables=("transfers", "transfer_epochs"),
        ),
        JobKind(
            name="remake",
            meaning="a student whose weights were not kept, trained again",
            spec=TransferSpec,
            priority=0,
            tables=(),
            resumable=True,
        ),
        JobKind(
            name="shared",
            meaning="a training that does not depend on the teacher, done once for all transfers that use it: "
            "`self_distillation`",
            spec=TransferSpec,
            priority=0,
            tables=(),
            resumable=True,
        ),
    )
}

EVALUATION_PRIORITY = 20
"""Of `logits` jobs of the evaluation view, for which comparisons wait."""

RESUMABLE = tuple(kind.name for kind in JOB_KINDS.values() if kind.resumable)
BATCHED = tuple(kind.name for kind in JOB_KINDS.values() if kind.batched)


def planned_job(
    kind: str,
    spec: Record,
    *,
    estimate_s: float,
    needs: Iterable[str] = (),
    priority: int | None = None,
    teacher: ModelRecord | None = None,
    student: ModelRecord | None = None,
) -> PlannedJob:
    """A job as it is planned.

    Args:
        kind: a name of `JOB_KINDS`.
        spec: of the kind's type.
        estimate_s: seconds that it will take; kept to the millisecond.
        needs: digests of the jobs that must be done first.
        priority: the kind's own when None.
        teacher: a worker that has this model in memory prefers the job.
        student: likewise.
    """
    encoded = as_spec(spec)
    return PlannedJob(
        kind=kind,
        spec=encoded,
        digest=job_digest(kind, encoded),
        needs=tuple(dict.fromkeys(needs)),
        priority=JOB_KINDS[kind].priority if priority is None else priority,
        estimate_s=round(estimate_s, 3),
        teacher=teacher.key if teacher else None,
        student=student.key if student else None,
    )
