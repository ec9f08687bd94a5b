"""Validation samples that each model classifies correctly, from the predictions in the study folder's cache. No torch."""

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
class Answers:
    """`right` bool [n]: whether the prediction is the label; `labels` int32 [n]."""

    right: NDArray[np.bool_]
    labels: NDArray[np.int32]

    @property
    def n(self) -> int:
        """Validation samples."""
        return len(self.labels)


class CachedAnswers:
    """Reads the cached evaluation passes on one data set."""

    def __init__(self, paths: StudyPaths, dataset_key: str) -> None:
        self._paths = paths
        self._dataset_key = dataset_key

    def of(self, model_key: str) -> Answers | None:
        """A model's answers; None where its pass is not in this folder, is damaged, or knows no labels."""
        import numpy as np

        spec = as_spec(LogitsSpec(dataset=self._dataset_key, model=model_key, split="val"))
        folder = self._paths.logits(job_digest("logits", spec))
        if problem_of(folder, read_manifest(folder), deep=False):
            return None
        side = np.load(folder / "side.npy")  # the columns of `worker.logits.columns.SIDE`
        labels = np.ascontiguousarray(side["label"])
        if not len(labels) or int(labels.min()) < 0:
            return None
        return Answers(right=side["argmax"] == labels, labels=labels)
