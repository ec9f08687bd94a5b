"""Predictions to measure: drawn by seed, or by hypothesis with the odd cases that it likes to find."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from worker.measures.arrays import Ints


def draw_models(models: int, n: int, n_classes: int, seed: int) -> tuple[Ints, Ints]:
    """Labels int64[n], unsorted, classes of unequal size; predictions int16[models, n] of various accuracy."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(n_classes, size=n, p=rng.dirichlet(np.ones(n_classes)))
    difficulty = rng.normal(size=n)
    predictions = np.empty((models, n), dtype=np.int16)
    for row in predictions:
        right = difficulty + rng.normal(size=n) < rng.uniform(-0.5, 1.5)
        row[:] = np.where(right, labels, rng.integers(0, n_classes, n))
    return labels, predictions


@st.composite
def labelled_predictions(draw: st.DrawFn, models: int) -> tuple[Ints, Ints, int]:
    """(labels int64[n], predictions int64[models, n], n_classes), small, classes often empty, models often equal."""
    n_classes, n = draw(st.integers(1, 6)), draw(st.integers(1, 90))
    classes = st.integers(0, n_classes - 1)
    labels = draw(hnp.arrays(np.int64, n, elements=classes))
    rows = [draw(st.one_of(st.just(labels), hnp.arrays(np.int64, n, elements=classes))) for _ in range(models)]
    return labels, np.stack(rows), n_classes
