"""A plan of one of the paper's presets: on the study file's data set, or on the paper's own sizes for a dry run."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from kt_study.errors import UsageError
from kt_study.multi_teacher import order_teachers
from kt_study.objectives import settings_for
from kt_study.records import DatasetRecord, ModelRecord, TransferSpec
from kt_study.settings import Settings
from kt_study.study import DatasetSection, StudyFile, StudySection, recorded
from orchestrator.planning.checks import check_classes, check_embeddings
from orchestrator.planning.fine_tuning import Recipe, train_all
from orchestrator.planning.from_study import compare
from orchestrator.planning.layout import Layout
from orchestrator.planning.model_records import from_catalogue, listed_models
from orchestrator.planning.presets import Arm, DatasetNeed, Preset, TransferPair
from orchestrator.planning.record import Plan, PlanOptions, Sources
from orchestrator.planning.transfers import common_settings
from orchestrator.planning.universe import resolve

NEAR = 0.1
"""Relative difference in training samples up to which a data set passes for the paper's."""

Models = dict[str, ModelRecord]
"""By the name that the preset uses."""


def preset_plan(preset: Preset, study: StudyFile, sources: Sources, wishes: PlanOptions) -> Plan:
    """Lay out a preset on the study file's data set: its own pairs and settings, what it leaves open from [transfer].

    A [[model]] table with the name of one of the preset's models replaces it, for weights that lie elsewhere.

    Raises:
        UsageError: a data set that the preset has no use for, or wishes that contradict the preset.
    """
    _check_wishes(preset, wishes)
    dataset = sources.dataset(study.dataset, seed=study.study.seed)
    check_embeddings(dataset)
    need = _need_met_by(preset, dataset)
    notes = _size_notes(preset, need, dataset)
    homes = {need.name: dataset}
    for step in preset.fine_tuning:
        if step.dataset not in {arm.dataset for arm in preset.arms}:
            homes[step.dataset] = _training_dataset(preset, step.dataset, study, sources)
    return _plan(preset, study, homes, sources, wishes, notes)


def nominal_plan(preset: Preset, sources: Sources, wishes: PlanOptions, *, why: str) -> Plan:
    """A preset on data sets of the sizes that the paper's have, without any data: for dry runs. `why` is noted."""
    _check_wishes(preset, wishes)
    homes = {need.name: _nominal(need) for need in preset.datasets}
    section = DatasetSection(kind=preset.datasets[0].kind)
    study = StudyFile(study=StudySection(name=preset.name), dataset=section)
    notes = [f"sizes are those of the paper's data sets: {why}"]
    return _plan(preset, study, homes, sources, wishes, notes)


def _plan(
    preset: Preset,
    study: StudyFile,
    homes: dict[str, DatasetRecord],
    sources: Sources,
    wishes: PlanOptions,
    notes: list[str],
) -> Plan:
    """`homes` are the data sets by the names of the preset's needs; an arm without its data set is left out."""
    arms = [arm for arm in preset.arms if arm.dataset in homes]
    layout = Layout(sources.ran, sources.acc_after)
    layout.know(homes.values(), [])
    plan = Plan(
        name=study.study.name,
        settings={**recorded(study), "preset": preset.name},
        datasets=list(homes.values()),
        models=[],
        notes=[*preset.notes, *notes],
    )
    for name in dict.fromkeys(arm.dataset for arm in arms):
        models = _models(preset, study, homes, name, layout, sources)
        check_classes(models.values(), homes[name])
        plan.models += [model for model in models.values() if model not in plan.models]
        common = common_settings(study.transfer, study.dataset, homes[name], sources)
        plan.runs += _runs([arm for arm in arms if arm.dataset == name], models, homes[name], common, study)
    if wishes.complementarity_pairs is not None:
        compare(plan, layout, study, wishes.complementarity_pairs)
    layout.transfers(plan.runs)
    plan.jobs, plan.others = layout.jobs, list(layout.others.values())
    return plan


def _models(
    preset: Preset,
    study: StudyFile,
    homes: dict[str, DatasetRecord],
    arm_dataset: str,
    layout: Layout,
    sources: Sources,
) -> Models:
    """The preset's models on one of its data sets, after the training that they need for it."""
    own = {record.name: record for record in listed_models(study, sources.folder, homes[arm_dataset], sources.digests)}
    names = {name for pair in preset.pairs() for name in (pair.student, *pair.teachers)}
    models = {name: own.get(name) or from_catalogue(resolve(name)) for name in sorted(names)}
    layout.know([], models.values())
    for step in preset.fine_tuning:
        if step.dataset == arm_dataset or step.scope == "body":
            recipe = Recipe(scope=step.scope, epochs=step.epochs, batch_size=step.batch_size, lr=step.lr)
            chosen = [models[name] for name in step.models]
            trained = train_all(chosen, recipe, homes[step.dataset], layout, seed=study.study.seed)
            models |= {name: trained[models[name].key] for name in step.models}
    return models


