"""Job kind `shared`: a training that does not depend on the teacher, for the transfers that use it. No rows."""

from __future__ import annotations

from typing import Any

import msgspec

from kt_study.hashing import job_digest
from kt_study.records import TransferSpec
from worker.job.context import JobContext, Rows
from worker.kinds.transfer import train_student
from worker.training.opened import open_transfer
from worker.training.shared import save_outcome


def run(spec: dict[str, Any], context: JobContext) -> Rows:
    """Train the student and save it for `worker.training.shared`. No rows: each transfer writes its own.

    Raises:
        Stopped: asked to stop; the checkpoint is written and the next attempt ends with the same bits.
        UsageError, DataError, UnknownModelError, WeightsError, DiskError: as `worker.kinds.transfer.run`.
    """
    training = msgspec.convert(spec, TransferSpec)
    job = job_digest("shared", spec)
    save_outcome(training, train_student(open_transfer(training, context), job, context), context)
    context.paths.checkpoint(job).unlink(missing_ok=True)
    return {}
