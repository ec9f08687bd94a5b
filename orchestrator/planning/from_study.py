"""A plan from a study file alone. The same file and seed give the same pairs and the same rows."""

from __future__ import annotations

from collections.abc import Iterator

from kt_study.errors import UsageError
from kt_study.records import DatasetRecord, ModelRecord
from kt_study.study import StudyFile, recorded
from orchestrator.planning import universe
from orchestrator.planning.checks import check_classes, check_embeddings, check_models, check_names
from orchestrator.planning.digits_zoo import digits_zoo
from orchestrator.planning.fine_tuning import fine_tuned
from orchestrator.planning.hub_models import is_described
from orchestrator.planning.layout import Layout, maker_of
from orchestrator.planning.model_records import listed_models, narrowed, predicted_models, study_models
from orchestrator.planning.record import Pair, Plan, PlanOptions, Sources
from orchestrator.planning.sampling import sample_pairs
from orchestrator.planning.transfers import StudyTransfers

PAPER_PAIRS, PAPER_MODELS = 466, 301
"""Section 3: 466 pairs of 301 models."""


def make_plan(study: StudyFile, sources: Sources, options: PlanOptions | None = None) -> Plan:
    """Sample the pairs and lay out every job. Reads the data set's folders; needs no torch and no network.

    Raises:
        UsageError: data, models, pairs or settings that do not exist or are incompatible.
    """
    options = options or PlanOptions()
    dataset = sources.dataset(study.dataset, seed=study.study.seed)
    check_embeddings(dataset)
    layout = Layout(sources.recorded, sources.acc_after)
    layout.add_records([dataset], [])
    models = _models(study, dataset, layout, sources)
    check_models(models)
    models, other_datasets = fine_tuned(study, models, dataset, layout, sources)
    check_classes(models, dataset)
    layout.add_records([], models)
    plan = Plan(
        name=study.study.name,
        settings=recorded(study),
        datasets=[dataset, *other_datasets],
        models=models,
        notes=list(_notes(study, dataset)),
    )
    compare(plan, layout, study, options.complementarity_pairs)
    transfers = StudyTransfers(study, dataset, models, options, sources)
    plan.runs = transfers.runs()
    plan.notes += transfers.notes
    layout.transfers(plan.runs)
    plan.jobs, plan.others = layout.jobs, list(layout.others.values())
    return plan


def compare(plan: Plan, layout: Layout, study: StudyFile, requested: int | str | None) -> None:
    """Add the complementarity jobs: `requested` pairs, else those of the study file, else the paper's 466.

    Raises:
        PairsError: impossible numbers, with the bounds.
    """
    pairs = requested if requested is not None else study.complementarity.pairs
    dataset, similarity = plan.datasets[0], study.dataset.class_similarity
    if pairs == "all":
        plan.all_pairs = True
        layout.all_pairs(dataset, plan.models, similarity=similarity)
        return
    by_name = {model.name: model for model in plan.models}
    plan.complementarity_pairs = _complementarity_pairs(study, list(by_name), pairs)
    for teacher, student in plan.complementarity_pairs:
        layout.complementarity(dataset, by_name[teacher], by_name[student], similarity=similarity)


def _models(study: StudyFile, dataset: DatasetRecord, layout: Layout, sources: Sources) -> list[ModelRecord]:
    if dataset.kind == "predictions":
        if study.model or study.models.universe != "listed":
            raise UsageError(
                "[dataset] kind = 'predictions' has its own models, one per file: remove [models] universe and the "
                "[[model]] tables; include and exclude select among the files"
            )
        return predicted_models(study, dataset)
    if study.models.universe == "digits-zoo":
        if dataset.kind != "digits":
            raise UsageError(f"[models] universe = 'digits-zoo' needs [dataset] kind = 'digits', not {dataset.kind!r}")
        zoo = _digits_zoo(study, dataset, layout)
        own = listed_models(study, sources.folder, dataset, sources.digests)
        check_names(zoo, own)
        return zoo + own
    return study_models(study, sources.folder, dataset, sources.digests)


def _digits_zoo(study: StudyFile, dataset: DatasetRecord, layout: Layout) -> list[ModelRecord]:
    """The models of the zoo that pass the filters of [models]; the others are not trained."""
    zoo, untrained, training = digits_zoo(dataset, seed=study.study.seed)
    models = narrowed(zoo, study.models)
    makers = {maker_of(model) for model in models}
    needed = [job for job in training if job.digest in makers]
    starts = {job.student for job in needed}
    layout.add_jobs(needed, [model for model in untrained if model.key in starts])
    return models


def _complementarity_pairs(study: StudyFile, names: list[str], pairs: int | str | None) -> list[Pair]:
    most = len(names) * (len(names) - 1)
    n_pairs = min(PAPER_PAIRS, most) if pairs is None else int(pairs)
    if not n_pairs:
        return []
    n_models = study.complementarity.models or min(PAPER_MODELS, len(names), 2 * n_pairs)
    return sample_pairs(names, n_pairs=n_pairs, n_models=n_models, seed=study.study.seed)


def _notes(study: StudyFile, dataset: DatasetRecord) -> Iterator[str]:
    """Notes on the models that timm names stand for and that filters leave out, and on a data set without labels."""
    named = [table.timm for table in study.model if table.timm and not (table.checkpoint or table.random_weights)]
    yield from (note for name in named if not is_described(name) and (note := universe.note(name)))
    section = study.models
    if section.universe == "timm":
        catalogue = universe.catalogue()
        names = {model.name for model in catalogue}
        yield from (f"[[model]] {t.name!r} replaces timm's model of that name" for t in study.model if t.name in names)
        if section.top1_min is not None or section.top1_max is not None:
            known = sum(model.top1 is not None for model in catalogue)
            yield (
                f"timm publishes a top-1 for {known:,} of its {len(catalogue):,} models: top1_min and top1_max exclude all "
                "others"
            )
    if not dataset.has_labels("val"):
        yield (
            f"data set {dataset.name!r} has no labels: accuracies, flips, gain and loss are empty; measured are the models' "
            "agreement, the entropy of their predictions, and the predictions that a transfer changes"
        )
