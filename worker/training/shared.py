"""A training that does not depend on the teacher: done once per student, and compared with each teacher.

It saves `runs/<job>/outcome.json` and predictions, and the student if a transfer keeps one. If these are missing, a
transfer trains the student itself and saves them again.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from kt_study.errors import WeightsError
from kt_study.files import write_bytes
from kt_study.hashing import job_digest
from kt_study.objectives import shared_training
from kt_study.records import TransferSpec, as_spec
from worker.job.context import JobContext
from worker.models.build import left_state
from worker.models.kept import keep_student
from worker.training.result import TrainedStudent, this_machine, write_predictions

_TOLD = ("curve", "seconds", "images_per_s", "steps", "diverged_step", "diverged_batch", "micro_batch")


def leave_outcome(spec: TransferSpec, student: TrainedStudent, context: JobContext) -> None:
    """Leave a trained student for the transfers that have its training in common; nothing where there are none.

    Raises:
        DiskError: no space.
    """
    training = shared_training(spec)
    if training is None:
        return
    job = _job(training)
    n_classes = context.records.model(spec.student).num_classes
    write_predictions(context, job, student.predictions, n_classes)
    facts = {"student_key": spec.student, "dataset_key": spec.dataset, "objective": spec.objective}
    keep_student(context.paths, job, student.state, facts, training.settings.keep)
    told: dict[str, Any] = {name: getattr(student, name) for name in _TOLD}
    told["machine"] = this_machine(context)
    write_bytes(context.paths.outcome(job), json.dumps(told).encode())


def shared_student(spec: TransferSpec, context: JobContext) -> TrainedStudent | None:
    """The student of this transfer as the training that it shares left it; None where there is no such, or no more.

    Its state is empty where the transfer keeps no student.
    """
    training = shared_training(spec)
    if training is None:
        return None
    job = _job(training)
    try:
        told = json.loads(context.paths.outcome(job).read_bytes())
        predictions = np.load(context.paths.predictions(job)).astype(np.int64)
        state = {} if spec.settings.keep == "none" else left_state(context.paths, job)
    except (OSError, ValueError, WeightsError):
        return None
    return TrainedStudent(state=state, predictions=predictions, **told)


def _job(training: TransferSpec) -> str:
    return job_digest("shared", as_spec(training))
