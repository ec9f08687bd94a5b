"""Job kind `all_pairs`: every ordered pair of a set of models in one parquet file, as a single job."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from kt_study.datasets import list_split
from kt_study.hashing import job_digest
from kt_study.records import AllPairsSpec
from worker.job.context import JobContext, Rows
from worker.kinds.complementarity import similarity_of, validation_pass
from worker.logits.entry import CachedLogits
from worker.measures.allpairs import write_all_pairs
from worker.measures.arrays import Ints


def run(spec: dict[str, Any], context: JobContext) -> Rows:
    """Measure every ordered pair: an `all_pairs` row that names the file. Without labels, their agreement alone.

    Raises:
        DiskError: the file cannot be written.
    """
    began = time.monotonic()
    pairs = msgspec.convert(spec, AllPairsSpec)
    dataset = context.records.dataset(pairs.dataset)
    models = sorted((context.records.model(key) for key in pairs.models), key=lambda model: model.name)
    passes = [validation_pass(dataset, model, context) for model in models]
    labelled = dataset.has_labels("val")
    _, names = list_split(dataset, "val", context.paths)
    similarity = similarity_of(dataset, names, pairs.class_similarity, context) if labelled else None
    file = context.paths.all_pairs(job_digest("all_pairs", spec))
    n_pairs = write_all_pairs(
        file,
        passes[0].labels if labelled else None,
        _predictions(passes),
        dataset.n_classes,
        models=[model.name for model in models],
        keys=[model.key for model in models],
        constants={
            "dataset": dataset.name,
            "dataset_key": dataset.key,
            "source": passes[0].manifest.source,
            **({"similarity": similarity.name} if similarity else {}),
        },
        similarity=similarity.matrix if similarity else None,
    )
    row = {
        "dataset": dataset.name,
        "n_classes": dataset.n_classes if labelled else None,
        "n_models": len(models),
        "n_pairs": n_pairs,
        "file": context.paths.relative(file),
        "seconds": round(time.monotonic() - began, 3),
    }
    return {"all_pairs": [row]}


def _predictions(passes: Sequence[CachedLogits]) -> Ints:
    """Predicted classes [models, n]: int16, with which the engine is fastest, if every class fits into it."""
    highest = max(int(one.argmax.max(initial=0)) for one in passes)
    dtype = np.int16 if highest <= np.iinfo(np.int16).max else np.int32
    return np.stack([one.argmax.astype(dtype) for one in passes])
