"""Job kind `soup`: the mean of the weights of K single-teacher transfers of one student, measured like a transfer.

theta = (theta_1 + .. + theta_K) / K for floating tensors, in float64; integer buffers, such as batch norm's count of
batches, are the first one's (Wortsman et al. 2022; the paper's Sec. 5.2).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import torch

from kt_study.errors import ArtefactGone
from kt_study.hashing import job_digest
from kt_study.multi_teacher import needed_transfers, transfer_digest
from kt_study.records import TransferSpec
from worker.job.context import JobContext, Rows
from worker.kinds.transfer import evaluation_images, student_model
from worker.models.build import left_state
from worker.training.evaluate import predictions
from worker.training.opened import OpenedTransfer, open_transfer
from worker.training.result import TrainedStudent, result_rows


def run(spec: dict[str, Any], context: JobContext) -> Rows:
    """Average the kept students and measure the result: a `transfers` row with `multi_teacher = "soup"`, and no curve.

    Raises:
        Stopped: asked to stop; a soup takes one evaluation, so it starts again.
        ArtefactGone: a single transfer's student is missing or damaged.
        DataError, UnknownModelError, DiskError: what the evaluation needs is missing or cannot be written.
    """
    opened = open_transfer(msgspec.convert(spec, TransferSpec), context)
    return result_rows(opened, job_digest("soup", spec), mix_student(opened, context), context)


def mix_student(opened: OpenedTransfer, context: JobContext) -> TrainedStudent:
    """The mean of the kept students, and its predictions. Raises as `run`."""
    began = time.monotonic()
    singles = [transfer_digest(single) for single in needed_transfers(opened.spec)]
    if missing := [single for single in singles if not context.paths.weights(single).is_file()]:
        raise ArtefactGone(
            f"{len(missing)} of the {len(singles)} students to average are missing; they are made again", missing
        )
    state = mean_weights(left_state(context.paths, single) for single in singles)
    model = student_model(opened.student, context)
    model.load_state_dict(state)
    predicted = predictions(
        model,
        evaluation_images(opened, context),
        batch_size=context.options.eval_batch_size,
        stopping=context.stopping,
    )
    return TrainedStudent(state=state, predictions=predicted, curve=[], seconds=time.monotonic() - began)


def mean_weights(states: Iterable[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The mean of state dicts, in the first one's types."""
    rest = iter(states)
    first = next(rest)
    total = {name: tensor.double() for name, tensor in first.items() if tensor.is_floating_point()}
    count = 1
    for state in rest:
        count += 1
        for name in total:
            total[name] += state[name].double()
    return {name: (total[name] / count).to(tensor) if name in total else tensor for name, tensor in first.items()}
