"""The models that a study can sample: every ImageNet-1k weights tag of timm, offline."""

from __future__ import annotations

from orchestrator.planning.universe.families import FAMILIES, family_of
from orchestrator.planning.universe.resolution import note, resolve
from orchestrator.planning.universe.selection import ModelTraits, select
from orchestrator.planning.universe.table import TIMM_VERSION, CatalogueModel, catalogue

__all__ = [
    "FAMILIES",
    "TIMM_VERSION",
    "CatalogueModel",
    "ModelTraits",
    "catalogue",
    "family_of",
    "note",
    "resolve",
    "select",
]
