"""Training before the transfers: new last layers for another data set, or teachers from another domain."""

from __future__ import annotations

from collections.abc import Iterable

from kt_study.errors import DataError, UsageError
from kt_study.records import DatasetRecord, ModelRecord, Record, TrainSpec
from kt_study.study import FineTuningSection, StudyFile
from orchestrator.planning.layout import Layout
from orchestrator.planning.model_records import matching
from orchestrator.planning.record import Sources

_BATCH_SIZES = {"head": 256, "body": 64, "all": 64}

_RATES = {"head": 0.1, "body": 2.5e-3, "all": 1e-4}
"""Peak learning rates: of the last layer 0.1 at 256 samples per step; of all layers by SGD 0.01 at 256, a quarter at 64
(run_cub_pretrain.sh, run_infograph_pretrain.sh and main_pretrain.py of ExplainableML/FantasticGains, which scales rates
by batch/256); with AdamW our own choice."""


class Recipe(Record, frozen=True):
    """How a model is trained before its transfers."""

    scope: str  # head | body | all
    epochs: int
    batch_size: int
    lr: float
    weight_decay: float = 1e-4  # config/pretrain/pretrain.yaml of ExplainableML/FantasticGains
    augment: str = "crop_flip"

    def spec(self, start: ModelRecord, dataset: DatasetRecord, *, seed: int) -> TrainSpec:
        """The specification of the job that trains `start` on `dataset`."""
        fields = {name: getattr(self, name) for name in self.__struct_fields__}
        return TrainSpec(dataset=dataset.key, split="train", start=start.key, seed=seed, **fields)


def recipe_of(section: FineTuningSection) -> Recipe:
    """The recipe of [fine_tuning]; by default batch size and learning rate depend on the scope."""
    return Recipe(
        scope=section.scope,
        epochs=section.epochs,
        batch_size=section.batch_size or _BATCH_SIZES[section.scope],
        lr=section.lr or _RATES[section.scope],
        weight_decay=section.weight_decay,
        augment=section.augment,
    )


def fine_tuned(
    study: StudyFile, models: list[ModelRecord], dataset: DatasetRecord, layout: Layout, sources: Sources
) -> tuple[list[ModelRecord], list[DatasetRecord]]:
    """The study's models after [fine_tuning], and the data set on which they are trained if it is another one.

    Raises:
        UnknownModelError: a glob without a model.
        UsageError, DataError: scope `body` without [fine_tuning.dataset], or a data set without labelled training samples.
    """
    section = study.fine_tuning
    if section is None:
        return models, []
    if section.scope == "body" and section.dataset is None:
        raise UsageError(
            "[fine_tuning] scope = 'body' trains on another data set and puts the old last layer back: "
            "give [fine_tuning.dataset]"
        )
    source = sources.dataset(section.dataset, seed=study.study.seed) if section.dataset else dataset
    layout.add_records([source], models)
    selected = matching(models, section.models, where="[fine_tuning] models")
    trained = train_all(selected, recipe_of(section), source, layout, seed=study.study.seed)
    return [trained.get(model.key, model) for model in models], [] if source is dataset else [source]


def train_all(
    models: Iterable[ModelRecord], recipe: Recipe, dataset: DatasetRecord, layout: Layout, *, seed: int
) -> dict[str, ModelRecord]:
    """Lay out a training for each model. Returns the trained models by the keys of the untrained ones."""
    if dataset.kind == "predictions" or not dataset.has_labels("train") or not dataset.splits.get("train"):
        raise DataError(f"data set {dataset.name!r} has no labelled training samples to fine-tune on")
    trained = {}
    for model in models:
        _check_factory(model, recipe, dataset)
        trained[model.key] = layout.train(model, recipe.spec(model, dataset, seed=seed))
    return trained


def _check_factory(model: ModelRecord, recipe: Recipe, dataset: DatasetRecord) -> None:
    """Refuse a factory that cannot build the model with its new last layer. Raises UsageError."""
    new_classes = recipe.scope != "body" and model.num_classes != dataset.n_classes
    if model.factory and new_classes and "num_classes" not in model.arguments:
        raise UsageError(
            f"model {model.name!r}: its factory must take num_classes to get a last layer for {dataset.n_classes} "
            f"classes; add this parameter, and set arguments = {{ num_classes = {model.num_classes} }} in its [[model]] table"
        )
