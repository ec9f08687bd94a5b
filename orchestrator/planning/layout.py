"""From pairs and runs to jobs: each job once, after those that it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from kt_study.hashing import job_digest
from kt_study.job_kinds import EVALUATION_PRIORITY, planned_job
from kt_study.multi_teacher import (
    intermediate_students,
    job_of_weights,
    merge_kept,
    multi_teacher_specs,
    needed_transfers,
    transfer_digest,
)
from kt_study.objectives import needed_logits, shared_training
from kt_study.records import (
    AllPairsSpec,
    ComplementaritySpec,
    DatasetRecord,
    LogitsSpec,
    ModelRecord,
    PlannedJob,
    Record,
    TrainSpec,
    TransferSpec,
    as_spec,
)
from kt_study.training import TRAINED, trained_record
from orchestrator.planning import cost
from orchestrator.planning.record import RecordedTransfer

_COMPARE_S = 0.1
"""Seconds to compare two models' cached predictions."""


class Layout:
    """Lays out the jobs of a plan.

    `jobs` are by digest, in an order in which every job comes after those that it needs. `others` are the models that
    jobs name beside those that the plan was given: what a model is trained from, what a later stage starts from.

    Args:
        ran: looks up a transfer by its digest. The student of one that is done is made again for those who read it.
        acc_after: the accuracy in % after a transfer that is done, by digest; goes with keep = "best".
    """

    def __init__(
        self,
        ran: Callable[[str], RecordedTransfer | None] = lambda _: None,
        acc_after: Callable[[str], float | None] = lambda _: None,
    ) -> None:
        self.jobs: dict[str, PlannedJob] = {}
        self.others: dict[str, ModelRecord] = {}
        self._datasets: dict[str, DatasetRecord] = {}
        self._models: dict[str, ModelRecord] = {}
        self._ran = ran
        self._acc_after = acc_after
        self._remade: dict[str, str] = {}  # digest of a transfer -> digest of the job that makes its student again
        self._passes: dict[LogitsSpec, str] = {}  # digests; thousands of transfers share a few passes

    def know(self, datasets: Iterable[DatasetRecord], models: Iterable[ModelRecord]) -> None:
        """The data sets and models that specifications may name."""
        self._datasets.update((dataset.key, dataset) for dataset in datasets)
        self._models.update((model.key, model) for model in models)

    def take(self, jobs: Iterable[PlannedJob], others: Iterable[ModelRecord]) -> None:
        """Jobs that were created elsewhere, and the models that they name."""
        self.jobs.update((job.digest, job) for job in jobs)
        self._add_others(others)

    def train(self, start: ModelRecord, spec: TrainSpec) -> ModelRecord:
        """One training. Returns the trained model."""
        dataset = self._datasets[spec.dataset]
        needs = [maker] if (maker := maker_of(start)) else []
        job = self._add("train", spec, needs=needs, estimate_s=cost.train_s(start, dataset, spec), student=start)
        self._add_others([start])
        trained = trained_record(start, spec, job, dataset)
        self._models[trained.key] = trained
        return trained

    def complementarity(
        self, dataset: DatasetRecord, teacher: ModelRecord, student: ModelRecord, *, similarity: str = "auto"
    ) -> None:
        """One pair, and the predictions it needs; `similarity` says what measures that of the classes."""
        spec = ComplementaritySpec(
            dataset=dataset.key, teacher=teacher.key, student=student.key, class_similarity=similarity
        )
        needs = [self._predictions(dataset, model) for model in (teacher, student)]
        self._add("complementarity", spec, needs=needs, estimate_s=_COMPARE_S, teacher=teacher, student=student)

    def all_pairs(self, dataset: DatasetRecord, models: Sequence[ModelRecord], *, similarity: str = "auto") -> None:
        """Every ordered pair as one job, and the predictions it needs; `similarity` as for one pair."""
        keys = tuple(sorted(model.key for model in models))
        spec = AllPairsSpec(dataset=dataset.key, models=keys, class_similarity=similarity)
        needs = [self._predictions(dataset, model) for model in models]
        self._add("all_pairs", spec, needs=needs, estimate_s=cost.all_pairs_s(len(models), dataset))

    def transfers(self, runs: Iterable[TransferSpec]) -> None:
        """Every run with its stages or parts. What two runs share is planned once, kept if one of them reads it."""
        specs = merge_kept(spec for run in runs for spec in self._parts(run))
        self._share_trainings(specs)
        lost = self._lost(specs)
        for spec in specs:
            self._transfer(spec, remake=transfer_digest(spec) in lost)

    def _share_trainings(self, specs: Sequence[TransferSpec]) -> None:
        """The trainings that transfers to come have in common, whose student is kept where one of them keeps one."""
        waiting = [spec for spec in specs if self._ran(transfer_digest(spec)) is None]
        for spec in merge_kept(shared for spec in waiting if (shared := shared_training(spec)) is not None):
            dataset, student = self._datasets[spec.dataset], self._models[spec.student]
            passes = needed_logits(spec, dataset=dataset, model=self._models.__getitem__)
            self._add(
                "shared",
                spec,
                needs=map(self._logits, passes),
                estimate_s=cost.transfer_s(student, dataset, spec.settings),
                student=student,
            )

    def _parts(self, run: TransferSpec) -> list[TransferSpec]:
        mode = run.settings.multi_teacher
        if mode == "single":
            return [run]
        specs = multi_teacher_specs(run, mode)
        self._add_others(intermediate_students(self._models[run.student], specs))
        return specs

    def _lost(self, specs: Sequence[TransferSpec]) -> set[str]:
        """Digests of the transfers that ran, or run, without leaving a student that is wanted.

        One that was kept and removed since is wanted only by those who have yet to read it.
        """
        lost = self._best_unkept(specs)
        read: set[str] = set()
        for spec in reversed(specs):  # readers before what they read
            parts = needed_transfers(spec)
            if not parts and spec.settings.keep != "all":
                continue
            job = transfer_digest(spec)
            ran = self._ran(job)
            if ran and spec.settings.keep == "all" and (not ran.kept or (job in read and not ran.there)):
                lost.add(job)
            if ran is None or not ran.done or job in lost:
                read.update(map(transfer_digest, parts))
        return lost

    def _best_unkept(self, specs: Sequence[TransferSpec]) -> set[str]:
        """Digests of the transfers whose student keep = "best" would have kept of those that are done, but was not told.

        The rule is that of `worker.models.kept`: the highest accuracy, of equal ones the smallest digest.
        """
        best: dict[tuple[str, str, str], tuple[float, str]] = {}
        for spec in specs:
            job = transfer_digest(spec)
            if spec.settings.keep != "best" or not (ran := self._ran(job)) or not ran.done:
                continue
            if (accuracy := self._acc_after(job)) is not None:
                group = (spec.dataset, spec.student, spec.objective)
                best[group] = min(best.get(group, (0.0, "~")), (-accuracy, job))
        return {job for _, job in best.values() if (ran := self._ran(job)) and ran.keep == "none"}

    def _transfer(self, spec: TransferSpec, *, remake: bool) -> None:
        dataset, student = self._datasets[spec.dataset], self._models[spec.student]
        logits = needed_logits(spec, dataset=dataset, model=self._models.__getitem__)
        parts = [maker for part in needed_transfers(spec) for maker in self._makers(transfer_digest(part))]
        needs = [*parts, *(self._logits(one) for one in logits)]
        estimate_s = cost.transfer_s(student, dataset, spec.settings)
        training = shared_training(spec)
        if training is not None and (job := job_digest("shared", as_spec(training))) in self.jobs:
            needs, estimate_s = [job, *needs], cost.START_S
        teacher = self._models[spec.teachers[-1]]

        def add(kind: str, needs: list[str]) -> str:
            return self._add(kind, spec, needs=needs, estimate_s=estimate_s, teacher=teacher, student=student)

        job = add("soup" if spec.settings.multi_teacher == "soup" else "transfer", needs)
        if remake:
            self._remade[job] = add("remake", [job, *needs])

    def _makers(self, job: str) -> list[str]:
        """The jobs after which the weights are there that `job` makes."""
        return [job, self._remade[job]] if job in self._remade else [job]

    def _predictions(self, dataset: DatasetRecord, model: ModelRecord) -> str:
        return self._logits(LogitsSpec(dataset=dataset.key, model=model.key, split="val"))

    def _logits(self, spec: LogitsSpec) -> str:
        if spec in self._passes:
            return self._passes[spec]
        model, dataset = self._models[spec.model], self._datasets[spec.dataset]
        self._passes[spec] = self._add(
            "logits",
            spec,
            needs=self._makers(maker) if (maker := maker_of(model)) else [],
            estimate_s=cost.forward_s(model, dataset, spec.split, spec.loader),
            priority=EVALUATION_PRIORITY if spec.split == "val" else None,
            student=model,
        )
        return self._passes[spec]

    def _add(
        self,
        kind: str,
        spec: Record,
        **more: Any,
    ) -> str:
        """Plan a job, once; `more` as of `planned_job`. Returns its digest."""
        job = planned_job(kind, spec, **more)
        return self.jobs.setdefault(job.digest, job).digest

    def _add_others(self, models: Iterable[ModelRecord]) -> None:
        for model in models:
            self.others[model.key] = self._models[model.key] = model


def maker_of(model: ModelRecord) -> str | None:
    """Digest of the job that makes this model's weights, if one does."""
    return model.weights.removeprefix(TRAINED) if model.weights.startswith(TRAINED) else job_of_weights(model)
