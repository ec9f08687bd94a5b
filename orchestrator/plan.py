"""plan: from a study file to rows of work. The same file and seed give the same pairs and the same rows."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from kt_study.errors import PairsError, UsageError
from kt_study.hashing import hash64, job_digest
from kt_study.multi_teacher import (
    intermediate_students,
    job_of_weights,
    multi_teacher_specs,
    needed_transfers,
    order_teachers,
)
from kt_study.objectives import needed_logits, settings_for
from kt_study.paths import StudyPaths
from kt_study.study import StudyFile, said_settings
from kt_study.words import (
    AllPairsSpec,
    ComplementaritySpec,
    DatasetRecord,
    LogitsSpec,
    ModelRecord,
    PlannedJob,
    Settings,
    TransferSpec,
    as_spec,
)
from orchestrator import cost
from orchestrator.digits_zoo import digits_zoo
from orchestrator.model_records import matching, study_models
from orchestrator.sampling import sample_pairs, sample_transfer_pairs

if TYPE_CHECKING:
    from kt_study.store import JobStore, Planned

Pair = tuple[str, str]  # teacher, student: names

PAPER_PAIRS, PAPER_MODELS, PAPER_TRANSFERS = 466, 301, 400
"""Section 3: 466 pairs of 301 models; Section 5.1: 400 pairs for each objective."""

_PRIORITY = {"logits_val": 20, "complementarity": 15, "logits_train": 10, "all_pairs": 5, "transfer": 0, "soup": 0}


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What the command line asks for beside the study file; None leaves the file's word."""

    pairs: int | None = None
    complementarity_pairs: int | str | None = None
    grid: dict[str, tuple[Any, ...]] = field(default_factory=dict)


@dataclass(kw_only=True)
class Plan:
    """All that `plan` found out. `jobs` is in an order in which every job comes after those that it needs."""

    study: StudyFile
    dataset: DatasetRecord
    models: list[ModelRecord]
    untrained: list[ModelRecord]
    complementarity_pairs: list[Pair]
    all_pairs: bool
    transfer_pairs: list[Pair]
    objectives: tuple[str, ...]
    jobs: dict[str, PlannedJob] = field(default_factory=dict)  # by digest, in order
    notes: list[str] = field(default_factory=list)

    def by_kind(self) -> Counter[str]:
        """Jobs of each kind."""
        return Counter(job.kind for job in self.jobs.values())


def make_plan(study: StudyFile, *, folder: Path, paths: StudyPaths, wishes: Wishes | None = None) -> Plan:
    """Sample the pairs and lay out every job. Reads the data set's folders; needs no torch and no network.

    Args:
        study: the study file.
        folder: the study file's folder, from which relative paths count.
        paths: where the data set's index is kept; a scratch folder for a dry run.
        wishes: the command line's.

    Raises:
        UsageError: data, models, pairs or settings that do not exist or do not go together.
    """
    from kt_study.datasets import prepare

    wishes = wishes or Wishes()
    dataset = prepare(study.dataset, seed=study.study.seed, folder=folder, paths=paths)
    plan = _sampled(study, folder, dataset, wishes)
    for name, model in _with_other_classes(plan):
        raise UsageError(
            f"model {name!r} has {model.num_classes} outputs, data set {dataset.name!r} {dataset.n_classes} classes; "
            "leave it out, or name the data set's classes by ImageNet's synsets"
        )
    _lay_out(plan, paths, wishes)
    return plan


def write_plan(plan: Plan, store: JobStore) -> Planned:
    """Put the plan into the job table. A second time adds nothing. Raises DatabaseError."""
    name = plan.study.study.name
    store.add_study(name, msgspec.to_builtins(plan.study))
    store.add_datasets([plan.dataset])
    store.add_models([*plan.models, *plan.untrained])
    return store.plan(name, plan.jobs.values())


def _sampled(study: StudyFile, folder: Path, dataset: DatasetRecord, wishes: Wishes) -> Plan:
    untrained: list[ModelRecord] = []
    training: list[PlannedJob] = []
    if study.models.universe == "digits-zoo":
        models, untrained, training = digits_zoo(dataset, seed=study.study.seed)
    else:
        models = study_models(study, folder, dataset)
    if len(models) < 2:
        raise PairsError(
            f"the study has {len(models)} models and a pair needs 2; widen [models] or add [[model]] tables"
        )
    wanted = wishes.complementarity_pairs if wishes.complementarity_pairs is not None else study.complementarity.pairs
    plan = Plan(
        study=study,
        dataset=dataset,
        models=models,
        untrained=untrained,
        complementarity_pairs=[] if wanted == "all" else _complementarity_pairs(study, models, wanted),
        all_pairs=wanted == "all",
        transfer_pairs=_transfer_pairs(study, models, wishes),
        objectives=tuple(study.transfer.objectives),
    )
    plan.jobs.update((job.digest, job) for job in training)
    return plan


