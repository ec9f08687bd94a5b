"""The data partition: the source of each sample's target, computed for a whole split before training, in exact float32.

The result is one small integer per sample: 0 for the frozen student, k for teacher k = 1..K.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kt_study.errors import UsageError
from kt_study.hashing import hash64_array
from kt_study.objectives import Partition

Sources = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Columns:
    """What a partition looks at, of one model on one split and view: [n] each."""

    p_label: NDArray[np.float32]  # probability of the label
    p_max: NDArray[np.float32]  # probability of the predicted class
    argmax: NDArray[np.integer]  # predicted class


def assign_sources(
    rule: Partition, *, labels: NDArray[np.integer], frozen: Columns | None, teachers: Sequence[Columns], key: int = 0
) -> Sources:
    """Who teaches each sample.

    * teacher, frozen: the one and only teacher, or the frozen student, everywhere.
    * label: argmax over [frozen student, t_1 .. t_K] of p[y], the first on ties; with one teacher p_t[y] > p_st[y],
      strictly.
    * max: the same with max p.
    * random: as many samples to the teacher as by `label`, those with the lowest hash of `key` and their position.
    * positive_flips: the teacher where it is right and the frozen student wrong, else the frozen student.
    * negative_flips: the frozen student where it is right and the teacher wrong, else the teacher.

    Args:
        labels: integers [n].
        frozen: columns of the frozen student; may be None under `teacher`, which does not ask it.
        teachers: columns of each teacher; nobody is asked under `frozen`.
        key: of the draw under `random`.

    Returns:
        uint8 [n].

    Raises:
        UsageError: several teachers under a rule for one.
    """
    if frozen is None:
        return np.ones(len(labels), dtype=np.uint8)
    if rule == "frozen":
        return np.zeros(len(labels), dtype=np.uint8)
    if rule in ("label", "max"):
        return _most_confident(rule, frozen, teachers)
    if len(teachers) != 1:
        raise UsageError(f"the partition {rule!r} takes one teacher, not {len(teachers)}; use kl_dp for several")
    if rule == "random":
        return _drawn(int(np.count_nonzero(_most_confident("label", frozen, teachers))), len(labels), key)
    right, teacher_right = frozen.argmax == labels, teachers[0].argmax == labels
    to_teacher = {
        "teacher": np.ones(len(labels), dtype=bool),
        "positive_flips": teacher_right & ~right,
        "negative_flips": ~(right & ~teacher_right),
    }[rule]
    return np.asarray(to_teacher, dtype=np.uint8)


def _drawn(count: int, n: int, key: int) -> Sources:
    sources = np.zeros(n, dtype=np.uint8)
    sources[np.argsort(hash64_array(key, np.arange(n)), kind="stable")[:count]] = 1
    return sources


def _most_confident(rule: Partition, frozen: Columns, teachers: Sequence[Columns]) -> Sources:
    column = "p_label" if rule == "label" else "p_max"
    confidence = np.stack([getattr(source, column) for source in (frozen, *teachers)])
    return np.asarray(confidence.argmax(axis=0), dtype=np.uint8)  # numpy's argmax is the first of equals
