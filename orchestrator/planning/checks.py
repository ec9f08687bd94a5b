"""Consistency checks before anything is planned."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from kt_study.errors import DataError, PairsError, UsageError
from kt_study.records import DatasetRecord, ModelRecord
from orchestrator.terminal.plural import counted


def check_models(models: Sequence[ModelRecord]) -> None:
    """Refuse fewer than two models, and one model under two names.

    Raises:
        PairsError, UsageError.
    """
    if len(models) < 2:
        raise PairsError(
            f"the study has {counted(len(models), 'model')} and a pair needs 2; widen [models] or add [[model]] tables"
        )
    names: dict[str, str] = {}
    for model in models:
        if (first := names.setdefault(model.key, model.name)) != model.name:
            raise UsageError(
                f"models {first!r} and {model.name!r} have the same architecture, weights and preprocessing; remove one"
            )


def check_names(zoo: Iterable[ModelRecord], own: Iterable[ModelRecord]) -> None:
    """Refuse a [[model]] table with the name of a model of the zoo, since results name models. Raises UsageError."""
    for name in sorted({model.name for model in zoo} & {model.name for model in own}):
        raise UsageError(f"[[model]] {name!r} has the name of a model of the zoo; rename it")


_OTHER_CLASSES = (
    "leave it out, name class folders by ImageNet's synsets, or give it a new last layer with [fine_tuning]"
)


def numbered_by_imagenet(dataset: DatasetRecord) -> str:
    """What to set for a model or matrix of as many classes as there are folders, where these are some of ImageNet's;
    else empty."""
    if dataset.class_index != "imagenet" or not dataset.classes_present:
        return ""
    return (
        f"the {dataset.classes_present} class folders are numbered as ImageNet's {dataset.n_classes:,} classes: for "
        f'{dataset.classes_present} classes, set [dataset] classes = "sorted"'
    )


def check_classes(models: Iterable[ModelRecord], dataset: DatasetRecord) -> None:
    """Refuse a model with another number of outputs than the data set has classes or, without labels, than the first model.

    Raises:
        UsageError.
    """
    models = list(models)
    if not dataset.n_classes:
        _check_same_outputs(models, dataset)
        return
    for model in models:
        if model.num_classes != dataset.n_classes:
            raise UsageError(
                f"model {model.name!r} has {model.num_classes} outputs, data set {dataset.name!r} {dataset.n_classes} "
                f"classes; {numbered_by_imagenet(dataset) or _OTHER_CLASSES}"
            )


def _check_same_outputs(models: Sequence[ModelRecord], dataset: DatasetRecord) -> None:
    for model in models[1:]:
        if model.num_classes != models[0].num_classes:
            raise UsageError(
                f"model {model.name!r} has {model.num_classes} outputs, {models[0].name!r} {models[0].num_classes}: on "
                f"data set {dataset.name!r}, which has no labels, all must have the same classes; remove one"
            )


def check_embeddings(dataset: DatasetRecord) -> None:
    """Check the user's class embeddings, if any, before jobs need them. Raises DataError."""
    if "class_embeddings" not in dataset.location:
        return
    import numpy as np

    path = Path(dataset.location["class_embeddings"])
    try:
        shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not a matrix in .npy format; fix [dataset] class_embeddings") from error
    if len(shape) != 2 or shape[0] != dataset.n_classes:
        needed = numbered_by_imagenet(dataset) or "class_embeddings need one row per class"
        raise DataError(
            f"{path}: has shape {list(shape)}, and data set {dataset.name!r} {dataset.n_classes} classes; {needed}"
        )


def check_can_transfer(dataset: DatasetRecord) -> str:
    """The reason why no knowledge can be transferred on a data set; empty if it can."""
    if dataset.kind == "predictions":
        return "predictions made elsewhere have no models to train"
    if not dataset.splits.get("train"):
        return f"data set {dataset.name!r} has no training samples (give [dataset] train)"
    return ""
