"""Validation samples that a model classifies correctly, from the predictions in the study folder's cache. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kt_study.cache import problem_of, read_manifest
from kt_study.hashing import job_digest
from kt_study.paths import StudyPaths
from kt_study.records import LogitsSpec, as_spec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class CachedPredictions:
    """`right` bool [n]: whether the prediction is the label; `labels` int32 [n]."""

    right: NDArray[np.bool_]
    labels: NDArray[np.int32]


def cached_predictions(paths: StudyPaths, dataset_key: str, model_key: str) -> CachedPredictions | None:
    """A model's cached predictions on a validation split; None if its pass is not in this folder, damaged or without labels."""
    import numpy as np

    spec = as_spec(LogitsSpec(dataset=dataset_key, model=model_key, split="val"))
    folder = paths.logits(job_digest("logits", spec))
    if problem_of(folder, read_manifest(folder), deep=False):
        return None
    side = np.load(folder / "side.npy")  # the columns of `worker.logits.columns.SIDE`
    labels = np.ascontiguousarray(side["label"])
    if not len(labels) or int(labels.min()) < 0:
        return None
    return CachedPredictions(right=side["argmax"] == labels, labels=labels)