def _complementarity_pairs(study: StudyFile, models: list[ModelRecord], wanted: int | str | None) -> list[Pair]:
    most = len(models) * (len(models) - 1)
    n_pairs = min(PAPER_PAIRS, most) if wanted is None else int(wanted)
    if not n_pairs:
        return []
    n_models = study.complementarity.models or min(PAPER_MODELS, len(models), 2 * n_pairs)
    names = [model.name for model in models]
    return sample_pairs(names, n_pairs=n_pairs, n_models=n_models, seed=study.study.seed)


def _transfer_pairs(study: StudyFile, models: list[ModelRecord], wishes: Wishes) -> list[Pair]:
    students = [model.name for model in matching(models, study.transfer.students, role="students")]
    teachers = [model.name for model in matching(models, study.transfer.teachers, role="teachers")]
    most = len(students) * len(teachers) - len(set(students) & set(teachers))
    wanted = wishes.pairs if wishes.pairs is not None else study.transfer.pairs
    n_pairs = min(PAPER_TRANSFERS, most) if wanted is None else wanted
    return sample_transfer_pairs(students, teachers, n_pairs, seed=study.study.seed) if n_pairs else []


def _with_other_classes(plan: Plan) -> Iterable[tuple[str, ModelRecord]]:
    return ((model.name, model) for model in plan.models if model.num_classes != plan.dataset.n_classes)


def _lay_out(plan: Plan, paths: StudyPaths, wishes: Wishes) -> None:
    by_name = {model.name: model for model in plan.models}
    layout = _Layout(plan)
    for teacher, student in plan.complementarity_pairs:
        layout.complementarity(by_name[teacher], by_name[student])
    if plan.all_pairs:
        layout.all_pairs(plan.models)
    loader = _loader(plan, paths)
    for objective in plan.objectives:
        for settings in _settings(plan.study, objective, loader, wishes):
            for teacher, student in plan.transfer_pairs:
                layout.transfer([by_name[teacher]], by_name[student], objective, settings)
            for mode in plan.study.transfer.multi_teacher:
                for students, teachers in _teams(plan):
                    layout.multi_teacher(mode, teachers, students, objective, settings)


def _settings(study: StudyFile, objective: str, loader: str, wishes: Wishes) -> list[Settings]:
    """The settings of one objective: its own defaults, under the study file's words, under each point of the grid."""
    points: list[dict[str, Any]] = [{"loader": loader, "crop_pct": study.dataset.crop_pct}]
    for name, values in wishes.grid.items():
        points = [{**point, name: value} for point in points for value in values]
    return [settings_for(objective, {**said_settings(study.transfer), **point}) for point in points]


def _loader(plan: Plan, paths: StudyPaths) -> str:
    """`auto` is ffcv once `kt-study data prepare` has written the training split for it, else torch."""
    wanted = plan.study.transfer.loader
    if wanted != "auto":
        return wanted
    prepared = paths.beton(plan.dataset.key, "train").exists() and importlib.util.find_spec("ffcv")
    return "ffcv" if prepared else "torch"


def _teams(plan: Plan) -> Iterable[tuple[ModelRecord, list[ModelRecord]]]:
    """For each student of the study, its team of teachers: a draw without replacement, by a hash of the names."""
    section, seed = plan.study.transfer, plan.study.study.seed
    teachers = matching(plan.models, section.teachers, role="teachers")
    for student in matching(plan.models, section.students, role="students"):
        others = [teacher for teacher in teachers if teacher.key != student.key]
        if len(others) < section.teachers_per_student:
            raise PairsError(
                f"[transfer] teachers_per_student = {section.teachers_per_student}, but {student.name!r} has only "
                f"{len(others)} teachers; lower it or widen teachers"
            )
        others.sort(key=lambda teacher: hash64("team", seed, student.name, teacher.name))
        yield student, others[: section.teachers_per_student]


