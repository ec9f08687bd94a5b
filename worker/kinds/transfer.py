"""Job kind `transfer`: a transfer from one teacher, or from several in parallel, to a student; or one stage of a sequence."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from kt_study.errors import ArtefactGone, DataError, WeightsError
from kt_study.hashing import job_digest
from kt_study.multi_teacher import previous_stage, stage_number, transfer_digest
from kt_study.objectives import facts_of, needs_live_teacher
from kt_study.records import ModelRecord, TransferSpec
from worker.data.loader import Rendering, Views, evaluation_views, image_bytes, training_views
from worker.data.views import ViewRecipe
from worker.job.context import JobContext, Rows
from worker.logits import CachedLogits
from worker.models.build import build_model
from worker.models.kept import kept_facts
from worker.objectives import Setup, build_objective
from worker.training.checkpoints import load_checkpoint, save_checkpoint
from worker.training.compiled import forget_compiled
from worker.training.deterministic import deterministic_kernels, seed_step
from worker.training.live import LiveTeacher
from worker.training.loop import Feed, Hooks, Outcome, TransferLoop, Validation
from worker.training.opened import OpenedTransfer, open_transfer
from worker.training.result import TrainedStudent, result_rows
from worker.training.rows import RowTable, row_tables
from worker.training.shared import leave_outcome, shared_student
from worker.training.step import TransferStep
from worker.training.student import check_micro_batch, feature_dim

log = logging.getLogger("kt-study.worker")


def run(spec: dict[str, Any], context: JobContext) -> Rows:
    """Do one transfer: a `transfers` row, its curve in `transfer_epochs`, predictions, and the student if it is to be
    kept. A training that it has in common with other transfers, and that is done, is measured only.

    A run whose loss stops being finite is a result too, flagged `diverged`, measured with its last finite weights.

    Raises:
        Stopped: asked to stop; the checkpoint is written and the next attempt ends with the same bits.
        UsageError: settings that do not combine, or micro-batches with batch norm in train mode.
        DataError, UnknownModelError, WeightsError, DiskError: what the transfer needs is missing or cannot be written.
    """
    wanted = msgspec.convert(spec, TransferSpec)
    job = job_digest("transfer", spec)
    opened = open_transfer(wanted, context)
    student = shared_student(wanted, context)
    if student is None:
        student = train_student(opened, job, context)
        leave_outcome(wanted, student, context)
    rows = result_rows(opened, job, student, context)
    context.paths.checkpoint(job).unlink(missing_ok=True)
    return rows


def train_student(opened: OpenedTransfer, job: str, context: JobContext) -> TrainedStudent:
    """Train from the start, or from the checkpoint of `job`, to the end. Raises as `run`; leaves the checkpoint.

    Where a GPU's memory runs out, once more from the checkpoint, with nothing on it but what a step needs.
    """
    try:
        return _train(opened, job, context)
    except torch.OutOfMemoryError as error:
        if not context.options.resident:
            raise
        log.warning("%s; again from the last checkpoint, with logits and images left in the host's memory", error)
    context.worker_cache.pop("images", None)
    return train_student(opened, job, replace(context, options=replace(context.options, resident=False)))


def _train(opened: OpenedTransfer, job: str, context: JobContext) -> TrainedStudent:
    if context.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(context.device)
    with deterministic_kernels(opened.spec.settings.deterministic):
        loop = build_loop(opened, job, context)
        _resume(loop, job, context)
        return trained_student(opened, loop, loop.run(), context)


def _resume(loop: TransferLoop, job: str, context: JobContext) -> None:
    """Go to the checkpoint's position, if there is one; its tensors are let go with this frame."""
    if (state := load_checkpoint(context.paths.checkpoint(job), job, context.device)) is not None:
        loop.load_state_dict(state)


def build_loop(opened: OpenedTransfer, job: str, context: JobContext) -> TransferLoop:
    """Everything that trains, at its starting position."""
    spec, settings = opened.spec, opened.spec.settings
    if settings.compile:
        forget_compiled(context.worker_cache, opened.start.key, settings)
    model = student_model(opened.start, context)
    check_micro_batch(model, settings.micro_batch, settings.batchnorm)
    feed = build_feed(opened, context)
    seed_step(spec.seed, -1, 0)  # the objective's own weights
    objective = build_objective(spec.objective, _setup(opened, model, feed, context)).to(context.device)
    validation = Validation(
        views=evaluation_images(opened, context),
        labels=opened.val_labels,
        batch_size=context.options.eval_batch_size,
    )
    hooks = Hooks(
        checkpoint=lambda state: save_checkpoint(context.paths.checkpoint(job), job, state),
        stopping=context.stopping,
        report=context.report,
        checkpoint_every_s=context.options.checkpoint_every_s,
    )
    step = TransferStep(model, objective, spec.objective, settings, cuda_graphs=context.options.cuda_graphs)
    return TransferLoop(step=step, feed=feed, validation=validation, seed=spec.seed, hooks=hooks)


def build_feed(opened: OpenedTransfer, context: JobContext) -> Feed:
    """The transfer set: the student's views, and each sample's target on the device."""
    sources = opened.train_sources()
    contrastive = facts_of(opened.spec.objective).contrastive
    live = _live_teacher(opened, context) if needs_live_teacher(opened.spec.objective, opened.spec.settings) else None
    tables: list[RowTable] = []
    if sources:
        cached = _tables(opened, contrastive)
        tables = row_tables(sources, cached, context.device, resident=context.options.resident)
    skips_flips = facts_of(opened.spec.objective).slow_weights and opened.spec.settings.reading == "authors"
    classes = [entry.argmax.astype(np.int64) for entry in opened.teachers_train[0]] if skips_flips else []
    return Feed(
        views=_training_views(opened, opened.start, context),
        labels=torch.from_numpy(opened.train_labels).to(context.device),
        targets=[] if contrastive else tables,
        teacher_features=tables if contrastive else [],
        teacher_classes=torch.from_numpy(np.stack(classes)).to(context.device) if classes else None,
        live=live,
    )


