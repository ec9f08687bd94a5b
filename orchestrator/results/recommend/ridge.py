"""Ridge regression in closed form, and its error on held-out groups of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

ALPHA = 1.0
"""Weight of the penalty on squared coefficients of standardised features, beside the sum of squared errors."""

MOST_FOLDS = 20
"""With up to this many groups, each is left out once; more groups share this many folds."""


@dataclass(frozen=True, kw_only=True)
class Ridge:
    """A fitted regression. `mean` and `scale` float64 [p] are those of the features, `weights` [p] of standardised ones."""

    mean: Floats
    scale: Floats
    weights: Floats
    intercept: float

    def predict(self, features: Floats) -> Floats:
        """Predictions [m] for features [m, p]; a missing feature (nan) counts as its mean."""
        import numpy as np

        predicted: Floats = np.nan_to_num((features - self.mean) / self.scale) @ self.weights + self.intercept
        return predicted


def fit(features: Floats, target: Floats, alpha: float = ALPHA) -> Ridge:
    """Minimise the squared error plus `alpha` times the squared weights; the intercept is free.

    w = (Z'Z + alpha I)^-1 Z'(y - mean y), with Z the standardised features (Hoerl and Kennard 1970).

    Args:
        features: float64 [n, p]; nan where one is missing, which counts as the feature's mean.
        target: float64 [n].
    """
    import numpy as np

    mean, scale = _mean_and_scale(features)
    z = np.nan_to_num((features - mean) / scale)
    intercept = float(target.mean())
    weights = np.linalg.solve(z.T @ z + alpha * np.eye(z.shape[1]), z.T @ (target - intercept))
    return Ridge(mean=mean, scale=scale, weights=weights.astype(np.float64), intercept=intercept)


def held_out_predictions(features: Floats, target: Floats, fold: Ints) -> tuple[Floats, Floats]:
    """The prediction for each row by a fit on the other folds, and by the mean of the other folds.

    Args:
        features: float64 [n, p].
        target: float64 [n].
        fold: int64 [n]; at least two different folds.
    """
    import numpy as np

    by_ridge, by_mean = np.empty_like(target), np.empty_like(target)
    for out in np.unique(fold):
        test = fold == out
        by_ridge[test] = fit(features[~test], target[~test]).predict(features[test])
        by_mean[test] = target[~test].mean()
    return by_ridge, by_mean


def folds_of(groups: Sequence[str], most: int = MOST_FOLDS) -> Ints:
    """A fold per row; rows of one group share a fold: a fold per group, or `most` folds of about equally many rows.

    The largest groups are assigned first, each to the fold with the fewest rows; groups of one size in sorted order.
    """
    import numpy as np

    names, group, sizes = np.unique(np.array(groups), return_inverse=True, return_counts=True)
    rows = np.zeros(min(most, len(names)), dtype=np.int64)
    fold_of_group = np.empty(len(names), dtype=np.int64)
    for at in np.argsort(-sizes, kind="stable"):
        fold_of_group[at] = rows.argmin()
        rows[fold_of_group[at]] += sizes[at]
    folds: Ints = fold_of_group[group]
    return folds


def root_mean_square(errors: Floats) -> float:
    """Of all errors together."""
    import numpy as np

    return float(np.sqrt((errors**2).mean()))


def _mean_and_scale(features: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation (ddof = 0), ignoring nan; 0 and 1 for a column without values, scale 1 for a constant."""
    import numpy as np

    there = ~np.isnan(features)
    count = np.maximum(there.sum(axis=0), 1)
    mean = np.where(there, features, 0.0).sum(axis=0) / count
    variance = np.where(there, (features - mean) ** 2, 0.0).sum(axis=0) / count
    constant = variance <= (10 * np.finfo(np.float64).eps * np.abs(mean)) ** 2
    return mean, np.where(constant, 1.0, np.sqrt(variance))
