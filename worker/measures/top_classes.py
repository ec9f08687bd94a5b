"""The classes that hold the top X % of flips, with ties between classes averaged over every order.

Classes are sorted by their flips and taken until they hold at least X % of all flips (paper, Section 3 and Figure 2b).
The order of classes with equally many flips is undefined, and ImageNet's order of classes is itself semantic: neighbours
are similar. So a measure of the set is its mean over all orders of the tied classes.
That mean needs no draws: it depends only on the chance that a tied class, or two tied classes, are in the set.
"""

from __future__ import annotations

import msgspec
import numpy as np

from worker.measures.arrays import Counts, Mask


class TopClasses(msgspec.Struct, frozen=True, kw_only=True):
    """The smallest set of classes that holds a share of the flips: `sure` and `drawn` random ones of `tied`.

    `sure` and `tied` are bool[n_classes] and disjoint; 0 <= drawn <= number of tied. Without flips all are empty.
    """

    sure: Mask
    tied: Mask
    drawn: int

    @property
    def size(self) -> int:
        """Number of classes in the set, for every order of the tied ones."""
        return int(self.sure.sum()) + self.drawn

    def expected_sum(self, values: Counts) -> float:
        """Mean over all orders of the sum of `values`, int64[n_classes], over the set."""
        tied = int(self.tied.sum())
        return float(values[self.sure].sum()) + float(values[self.tied].sum()) * self.drawn / max(tied, 1)


def top_classes(flips: Counts, percent: int) -> TopClasses:
    """The smallest set of classes that holds at least `percent` % of `flips`, int64[n_classes].

    The released code of the paper (distillation/flip_study.py, get_top_p_percent_classes) returns one class more.
    """
    needed = -(-int(flips.sum()) * percent // 100)
    if needed == 0:
        none = np.zeros(flips.shape, dtype=np.bool_)
        return TopClasses(sure=none, tied=none, drawn=0)
    descending = np.sort(flips)[::-1]
    size = int(np.searchsorted(np.cumsum(descending), needed)) + 1
    last = descending[size - 1]
    sure = flips > last
    return TopClasses(sure=sure, tied=flips == last, drawn=size - int(sure.sum()))
