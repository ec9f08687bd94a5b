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
"""Estimated seconds to compare the cached predictions of two models."""


class Layout:
    """Lays out the jobs of a plan.

    `jobs` are by digest, each after those that it needs. `others` are models of the jobs that are not in the plan: untrained
    models, and the students between the stages of a sequence.

    Args:
        recorded: looks up a transfer by its digest. The student of one that is done is reproduced for jobs that read it.
        acc_after: the accuracy in % after a transfer that is done, by digest; for keep = "best".
    """

    def __init__(
        self,
        recorded: Callable[[str], RecordedTransfer | None],
        acc_after: Callable[[str], float | None],
    ) -> None:
        self.jobs: dict[str, PlannedJob] = {}
        self.others: dict[str, ModelRecord] = {}
        self._datasets: dict[str, DatasetRecord] = {}
        self._models: dict[str, ModelRecord] = {}
        self._recorded = recorded
        self._acc_after = acc_after
        self._remade: dict[str, str] = {}  # digest of a transfer -> digest of the job that reproduces its student
        self._passes: dict[LogitsSpec, str] = {}  # digests; thousands of transfers share a few passes

    def add_records(self, datasets: Iterable[DatasetRecord], models: Iterable[ModelRecord]) -> None:
        """Add data sets and models that specifications may name."""
        self._datasets.update((dataset.key, dataset) for dataset in datasets)
        self._models.update((model.key, model) for model in models)

    def add_jobs(self, jobs: Iterable[PlannedJob], others: Iterable[ModelRecord]) -> None:
        """Add jobs that were created elsewhere, and the models that they name."""
        self.jobs.update((job.digest, job) for job in jobs)
        self._add_others(others)

    def train(self, start: ModelRecord, spec: TrainSpec) -> ModelRecord:
        """Lay out one training. Returns the trained model."""
        dataset = self._datasets[spec.dataset]
        needs = [maker] if (maker := maker_of(start)) else []
        job = self._add("train", spec, needs=needs, estimate_s=cost.train_s(start, dataset, spec), student=start)
        self._add_others([start])
        trained = trained_record(start, spec, job, dataset)
        self._models[trained.key] = trained
        return trained

    def complementarity(
        self, dataset: DatasetRecord, teacher: ModelRecord, student: ModelRecord, *, similarity: str
    ) -> None:
        """Lay out one pair, and the predictions it needs; `similarity` is the measure of the similarity of classes."""
        spec = ComplementaritySpec(
            dataset=dataset.key, teacher=teacher.key, student=student.key, class_similarity=similarity
        )
        needs = [self._predictions(dataset, model) for model in (teacher, student)]
        self._add("complementarity", spec, needs=needs, estimate_s=_COMPARE_S, teacher=teacher, student=student)

    def all_pairs(self, dataset: DatasetRecord, models: Sequence[ModelRecord], *, similarity: str) -> None:
        """Lay out one job for every ordered pair, and the predictions it needs; `similarity` as for one pair."""
        keys = tuple(sorted(model.key for model in models))
        spec = AllPairsSpec(dataset=dataset.key, models=keys, class_similarity=similarity)
        needs = [self._predictions(dataset, model) for model in models]
        self._add("all_pairs", spec, needs=needs, estimate_s=cost.all_pairs_s(len(models), dataset))

    def transfers(self, runs: Iterable[TransferSpec]) -> None:
        """Lay out every run with its stages or parts. Shared parts are planned once, and kept if one of the runs reads them."""
        specs = merge_kept(spec for run in runs for spec in self._parts(run))
        self._share_trainings(specs)
        without_student = self._without_student(specs)
        for spec in specs:
            self._transfer(spec, remake=transfer_digest(spec) in without_student)

    def _share_trainings(self, specs: Sequence[TransferSpec]) -> None:
        """Lay out the trainings that open transfers share. A shared student is kept if one of the transfers keeps it."""
        open_specs = [spec for spec in specs if self._recorded(transfer_digest(spec)) is None]
        for spec in merge_kept(shared for spec in open_specs if (shared := shared_training(spec)) is not None):
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

    def _without_student(self, specs: Sequence[TransferSpec]) -> set[str]:
        """Digests of the transfers that are done, or running, without a student that is needed.

        A student that was kept and deleted since is needed only by jobs that have yet to read it.
        """
        missing = self._best_unkept(specs)
        read: set[str] = set()
        for spec in reversed(specs):  # readers before the parts that they read
            parts = needed_transfers(spec)
            if not parts and spec.settings.keep != "all":
                continue
            job = transfer_digest(spec)
            recorded = self._recorded(job)
            if recorded and spec.settings.keep == "all" and (not recorded.kept or (job in read and not recorded.there)):
                missing.add(job)
            if recorded is None or not recorded.done or job in missing:
                read.update(map(transfer_digest, parts))
        return missing

    def _best_unkept(self, specs: Sequence[TransferSpec]) -> set[str]:
        """Digests of the done transfers whose student keep = "best" keeps, but that were run with keep = "none".

        The rule is that of `worker.models.kept`: the highest accuracy, of equal ones the smallest digest.
        """
        best: dict[tuple[str, str, str], tuple[float, str]] = {}
        for spec in specs:
            job = transfer_digest(spec)
            if spec.settings.keep != "best" or not (recorded := self._recorded(job)) or not recorded.done:
                continue
            if (accuracy := self._acc_after(job)) is not None:
                group = (spec.dataset, spec.student, spec.objective)
                best[group] = min(best.get(group, (0.0, "~")), (-accuracy, job))
        return {job for _, job in best.values() if (recorded := self._recorded(job)) and recorded.keep == "none"}

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
        """The jobs after which the weights of `job` exist."""
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

    def _add(self, kind: str, spec: Record, **more: Any) -> str:
        """Add a job, once; `more` as of `planned_job`. Returns its digest."""
        job = planned_job(kind, spec, **more)
        return self.jobs.setdefault(job.digest, job).digest

    def _add_others(self, models: Iterable[ModelRecord]) -> None:
        for model in models:
            self.others[model.key] = self._models[model.key] = model


def maker_of(model: ModelRecord) -> str | None:
    """Digest of the job that makes this model's weights, if any."""
    return model.weights.removeprefix(TRAINED) if model.weights.startswith(TRAINED) else job_of_weights(model)
