"""Resolves a model name to its weights tag."""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache

from kt_study.errors import UnknownModelError
from orchestrator.planning.universe.table import TIMM_VERSION, CatalogueModel, aliases, by_name, catalogue


def resolve(name: str) -> CatalogueModel:
    """The model that `name` stands for.

    * `architecture.tag` is that model.
    * A bare architecture is timm's default tag for it, or its first ImageNet-1k tag if the default has other classes;
      `note` reports it.
    * A deprecated timm name is its former weights, even if timm's alias is another model: timm maps ig_resnext101_32x16d
      (194.0 M parameters) to the weights of 32x8d (88.8 M).

    Raises:
        UnknownModelError: no such name, with the nearest ones; or weights that timm no longer provides.
    """
    if name in by_name():
        return by_name()[name]
    if name in _defaults():
        return _defaults()[name]
    if name in aliases():
        return _from_alias(name)
    raise UnknownModelError(_unknown(name))


def note(name: str) -> str:
    """One line on the model that `name` stands for; empty for a full name.

    Raises:
        UnknownModelError: as `resolve`.
    """
    model = resolve(name)
    if name == model.name:
        return ""
    if name == model.architecture:
        return f"{name}: read as {model.name}; write the full name to select one of {len(_tags_of(name))} tag(s)"
    timm_alias = aliases()[name][1]
    if timm_alias == model.name:
        return f"{name}: deprecated, read as {model.name}"
    return f"{name}: deprecated, read as {model.name} by its weights (timm {TIMM_VERSION} would load {timm_alias})"


def _from_alias(name: str) -> CatalogueModel:
    weights_of, timm_alias = aliases()[name]
    if not weights_of:
        raise UnknownModelError(
            f"{name}: timm {TIMM_VERSION} no longer carries these weights (its alias leads to {timm_alias}); "
            "name another model"
        )
    return by_name()[weights_of]


def _unknown(name: str) -> str:
    architecture = name.split(".", 1)[0]
    tags = _tags_of(architecture)
    if tags:
        return f"{name}: {architecture} has no such ImageNet-1k tag in timm {TIMM_VERSION}; it has {', '.join(tags)}"
    known = [*by_name(), *_defaults(), *aliases()]
    nearest = get_close_matches(name, known, n=3, cutoff=0.5)
    advice = f"did you mean {', '.join(nearest)}?" if nearest else "see timm.list_models(pretrained=True)"
    return f"{name}: not among the {len(catalogue())} ImageNet-1k tags of timm {TIMM_VERSION}; {advice}"


def _tags_of(architecture: str) -> list[str]:
    return [model.tag for model in catalogue() if model.architecture == architecture]


@cache
def _defaults() -> dict[str, CatalogueModel]:
    return {model.architecture: model for model in catalogue() if model.is_default}