def student_model(record: ModelRecord, context: JobContext) -> nn.Module:
    """The student on the device, in eval mode; its weights stay in memory for the worker's next job with it."""
    kept = context.worker_cache.get("student")
    if kept is None or kept[0] != record.key:
        kept = (record.key, build_model(record, context.paths, torch.device("cpu")))
        context.worker_cache["student"] = kept
    model: nn.Module = copy.deepcopy(kept[1])
    return model.to(context.device)


def evaluation_images(opened: OpenedTransfer, context: JobContext) -> Views:
    """The validation split with the student's preprocessing."""
    return evaluation_views(
        opened.dataset,
        "val",
        opened.start,
        context.paths,
        device=context.device,
        workers=context.options.loader_workers,
        worker_cache=context.worker_cache,
        rendering=Rendering(allowed=context.options.resident, stopping=context.stopping),
    )


def trained_student(
    opened: OpenedTransfer, loop: TransferLoop, outcome: Outcome, context: JobContext
) -> TrainedStudent:
    """What the loop left, with the curve of earlier stages in front."""
    spec, before = opened.spec, previous_stage(opened.spec)
    earlier: list[dict[str, Any]] = []
    if before is not None:
        kept = transfer_digest(before)
        try:
            earlier = kept_facts(context.paths.weights(kept)).get("curve", [])
        except WeightsError as error:
            raise ArtefactGone(str(error), [kept]) from error
    done = earlier[-1]["epoch"] if earlier else 0
    stage = stage_number(spec)
    if outcome.diverged_step is not None:
        log.warning(
            "%s diverged at step %d, batch %d", opened.student.name, outcome.diverged_step, outcome.diverged_batch
        )
    slow = loop.step.slow
    return TrainedStudent(
        state=loop.step.model.state_dict() if slow is None else slow.state,
        predictions=outcome.predictions,
        curve=earlier + [{**row, "epoch": done + row["epoch"], "stage": stage} for row in outcome.curve],
        seconds=outcome.seconds,
        images_per_s=outcome.images_per_s,
        steps=outcome.steps,
        diverged_step=outcome.diverged_step,
        diverged_batch=outcome.diverged_batch,
        micro_batch=outcome.micro_batch,
    )


def _tables(opened: OpenedTransfer, contrastive: bool) -> list[list[Any]]:
    """[view][source] arrays; the frozen student's stands first, empty where nobody asks it."""
    tables = []
    for view in range(opened.views):
        frozen = opened.start_train[view].logits if opened.start_train else np.empty((0, 0), np.float16)
        cached = [entries[view] for entries in opened.teachers_train]
        tables.append([frozen, *(_features(entry) if contrastive else entry.logits for entry in cached)])
    return tables


def _features(entry: CachedLogits) -> NDArray[np.float16]:
    if entry.features is None:
        raise DataError(
            f"{entry.folder}: no features in this cache entry; delete this folder, then run `kt-study retry`"
        )
    return entry.features


def _setup(opened: OpenedTransfer, model: nn.Module, feed: Feed, context: JobContext) -> Setup:
    settings, labels = opened.spec.settings, torch.from_numpy(opened.train_labels)
    if not facts_of(opened.spec.objective).contrastive:
        return Setup(settings=settings, labels=labels)
    teacher_dim = feed.live.dim if feed.live else _features(opened.teachers_train[0][0]).shape[1]
    student_dim = feature_dim(model, opened.start.input_size, context.device)
    return Setup(settings=settings, labels=labels, student_dim=student_dim, teacher_dim=teacher_dim)


def _live_teacher(opened: OpenedTransfer, context: JobContext) -> LiveTeacher:
    teacher = opened.teachers[-1]
    model = build_model(teacher, context.paths, context.device)
    dim = feature_dim(model, teacher.input_size, context.device)
    return LiveTeacher(model, _training_views(opened, teacher, context), dim=dim)


def _training_views(opened: OpenedTransfer, model: ModelRecord, context: JobContext) -> Views:
    what = opened.train_view
    return training_views(
        opened.dataset,
        "train",
        model,
        ViewRecipe(augment=what.augment, seed=what.view_seed, crop_pct=what.crop_pct or 1.0),  # type: ignore[arg-type]
        context.paths,
        device=context.device,
        workers=context.options.loader_workers,
        worker_cache=context.worker_cache,
        rendering=_rendering(opened, model, context),
        loader=what.loader,
    )


def _rendering(opened: OpenedTransfer, model: ModelRecord, context: JobContext) -> Rendering:
    """The student's training and validation images, and a live teacher's, are all come back to."""
    settings = opened.spec.settings
    views = min(settings.views, settings.epochs)
    beside = image_bytes(opened.dataset, "val", opened.start)
    if needs_live_teacher(opened.spec.objective, settings):
        other = opened.teachers[-1] if model is opened.start else opened.start
        beside += views * image_bytes(opened.dataset, "train", other)
    return Rendering(views=views, beside=beside, allowed=context.options.resident, stopping=context.stopping)