class _Layout:
    """Adds jobs to a plan, each once, after those that it needs."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._models = {model.key: model for model in plan.models}
        self._dataset = plan.dataset
        self._seed = plan.study.study.seed

    def complementarity(self, teacher: ModelRecord, student: ModelRecord) -> None:
        """One pair, and the predictions it needs."""
        spec = ComplementaritySpec(dataset=self._dataset.key, teacher=teacher.key, student=student.key)
        needs = [self.logits(self._val(model)) for model in (teacher, student)]
        self._add("complementarity", as_spec(spec), needs=needs, estimate_s=0.5, teacher=teacher, student=student)

    def all_pairs(self, models: Sequence[ModelRecord]) -> None:
        """Every ordered pair as one job, and the predictions it needs."""
        spec = AllPairsSpec(dataset=self._dataset.key, models=tuple(sorted(model.key for model in models)))
        needs = [self.logits(self._val(model)) for model in models]
        self._add("all_pairs", as_spec(spec), needs=needs, estimate_s=cost.all_pairs_s(len(models), self._dataset))

    def transfer(
        self, teachers: Sequence[ModelRecord], student: ModelRecord, objective: str, settings: Settings
    ) -> None:
        """One transfer, and the logits it needs."""
        self._transfer(
            TransferSpec(
                dataset=self._dataset.key,
                student=student.key,
                teachers=tuple(teacher.key for teacher in teachers),
                objective=objective,
                settings=settings,
                seed=self._seed,
            )
        )

    def multi_teacher(
        self,
        mode: str,
        teachers: Sequence[ModelRecord],
        student: ModelRecord,
        objective: str,
        settings: Settings,
    ) -> None:
        """One run of several teachers: its stages or its parts, each shared with whoever planned it before."""
        order = self._plan.study.transfer.teacher_order
        in_order = order_teachers(teachers, order=order) if mode == "sequential" else list(teachers)
        run = TransferSpec(
            dataset=self._dataset.key,
            student=student.key,
            teachers=tuple(teacher.key for teacher in in_order),
            objective=objective,
            settings=msgspec.structs.replace(settings, teacher_order=order),
            seed=self._seed,
        )
        specs = multi_teacher_specs(run, mode)
        between = intermediate_students(student, specs)
        self._models.update((model.key, model) for model in between)
        self._plan.untrained.extend(between)
        for spec in specs:
            self._transfer(spec)

    def _transfer(self, spec: TransferSpec) -> str:
        kind = "soup" if spec.settings.multi_teacher == "soup" else "transfer"
        student = self._models[spec.student]
        logits = needed_logits(spec, dataset=self._dataset, model=self._models.__getitem__)
        parts = [job_digest("transfer", as_spec(part)) for part in needed_transfers(spec)]
        return self._add(
            kind,
            as_spec(spec),
            needs=[*parts, *(self.logits(one) for one in logits)],
            estimate_s=cost.transfer_s(student, self._dataset, spec.settings),
            teacher=self._models[spec.teachers[-1]],
            student=student,
        )

    def logits(self, spec: LogitsSpec) -> str:
        model = self._models[spec.model]
        kind = "logits_val" if spec.split == "val" else "logits_train"
        needs = [job] if (job := _maker(model)) else []
        return self._add(
            "logits",
            as_spec(spec),
            needs=needs,
            estimate_s=cost.forward_s(model, self._dataset.splits.get(spec.split, 0)),
            priority=_PRIORITY[kind],
            student=model,
        )

    def _val(self, model: ModelRecord) -> LogitsSpec:
        return LogitsSpec(dataset=self._dataset.key, model=model.key, split="val")

    def _add(
        self,
        kind: str,
        spec: dict[str, Any],
        *,
        needs: Iterable[str],
        estimate_s: float,
        priority: int | None = None,
        teacher: ModelRecord | None = None,
        student: ModelRecord | None = None,
    ) -> str:
        digest = job_digest(kind, spec)
        if digest not in self._plan.jobs:
            self._plan.jobs[digest] = PlannedJob(
                kind=kind,
                spec=spec,
                digest=digest,
                needs=tuple(dict.fromkeys(needs)),
                priority=_PRIORITY[kind] if priority is None else priority,
                estimate_s=round(estimate_s, 3),
                teacher=teacher.key if teacher else None,
                student=student.key if student else None,
            )
        return digest


def _maker(model: ModelRecord) -> str | None:
    """Digest of the job that makes this model's weights, if one does."""
    return model.weights.removeprefix("train:") if model.weights.startswith("train:") else job_of_weights(model)
