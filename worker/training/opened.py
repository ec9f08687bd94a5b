"""Opens a transfer's records and cached passes: the models, their predictions, and the partition."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kt_study.datasets import list_split
from kt_study.errors import DataError
from kt_study.hashing import hash64
from kt_study.multi_teacher import previous_stage, transferred_record
from kt_study.objectives import facts_of, partition_of, transfer_logits
from kt_study.records import DatasetRecord, LogitsSpec, ModelRecord, TransferSpec
from worker.job.context import JobContext
from worker.logits import CachedLogits
from worker.logits.forward import cached_logits
from worker.objectives.partition import Columns, Sources, assign_sources


@dataclass(frozen=True, kw_only=True)
class OpenedTransfer:
    """What a transfer, or a soup, starts from. Lists of teachers are in the order of the specification."""

    spec: TransferSpec
    dataset: DatasetRecord
    student: ModelRecord  # as it was before any transfer
    start: ModelRecord  # as it is before this stage
    teachers: list[ModelRecord]
    train_labels: NDArray[np.int64]  # all -1 where there are no labels
    val_labels: NDArray[np.int64]  # likewise
    student_val: CachedLogits
    start_val: CachedLogits
    teachers_val: list[CachedLogits]
    teachers_train: list[list[CachedLogits]]  # [teacher taught from][view]
    start_train: list[CachedLogits]  # [view]
    train_view: LogitsSpec  # how training samples are seen, view 0

    def train_sources(self) -> list[Sources]:
        """Who teaches each training sample, by view: 0 the frozen student, k teacher k of those taught from."""
        return [self._sources(view) for view in range(self.views)]

    @property
    def views(self) -> int:
        """Views of the transfer set that are cached: of the frozen student, of a teacher, or of both."""
        return len((self.teachers_train or [self.start_train])[0])

    def val_sources(self) -> Sources:
        """Who would teach each validation sample by the same rule."""
        last_only = self.spec.settings.multi_teacher == "sequential"
        asked = self.teachers_val[-1:] if last_only else self.teachers_val
        return assign_sources(
            partition_of(self.spec.objective, self.spec.settings),
            labels=self.val_labels,
            frozen=columns_of(self.start_val),
            teachers=[columns_of(entry) for entry in asked],
            key=self._key("val"),
        )

    def best_teacher(self) -> int:
        """Position of the teacher with the highest validation accuracy, the first of equals."""
        return int(np.argmax([np.count_nonzero(entry.right) for entry in self.teachers_val]))

    def _sources(self, view: int) -> Sources:
        return assign_sources(
            partition_of(self.spec.objective, self.spec.settings),
            labels=self.train_labels,
            frozen=columns_of(self.start_train[view]) if self.start_train else None,
            teachers=[columns_of(teacher[view]) for teacher in self.teachers_train],
            key=self._key("train"),
        )

    def _key(self, split: str) -> int:
        """Of a random partition: another one for each pair, the same in every view."""
        return hash64("random partition", split, self.spec.seed, self.spec.student, *self.spec.teachers)


def open_transfer(spec: TransferSpec, context: JobContext) -> OpenedTransfer:
    """Look up the records of a transfer and open, or make, its cached passes.

    Raises:
        UsageError: settings that do not combine.
        DataError: no labels where something reads them, or models with different numbers of classes.
        Stopped: asked to stop while a missing pass was being made.
        UnknownModelError, WeightsError, DiskError: a pass that cannot be made.
    """
    records = context.records
    dataset, student = records.dataset(spec.dataset), records.model(spec.student)
    before = previous_stage(spec)
    passes = transfer_logits(spec, dataset=dataset, model=records.model)
    opened = OpenedTransfer(
        spec=spec,
        dataset=dataset,
        student=student,
        start=student if before is None else transferred_record(student, before),
        teachers=[records.model(key) for key in spec.teachers],
        train_labels=_labels(dataset, "train", context),
        val_labels=_labels(dataset, "val", context),
        student_val=cached_logits(passes.student_val, context),
        start_val=cached_logits(passes.start_val, context),
        teachers_val=[cached_logits(view, context) for view in passes.teachers_val],
        teachers_train=[[cached_logits(view, context) for view in teacher] for teacher in passes.teachers_train],
        start_train=[cached_logits(view, context) for view in passes.start_train],
        train_view=passes.student_view,
    )
    _check_classes(opened)
    return opened


def columns_of(entry: CachedLogits) -> Columns:
    """What the partition looks at."""
    return Columns(p_label=entry.p_label, p_max=entry.p_max, argmax=entry.argmax)


def _labels(dataset: DatasetRecord, split: str, context: JobContext) -> NDArray[np.int64]:
    labels = list_split(dataset, split, context.paths)[0].labels
    if labels is None:
        return np.full(dataset.splits[split], -1, dtype=np.int64)
    return np.asarray(labels, dtype=np.int64)


def _check_classes(opened: OpenedTransfer) -> None:
    if facts_of(opened.spec.objective).contrastive:
        return
    for teacher in opened.teachers:
        if teacher.num_classes != opened.student.num_classes:
            raise DataError(
                f"teacher {teacher.name!r} has {teacher.num_classes} classes, student {opened.student.name!r} "
                f"{opened.student.num_classes}; fine-tune both for the same classes first"
            )
