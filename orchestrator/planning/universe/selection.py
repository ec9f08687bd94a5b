"""Filters over the catalogue."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeVar

from kt_study.errors import UnknownModelError, UsageError
from kt_study.nearest import nearest
from kt_study.records import ModelRecord
from orchestrator.planning.universe.families import FAMILIES
from orchestrator.planning.universe.table import CatalogueModel


@dataclass(frozen=True, kw_only=True)
class ModelTraits:
    """The fields that the filters use, of a model of a study file."""

    record: ModelRecord
    name: str
    architecture: str
    family: str
    license: str
    params: float | None
    gmacs: float | None
    top1: float | None
    trained_head: bool = True


Model = TypeVar("Model", CatalogueModel, ModelTraits)


def select(
    models: Sequence[Model],
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    families: Sequence[str] = (),
    licenses: Sequence[str] = (),
    params_min: float | None = None,
    params_max: float | None = None,
    top1_min: float | None = None,
    top1_max: float | None = None,
    gmacs_max: float | None = None,
    untrained_heads: bool = False,
) -> list[Model]:
    """The models that pass every filter, in their order. Every model passes an empty filter, except weights with an
    untrained head.

    Args:
        models: the catalogue, a part of it, or other models.
        include: case-sensitive globs over full names and over architectures; one match is enough.
        exclude: globs likewise; one match is enough to drop a model.
        families: of cnn, transformer, mlp, hybrid.
        licenses: globs over licences as timm states them, such as "apache-2.0" or "cc-by-*".
        params_min, params_max: millions of parameters, inclusive. A model without a count does not pass.
        top1_min, top1_max: published top-1 in %, inclusive. A model without a published one does not pass.
        gmacs_max: 1e9 multiply-accumulates, inclusive. A model without a count does not pass.
        untrained_heads: include tags whose 1,000 outputs were never trained (two, of ResMLP with DINO).

    Raises:
        UnknownModelError: an include glob that matches no model.
        UsageError: an unknown family, or no model passes.
    """
    for family in families:
        if family not in FAMILIES:
            raise UsageError(f"{family}: not a family{nearest(family, FAMILIES)} (there are {', '.join(FAMILIES)})")
    for glob in include:
        if not any(_matches(model, [glob]) for model in models):
            hint = nearest(glob, [model.name for model in models]) or "; correct or remove it"
            raise UnknownModelError(f"{glob}: this include pattern matches none of {len(models)} models{hint}")
    tests: list[tuple[str, Callable[[Model], bool]]] = [
        ("include", lambda m: not include or _matches(m, include)),
        ("exclude", lambda m: not _matches(m, exclude)),
        ("families", lambda m: not families or m.family in families),
        ("licenses", lambda m: not licenses or any(fnmatchcase(m.license, glob) for glob in licenses)),
        ("params", lambda m: _within(m.params, params_min, params_max)),
        ("top1", lambda m: _within(m.top1, top1_min, top1_max)),
        ("gmacs", lambda m: _within(m.gmacs, None, gmacs_max)),
        ("untrained_heads", lambda m: untrained_heads or m.trained_head),
    ]
    kept = list(models)
    for name, passes in tests:
        before = len(kept)
        kept = [model for model in kept if passes(model)]
        if before and not kept:
            raise UsageError(
                f"no model is left: the {name} filter excludes the last {before} of {len(models)}; widen it"
            )
    return kept


def _matches(model: CatalogueModel | ModelTraits, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(model.name, glob) or fnmatchcase(model.architecture, glob) for glob in globs)


def _within(value: float | None, low: float | None, high: float | None) -> bool:
    if low is None and high is None:
        return True
    return value is not None and (low is None or value >= low) and (high is None or value <= high)
