"""The paper's own studies, ready to plan: `kt-study plan --preset NAME`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from kt_study.errors import UsageError
from kt_study.nearest import nearest
from orchestrator.planning.presets import (
    paper_10pct,
    paper_contrastive,
    paper_datasets,
    paper_domain_shift,
    paper_full,
    paper_hyperparameters,
    paper_multi,
)
from orchestrator.planning.presets.record import Arm, DatasetNeed, FineTuning, Preset, Search, Setting, TransferPair

__all__ = [
    "Arm",
    "DatasetNeed",
    "FineTuning",
    "Preset",
    "Search",
    "Setting",
    "TransferPair",
    "preset",
    "presets",
]

_BUILDERS: dict[str, Callable[[], Preset]] = {
    "paper-10pct": paper_10pct.build,
    "paper-full": paper_full.build,
    "paper-multi": paper_multi.build,
    "paper-contrastive": paper_contrastive.build,
    "paper-hyperparameters": paper_hyperparameters.build,
    "paper-datasets": paper_datasets.build,
    "paper-domain-shift": paper_domain_shift.build,
}


def presets() -> tuple[str, ...]:
    """Names of the presets."""
    return tuple(_BUILDERS)


@cache
def preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        UsageError: no such preset.
    """
    if name not in _BUILDERS:
        raise UsageError(f"{name}: no such preset{nearest(name, _BUILDERS)} (there are {', '.join(_BUILDERS)})")
    return _BUILDERS[name]()
