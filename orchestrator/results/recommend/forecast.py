"""Predicts delta_transf of transfers that were not run from those that were.

A ridge regression on features of a pair that are known before a transfer. docs/recommend.md describes the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kt_study.records import ModelRecord
from orchestrator.results.recommend.record import Forecast
from orchestrator.results.recommend.ridge import Ridge, fit, folds_of, held_out_predictions, root_mean_square

if TYPE_CHECKING:
    from orchestrator.results.recommend.ridge import Floats

LEAST_TRANSFERS = 12
"""Fewer are too few for a model with a dozen coefficients."""

LEAST_GROUPS = 3
"""Smallest number of students, or else teachers, of which one can be left out."""


@dataclass(frozen=True, kw_only=True)
class PairFacts:
    """A pair as it is known before its transfer."""

    teacher: ModelRecord
    student: ModelRecord
    delta_acc: float  # points
    rho_pos: float  # %


@dataclass(frozen=True, kw_only=True)
class Forecaster:
    """Predicts delta_transf. `summary` has its error."""

    families: tuple[str, ...]
    ridge: Ridge
    summary: Forecast

    def predict(self, pairs: Sequence[PairFacts]) -> list[float]:
        """delta_transf of each pair, points; the study's mean for all if the regression is no better than that."""
        if not pairs:
            return []
        if not self.summary.is_better:
            return [self.ridge.intercept] * len(pairs)
        return [float(value) for value in self.ridge.predict(features_of(pairs, self.families))]


def make_forecaster(pairs: Sequence[PairFacts], deltas: Sequence[float]) -> Forecaster | None:
    """Fit the model to transfers that were run, a row per pair; None if there are too few.

    Its error is measured on held-out students or, with fewer than three students, on held-out teachers.
    """
    import numpy as np

    held_out = _held_out(pairs)
    if len(pairs) < LEAST_TRANSFERS or not held_out:
        return None
    families = tuple(sorted({model.family for pair in pairs for model in (pair.teacher, pair.student)}))
    features, target = features_of(pairs, families), np.array(deltas, dtype=np.float64)
    folds = folds_of([getattr(pair, held_out).key for pair in pairs])
    by_ridge, by_mean = held_out_predictions(features, target, folds)
    ridge = fit(features, target)
    summary = Forecast(
        transfers=len(pairs),
        students=len({pair.student.key for pair in pairs}),
        held_out=held_out,
        folds=int(folds.max()) + 1,
        error=root_mean_square(by_ridge - target),
        error_of_mean=root_mean_square(by_mean - target),
        weights=dict(zip(feature_names(families), ridge.weights.tolist(), strict=True)),
        intercept=ridge.intercept,
    )
    return Forecaster(families=families, ridge=ridge, summary=summary)


def feature_names(families: Sequence[str]) -> list[str]:
    """Names of the columns of `features_of`."""
    roles = [f"{role} is {family}" for role in ("teacher", "student") for family in families]
    return ["delta_acc", "rho_pos", "log10 teacher params", "log10 student params", *roles]


def features_of(pairs: Sequence[PairFacts], families: Sequence[str]) -> Floats:
    """float64 [pairs, 4 + 2 * families]: accuracies, knowledge, sizes, and whether each model is of each family.

    Unknown parameter counts are nan.
    """
    import numpy as np

    rows = [
        [
            pair.delta_acc,
            pair.rho_pos,
            _log_params(pair.teacher),
            _log_params(pair.student),
            *(float(pair.teacher.family == family) for family in families),
            *(float(pair.student.family == family) for family in families),
        ]
        for pair in pairs
    ]
    return np.array(rows, dtype=np.float64)


def _held_out(pairs: Sequence[PairFacts]) -> str:
    """The role that is left out to measure the error; empty if there are too few of both."""
    for role in ("student", "teacher"):
        if len({getattr(pair, role).key for pair in pairs}) >= LEAST_GROUPS:
            return role
    return ""


def _log_params(model: ModelRecord) -> float:
    return math.log10(model.params) if model.params else math.nan
