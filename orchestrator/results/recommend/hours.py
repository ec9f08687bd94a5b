"""GPU-hours of a transfer into the student: measured, else estimated as by `kt-study plan`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from statistics import fmean

import sqlalchemy as sa
from msgspec.structs import replace

from kt_study.errors import UsageError
from kt_study.hashing import job_digest
from kt_study.objectives import needed_logits
from kt_study.records import JobState, ModelRecord, TransferSpec, as_spec
from kt_study.settings import Settings
from kt_study.tables import jobs
from orchestrator.planning import cost
from orchestrator.results.recommend.evaluated import EvaluatedStudent
from orchestrator.results.recommend.measured import Measured
from orchestrator.results.streaming import Reader, Select

Hours = tuple[float | None, str]
"""GPU-hours, and their source: measured, student (mean of its transfers) or estimate."""


def done_passes(reader: Reader) -> set[str]:
    """Digests of the forward passes that are done, which cost nothing more."""
    select: Select = sa.select(jobs.c.digest).where(jobs.c.kind == "logits", jobs.c.state == JobState.DONE.value)
    return {digest for (digest,) in reader.rows(select)}


class TransferHours:
    """GPU-hours of transfers into one student."""

    def __init__(
        self,
        evaluated: EvaluatedStudent,
        objective: str,
        settings: Settings,
        seed: int,
        measured: Sequence[Measured],
        done: Collection[str],
    ) -> None:
        """`measured`: transfers into the student, and others. `done`: digests of existing passes."""
        self._dataset, self._student, self._done = evaluated.dataset, evaluated.student, done
        self._run = TransferSpec(
            dataset=self._dataset.key,
            student=self._student.key,
            teachers=(),
            objective=objective,
            settings=settings,
            seed=seed,
        )
        into_student = [one for one in measured if one.student == self._student.key]
        self._seconds = {one.teacher: one.seconds for one in into_student if one.seconds}
        self._devices = {one.device for one in into_student if one.seconds}

    @property
    def note(self) -> str:
        """A note if the hours are not those of a GPU; else empty."""
        return "hours are of the CPU that ran this student's transfers" if "cpu" in self._devices else ""

    def of(self, teacher: ModelRecord) -> Hours:
        """Hours of a transfer from this teacher, with the forward passes that it still needs."""
        if teacher.key in self._seconds:
            return self._seconds[teacher.key] / 3600, "measured"
        try:
            passes = self._passes_s(teacher)
        except UsageError:  # no transfers can be run on this data set
            return None, ""
        if self._seconds:
            return (fmean(self._seconds.values()) + passes) / 3600, "student"
        return (cost.transfer_s(self._student, self._dataset, self._run.settings) + passes) / 3600, "estimate"

    def _passes_s(self, teacher: ModelRecord) -> float:
        run = replace(self._run, teachers=(teacher.key,))
        models = {teacher.key: teacher, self._student.key: self._student}
        needed = needed_logits(run, dataset=self._dataset, model=models.__getitem__)
        missing = [one for one in needed if job_digest("logits", as_spec(one)) not in self._done]
        return sum(cost.forward_s(models[one.model], self._dataset, one.split, one.loader) for one in missing)
