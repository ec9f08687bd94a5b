"""The result rows of a transfer or a soup."""

from __future__ import annotations

import resource
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kt_study.files import written_aside
from kt_study.multi_teacher import stage_number
from kt_study.objectives import facts_of
from worker.job.context import JobContext, Rows
from worker.job.rows import plain
from worker.logits.forward import device_name, versions
from worker.measures.transfer import flips_given_to_teacher, measure_transfer, measure_without_labels
from worker.models.kept import keep_student
from worker.training.opened import OpenedTransfer
from worker.training.step import effective_lr


@dataclass(frozen=True, kw_only=True)
class TrainedStudent:
    """What a transfer leaves, whichever way it was made."""

    state: dict[str, torch.Tensor]  # of the student that was evaluated: the slow weights where there are such
    predictions: NDArray[np.int64]  # on the validation split
    curve: list[dict[str, Any]]  # stage, epoch, loss, acc, seconds; all stages
    seconds: float
    images_per_s: float | None = None
    steps: int = 0
    diverged_step: int | None = None
    diverged_batch: int | None = None
    micro_batch: int = 0
    machine: Mapping[str, Any] | None = None  # columns on where it was trained; None for here


def result_rows(opened: OpenedTransfer, job: str, student: TrainedStudent, context: JobContext) -> Rows:
    """Store the predictions and, if asked, the student; return the `transfers` row and the curve.

    Raises:
        DiskError: no space for them.
    """
    measured = measured_columns(opened, student)
    write_predictions(context, job, student.predictions, opened.student.num_classes)
    weights = keep_trained(opened, job, student, measured, context)
    row = {
        **_who(opened),
        **_settings(opened),
        **measured,
        **_run(student, context),
        "n_train": len(opened.train_labels),
        "predictions": context.paths.relative(context.paths.predictions(job)),
        "weights": context.paths.relative(weights) if weights else None,
    }
    return {
        "transfers": [plain(row)],
        "transfer_epochs": [plain(epoch) for epoch in _epochs(opened, student, measured)],
    }


def keep_trained(
    opened: OpenedTransfer, job: str, student: TrainedStudent, measured: dict[str, Any], context: JobContext
) -> Path | None:
    """Keep the student as the settings say, with what made it in the header. Raises as `worker.models.kept.keep_student`."""
    facts = _facts(opened, student, measured)
    return keep_student(context.paths, job, student.state, facts, opened.spec.settings.keep)


def measured_columns(opened: OpenedTransfer, student: TrainedStudent) -> dict[str, Any]:
    """Everything measured on the validation split, by column name; nan or None where it is not defined."""
    labels = opened.val_labels
    teachers = [entry.argmax.astype(np.int64) for entry in opened.teachers_val]
    before = opened.student_val.argmax.astype(np.int64)
    if not opened.dataset.has_labels("val"):
        unknown = dict.fromkeys(("acc_before", "acc_after"))
        return unknown | measure_without_labels(before, student.predictions, teachers) | _partition_shares(opened)
    measures = measure_transfer(labels, before, student.predictions, teachers, opened.student.num_classes)
    acc_start = np.count_nonzero(opened.start_val.argmax == labels) * 100.0 / len(labels)
    columns: dict[str, Any] = {**measures.row(), "delta_stage": measures.acc_after - acc_start}
    return columns | _partition_shares(opened)


def write_predictions(context: JobContext, job: str, predictions: NDArray[np.int64], n_classes: int) -> None:
    """Store predicted classes, the smallest unsigned integers that hold them. Raises DiskError."""
    small = predictions.astype(np.min_scalar_type(n_classes - 1))
    with written_aside(context.paths.predictions(job)) as scratch, scratch.open("wb") as stream:
        np.save(stream, small)


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that torch had on the GPU since its statistics were reset, or that this process had in memory."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _partition_shares(opened: OpenedTransfer) -> dict[str, Any]:
    """What the partition gives to the teacher; empty for those that partition nothing: contrastive ones, labels, soups."""
    names = ("dp_pos_to_teacher", "dp_neg_to_teacher", "teacher_share")
    if facts_of(opened.spec.objective).contrastive or not opened.views:
        return dict.fromkeys(names)
    taught = 100.0 * float(np.mean([np.mean(sources != 0) for sources in opened.train_sources()]))
    if not opened.dataset.has_labels("val"):
        return {"teacher_share": taught}
    best = opened.teachers_val[-1 if opened.spec.settings.multi_teacher == "sequential" else opened.best_teacher()]
    positive, negative = flips_given_to_teacher(
        opened.val_labels, best.argmax, opened.start_val.argmax, opened.val_sources() != 0
    )
    return dict(zip(names, (positive, negative, taught), strict=True))


def _who(opened: OpenedTransfer) -> dict[str, Any]:
    return {
        "dataset": opened.dataset.name,
        "dataset_key": opened.dataset.key,
        "student": opened.student.name,
        "student_key": opened.student.key,
        "teacher": "+".join(teacher.name for teacher in opened.teachers),
        "teacher_key": "+".join(teacher.key for teacher in opened.teachers),
        "objective": opened.spec.objective,
        "stage": stage_number(opened.spec),
    }


def _settings(opened: OpenedTransfer) -> dict[str, Any]:
    settings = opened.spec.settings
    columns = {name: getattr(settings, name) for name in settings.__struct_fields__}
    return {**columns, "lr_effective": effective_lr(settings), "seed": opened.spec.seed}


def _run(student: TrainedStudent, context: JobContext) -> dict[str, Any]:
    return {
        "diverged": student.diverged_step is not None,
        "diverged_step": student.diverged_step,
        "diverged_batch": student.diverged_batch,
        "steps": student.steps,
        "micro_batch_used": student.micro_batch,
        "seconds": student.seconds,
        "images_per_s": student.images_per_s,
        **(this_machine(context) if student.machine is None else student.machine),
    }


def this_machine(context: JobContext) -> dict[str, Any]:
    """The columns that say what a transfer ran on."""
    return {
        "peak_memory": peak_memory(context.device),
        "device": device_name(context.device),
        "host": socket.gethostname(),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def _epochs(opened: OpenedTransfer, student: TrainedStudent, measured: dict[str, Any]) -> list[dict[str, Any]]:
    who = _who(opened)
    names = {name: who[name] for name in ("dataset", "student", "teacher", "objective")}
    before = measured["acc_before"]
    return [
        {**names, **epoch, "delta_transf": None if epoch["acc"] is None else epoch["acc"] - before}
        for epoch in student.curve
    ]


def _facts(opened: OpenedTransfer, student: TrainedStudent, measured: dict[str, Any]) -> dict[str, Any]:
    """What stands in the header of a kept student."""
    who = _who(opened)
    return {
        **{name: who[name] for name in ("dataset", "dataset_key", "student", "student_key", "teacher", "objective")},
        "settings": _settings(opened),
        "acc_before": measured["acc_before"],
        "acc_after": measured["acc_after"],
        "curve": student.curve,
        "versions": versions(),
    }