def _runs(
    arms: list[Arm], models: Models, dataset: DatasetRecord, common: dict[str, Any], study: StudyFile
) -> list[TransferSpec]:
    return list(
        dict.fromkeys(
            _run(arm, pair, point, models, dataset, common, seed=study.study.seed)
            for arm in arms
            for pair in arm.pairs
            for point in arm.points()
        )
    )


def _run(
    arm: Arm,
    pair: TransferPair,
    point: dict[str, Any],
    models: Models,
    dataset: DatasetRecord,
    common: dict[str, Any],
    *,
    seed: int,
) -> TransferSpec:
    settings = settings_for(arm.objective, {**common, **point})
    teachers = [models[name] for name in pair.teachers]
    if settings.multi_teacher == "sequential":
        teachers = order_teachers(teachers, order=settings.teacher_order)
    else:
        settings = replace(settings, teacher_order=Settings().teacher_order)
    return TransferSpec(
        dataset=dataset.key,
        student=models[pair.student].key,
        teachers=tuple(teacher.key for teacher in teachers),
        objective=arm.objective,
        settings=settings,
        seed=seed,
    )


def _check_wishes(preset: Preset, wishes: PlanOptions) -> None:
    asked = {
        "--pairs": wishes.pairs is not None,
        "--grid": bool(wishes.grid),
        "--controls": wishes.controls,
        "--seeds": wishes.seeds is not None,
    }
    for flag, given in asked.items():
        if given:
            raise UsageError(f"{flag} and --preset {preset.name}: a preset has its own pairs and settings; drop one")


def _need_met_by(preset: Preset, dataset: DatasetRecord) -> DatasetNeed:
    """Which of the data sets that the preset measures on this one is. Raises UsageError when it is none."""
    names = {arm.dataset for arm in preset.arms}
    needs = [need for need in preset.datasets if need.name in names]
    for need in needs:
        fits = need.kind == dataset.kind or (need.any_kind and dataset.kind != "predictions")
        if fits and need.classes == dataset.n_classes:
            return need
    wanted = " or ".join(f"{need.name} ({need.classes} classes, kind {need.kind!r})" for need in needs)
    raise UsageError(
        f"preset {preset.name} is about {wanted}; the study file's data set {dataset.name!r} of kind {dataset.kind!r} "
        f"has {dataset.n_classes} classes; name the right one in [dataset]"
    )


def _size_notes(preset: Preset, need: DatasetNeed, dataset: DatasetRecord) -> list[str]:
    n = dataset.splits.get("train", 0)
    if not n:
        raise UsageError(
            f"preset {preset.name}: data set {dataset.name!r} has no training samples; give [dataset] train"
        )
    if abs(n - need.train) <= NEAR * need.train:
        return []
    return [
        f"the paper's {need.name} has {need.train:,} training samples{_how(need)}, this data set {n:,}: other results "
        "than the paper's are to be expected"
    ]


def _how(need: DatasetNeed) -> str:
    return f" ({need.train // need.classes} a class: train_per_class)" if need.train_fraction < 1 else ""


def _training_dataset(preset: Preset, name: str, study: StudyFile, sources: Sources) -> DatasetRecord:
    """The data set that models are trained on before. Raises UsageError where the study file has none, or another."""
    need = next(need for need in preset.datasets if need.name == name)
    section = study.fine_tuning.dataset if study.fine_tuning else None
    if section is None:
        raise UsageError(
            f"preset {preset.name} first trains its teachers on {need.name}: add [fine_tuning.dataset] with "
            f"kind = {need.kind!r} and its path to the study file"
        )
    dataset = sources.dataset(section, seed=study.study.seed)
    if dataset.n_classes != need.classes:
        raise UsageError(
            f"preset {preset.name}: [fine_tuning.dataset] has {dataset.n_classes} classes, {need.name} {need.classes}; "
            "mend its path"
        )
    return dataset


def _nominal(need: DatasetNeed) -> DatasetRecord:
    return DatasetRecord(
        key=f"nominal:{need.name}",
        name=need.name,
        kind=need.kind,
        n_classes=need.classes,
        splits={"train": need.train, "val": need.val},
    )
