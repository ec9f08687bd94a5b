"""Job kind `remake`: repeats a finished transfer or soup to keep its student, which was not kept the first time.

The next stage of a sequence, or a soup, reads the student of a transfer. If that was not kept, it is trained again: to the
same weights on the same kind of machine and number of threads, and equal up to rounding on another. Its row and its
predictions remain those of the first run.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from kt_study.multi_teacher import transfer_digest
from kt_study.records import TransferSpec
from worker.job.context import JobContext, Rows
from worker.kinds.soup import mix_student
from worker.kinds.transfer import train_student
from worker.models.kept import is_beaten
from worker.training.opened import OpenedTransfer, open_transfer
from worker.training.result import keep_trained, measured_columns
from worker.training.shared import shared_student


def run(spec: dict[str, Any], context: JobContext) -> Rows:
    """Write the student's file as `keep` would have; under "best" only if no better one is kept. No rows.

    Raises:
        Stopped: asked to stop; the checkpoint is written and the next attempt ends with the same bits.
        UsageError, DataError, UnknownModelError, WeightsError, DiskError: as `worker.kinds.transfer.run`.
    """
    transfer = msgspec.convert(spec, TransferSpec)
    job = transfer_digest(transfer)
    opened = open_transfer(transfer, context)
    soup = transfer.settings.multi_teacher == "soup"
    if transfer.settings.keep == "best" and _is_beaten(opened, job, context):
        return {}
    student = shared_student(transfer, context)
    if student is None:
        student = mix_student(opened, context) if soup else train_student(opened, job, context)
    keep_trained(opened, job, student, measured_columns(opened, student), context)
    context.paths.checkpoint(job).unlink(missing_ok=True)
    return {}


def _is_beaten(opened: OpenedTransfer, job: str, context: JobContext) -> bool:
    """Whether a better student is kept, by the predictions of the first run; False if these are missing."""
    file = context.paths.predictions(job)
    if not file.exists():
        return False
    facts = {
        "dataset_key": opened.dataset.key,
        "student_key": opened.student.key,
        "objective": opened.spec.objective,
        "acc_after": np.count_nonzero(np.load(file) == opened.val_labels) * 100.0 / len(opened.val_labels),
    }
    return is_beaten(context.paths, job, facts)
