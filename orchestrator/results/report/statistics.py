"""The statistics of the figures. Percentiles are linear (Hyndman and Fan's type 7), ± is of the population."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray
    from pandas.core.groupby import SeriesGroupBy

    Values = NDArray[np.float64]

DRAWS = 2000  # of a bootstrap
FEWEST = 3  # values for an interval: draws from one or two values do not show the spread
ALL = "*"
"""Family of a row that is for all families together."""


class Interval(msgspec.Struct, frozen=True):
    """A value with its 95 % interval; the bounds are nan where there are too few values."""

    value: float
    low: float
    high: float

    def text(self, unit: str, digits: int = 1) -> str:
        """Such as `32.5 % [20.0, 45.0]`, or `32.5 %` without bounds."""
        # rounded first, so that -0.001 is not shown as -0.00
        numbers = [f"{round(number, digits) + 0.0:.{digits}f}" for number in (self.value, self.low, self.high)]
        return f"{numbers[0]}{unit}" + ("" if math.isnan(self.low) else f" [{numbers[1]}, {numbers[2]}]")


def wilson(successes: int, n: int) -> Interval:
    """Share of successes in % with Wilson's score interval (Wilson 1927). `n` is at least 1."""
    z = 1.959963984540054
    share = successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(100 * share, 100 * max(0.0, middle - half), 100 * min(1.0, middle + half))


def bootstrap(values: Sequence[float], statistic: Callable[..., Any]) -> Interval:
    """A statistic of values with its percentile bootstrap interval.

    Args:
        values: not empty; fewer than three have no interval.
        statistic: numpy's mean or median.
    """
    import numpy as np

    known = np.asarray(values, dtype=np.float64)
    return _interval(float(statistic(known)), len(known), lambda chosen: statistic(known[chosen], axis=-1))


def bootstrap_mean(groups: Sequence[Values]) -> Interval:
    """Mean of all values of all groups. Whole groups are drawn, so that the transfers of one student stay together."""
    import numpy as np

    sums, counts = np.array([group.sum() for group in groups]), np.array([len(group) for group in groups])
    whole = float(sums.sum() / counts.sum())
    return _interval(whole, len(groups), lambda chosen: sums[chosen].sum(-1) / counts[chosen].sum(-1))


def _interval(value: float, n: int, statistic: Callable[[NDArray[np.int64]], Values]) -> Interval:
    """Bounds by percentiles of a statistic of indices int64[DRAWS, n], drawn with replacement from a fixed seed."""
    import numpy as np

    if n < FEWEST:
        return Interval(value, math.nan, math.nan)
    drawn = statistic(np.random.Generator(np.random.PCG64(0)).integers(0, n, (DRAWS, n)))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(value, float(low), float(high))


def by_student(transfers: pd.DataFrame) -> pd.DataFrame:
    """A row per (objective, student): success rate in %, quartiles of the delta in points, means over the teachers.

    The success rate is the share of teachers with delta_transf > 0 (paper, Figure 4a).
    """
    keys = ["objective", "student", "family", "student_params"]
    groups = transfers.groupby(keys, sort=False, dropna=False)
    delta = groups["delta_transf"]
    frame = groups.agg(
        teachers=("teacher", "nunique"),
        mean_delta=("delta_transf", "mean"),
        max_delta=("delta_transf", "max"),
        min_delta=("delta_transf", "min"),
        acc_before=("acc_before", "mean"),
        gain=("knowledge_gain", "mean"),
        loss=("knowledge_loss", "mean"),
    )
    frame["success_rate"] = 100.0 * delta.apply(lambda values: float((values > 0).mean()))
    frame["low"], frame["high"] = delta.quantile(0.25), delta.quantile(0.75)
    return frame.reset_index()


def with_all_families(frame: pd.DataFrame) -> pd.DataFrame:
    """Every row twice, once in the family `*` that is for all families together."""
    import pandas as pd

    return pd.concat([frame.assign(family=ALL), frame], ignore_index=True)


def quartiles(grouped: SeriesGroupBy[Any, Any], count: str = "n") -> pd.DataFrame:
    """Mean, quartiles (`low`, `high`) and number of the values of each group, as columns beside the keys."""
    parts: Any = grouped.agg(mean="mean", low=lambda v: v.quantile(0.25), high=lambda v: v.quantile(0.75), n="size")
    found: pd.DataFrame = parts.rename(columns={"n": count}).reset_index()
    return found


def bin_middles(values: pd.Series[float], bins: int) -> NDArray[np.float64]:
    """The middle of the bin of each value, float64 [n]: equal bins between the lowest and the highest value."""
    import numpy as np

    edges = np.linspace(values.min(), values.max(), bins + 1)
    middles: NDArray[np.float64] = (edges[:-1] + edges[1:]) / 2
    return middles[np.clip(np.searchsorted(edges, values.to_numpy(dtype=float), side="right") - 1, 0, bins - 1)]


def binned(frame: pd.DataFrame, x: str, y: str, by: Sequence[str], bins: int) -> pd.DataFrame:
    """Mean and quartiles of `y` in equal bins of `x`, for each group of `by`. All groups have the same bins.

    Args:
        frame: at least one row has a value in `x` and `y`.

    Returns:
        columns `by`, x (middle of the bin), mean, low, high, n; bins with a single row are left out.
    """
    rows = frame.dropna(subset=[x, y])
    found = quartiles(rows.assign(**{x: bin_middles(rows[x], bins)}).groupby([*by, x], sort=True)[y])
    return found[found["n"] >= 2]


def top_quarter_mean(values: pd.Series[float]) -> float:
    """Mean of the values above their 75th percentile (paper, Figure 4b); of those at it where none is above."""
    cut = values.quantile(0.75)
    above = values[values > cut]
    return float((above if len(above) else values[values >= cut]).mean())


def thinned(pairs: pd.DataFrame, keep: int) -> pd.DataFrame:
    """At most `keep` rows, chosen by a hash of teacher and student: the same rows whatever others there are."""
    import numpy as np

    from kt_study.hashing import hash64

    if len(pairs) <= keep:
        return pairs
    names = pairs["teacher"].astype(str) + "/" + pairs["student"].astype(str)
    order = np.argsort([hash64(name) for name in names], kind="stable")
    return pairs.iloc[np.sort(order[:keep])]
