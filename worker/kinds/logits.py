"""Job kind `logits`: one pass of a model over a split, cached for all pairs and objectives that need it."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from kt_study.records import LogitsSpec
from worker.job.context import JobContext, Rows
from worker.logits.entry import CachedLogits
from worker.logits.forward import cached_logits

_ROWS = 4096  # of logits that are in memory as float32


def run(spec: dict[str, Any], context: JobContext) -> Rows:
    """Make sure that the pass is cached. The evaluation view of `val` also gives a row of `evaluations`.

    Raises:
        Stopped: asked to stop; the next attempt resumes from the last saved batch.
        DataError, WeightsError, UnknownModelError, DiskError: see `worker.logits.forward.cached_logits`.
    """
    forward = msgspec.convert(spec, LogitsSpec)
    entry = cached_logits(forward, context)
    if forward.view >= 0 or forward.split != "val" or forward.features:
        return {}
    return {"evaluations": [_evaluation(forward, entry, context)]}


def mean_entropy(logits: NDArray[np.float16]) -> float:
    """Mean entropy in nats of the softmax of logits [n, classes], which float16 has rounded."""
    total = 0.0
    for start in range(0, len(logits), _ROWS):
        z = logits[start : start + _ROWS].astype(np.float32)
        z -= z.max(axis=1, keepdims=True)
        e = np.exp(z)
        total += float(np.sum(np.log(e.sum(axis=1)) - (e * z).sum(axis=1) / e.sum(axis=1), dtype=np.float64))
    return total / len(logits)


def _evaluation(spec: LogitsSpec, entry: CachedLogits, context: JobContext) -> dict[str, Any]:
    dataset, model = context.records.dataset(spec.dataset), context.records.model(spec.model)
    labelled = dataset.has_labels(spec.split)
    forwarded = entry.manifest.source == "forwarded here"
    return {
        "dataset": dataset.name,
        "dataset_key": dataset.key,
        "model": model.name,
        "model_key": model.key,
        "split": spec.split,
        "params": entry.manifest.params,
        "n": entry.n,
        "acc": 100.0 * float(entry.right.mean()) if labelled else None,
        "loss": -float(entry.log_p_label.mean(dtype=np.float64)) if labelled and forwarded else None,
        "prediction_entropy": mean_entropy(entry.logits) if forwarded else None,
        "seconds": entry.manifest.seconds,
        "images_per_s": entry.n / entry.manifest.seconds if forwarded else None,
        "device": entry.manifest.device if forwarded else None,
        "source": entry.manifest.source,
    }
