"""Job kind `remake`: do a finished transfer, or soup, once more, to keep its student, which nobody wanted at the time.

A sequence's next stage, or a soup, reads the student that a transfer left. Where that was measured and thrown away, it
is made again: the same weights on the same kind of machine and number of threads, rounding apart on another. Its row
and its predictions stay those of the first time.
"""

from __future__ import annotations

from typing import Any

import msgspec

from kt_study.multi_teacher import transfer_digest
from kt_study.words import TransferSpec
from worker.context import JobContext, Rows
from worker.kinds.soup import mix_student
from worker.kinds.transfer import train_student
from worker.trainer.opened import open_transfer
from worker.trainer.result import keep_trained, measured_columns


def run(spec: dict[str, Any], context: JobContext) -> Rows:
    """Leave the student's file where `keep = "all"` would have left it. No rows.

    Raises:
        Stopped: asked to stop; the checkpoint is written and the next attempt ends with the same bits.
        UsageError, DataError, UnknownModelError, WeightsError, DiskError: as `worker.kinds.transfer.run`.
    """
    wanted = msgspec.convert(spec, TransferSpec)
    job = transfer_digest(wanted)
    opened = open_transfer(wanted, context)
    soup = wanted.settings.multi_teacher == "soup"
    student = mix_student(opened, context) if soup else train_student(opened, job, context)
    keep_trained(opened, job, student, measured_columns(opened, student), context)
    context.paths.checkpoint(job).unlink(missing_ok=True)
    return {}
