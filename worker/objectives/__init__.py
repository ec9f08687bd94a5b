"""The transfer objectives: the loss of a batch. Each is a module of its name with one class of `Objective`.

An objective turns a `Batch` into one loss per sample. The partition (`worker.objectives.partition`) determines before training
which source's logits are the target of a sample. All other facts of an objective are in its record in `kt_study.objectives`.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

from kt_study.objectives import ObjectiveFacts, facts_of
from kt_study.settings import SETTINGS, Settings
from worker.objectives.base import Batch, Objective, Setup

__all__ = ["Batch", "Objective", "Setup", "build_objective", "objective_class"]


def objective_class(name: str) -> type[Objective]:
    """The class of the module of that name. Raises UsageError for an objective that does not exist."""
    module = importlib.import_module(f"{__name__}.{facts_of(name).name}")
    (found,) = [
        kind
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, Objective) and kind.__module__ == module.__name__
    ]
    return found


def build_objective(name: str, setup: Setup) -> Objective:
    """The objective of that name, ready to be moved to a device. Raises UsageError for one that does not exist."""
    readable = _ReadableSettings(facts_of(name), setup.settings)
    return objective_class(name)(replace(setup, settings=cast(Settings, readable)))


class _ReadableSettings(SimpleNamespace):
    """The settings without those that the facts of the objective do not name: rows have their defaults."""

    def __init__(self, facts: ObjectiveFacts, settings: Settings) -> None:
        readable = [name for name, one in SETTINGS.items() if one.role != "objective" or name in facts.uses]
        super().__init__(**{name: getattr(settings, name) for name in readable})
        self._objective = facts.name

    def __getattr__(self, name: str) -> object:
        if name in SETTINGS:
            raise AttributeError(
                f"objective {self._objective!r} reads the setting {name!r}, which `uses` in its record in "
                "kt_study/objectives.py does not name"
            )
        raise AttributeError(name)
