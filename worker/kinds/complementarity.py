"""Job kind `complementarity`: one ordered pair on the validation split, from cached predictions."""

from __future__ import annotations

from typing import Any

import msgspec

from kt_study.datasets import list_split
from kt_study.records import ComplementaritySpec, DatasetRecord, LogitsSpec, ModelRecord
from worker.job.context import JobContext, Rows
from worker.logits.entry import CachedLogits
from worker.logits.forward import cached_logits
from worker.measures.class_similarity import ClassSimilarity, class_similarity
from worker.measures.pair import PairMeasures, measure_pair
from worker.measures.similarity import top_similarity
from worker.measures.similarity_settings import SIMILARITY_FILES, SimilaritySettings


def run(spec: dict[str, Any], context: JobContext) -> Rows:
    """Measure one pair: a `complementarity` row, and a `class_flips` row for each class with a flip.

    Without labels the row has their agreement only.
    """
    pair_spec = msgspec.convert(spec, ComplementaritySpec)
    dataset = context.records.dataset(pair_spec.dataset)
    teacher, student = context.records.model(pair_spec.teacher), context.records.model(pair_spec.student)
    of_teacher, of_student = (validation_pass(dataset, model, context) for model in (teacher, student))
    pair = {"dataset": dataset.name, "teacher": teacher.name, "student": student.name}
    keys = {"dataset_key": dataset.key, "teacher_key": teacher.key, "student_key": student.key}
    row: dict[str, Any] = {**pair, **keys, "source": of_teacher.manifest.source}
    if not dataset.has_labels("val"):
        agreement = float((of_teacher.argmax == of_student.argmax).mean()) * 100.0
        return {"complementarity": [row | {"n": of_teacher.n, "agreement": agreement}]}
    _, names = list_split(dataset, "val", context.paths)
    measures = measure_pair(of_student.labels, of_teacher.argmax, of_student.argmax, dataset.n_classes)
    row |= measures.row()
    if similarity := similarity_of(dataset, names, pair_spec.class_similarity, context):
        row |= top_similarity(measures.positive_flips, similarity.matrix) | {"similarity": similarity.name}
    return {
        "complementarity": [row],
        "class_flips": list(_class_flips(pair, measures, of_student.labels, names)),
    }


def validation_pass(dataset: DatasetRecord, model: ModelRecord, context: JobContext) -> CachedLogits:
    """A model's predictions of the validation split; forwarded again if the cache no longer has them."""
    return cached_logits(LogitsSpec(dataset=dataset.key, model=model.key, split="val"), context)


def similarity_of(
    dataset: DatasetRecord, class_names: list[str], provider: str, context: JobContext
) -> ClassSimilarity | None:
    """Class similarities, computed once per worker, data set and provider.

    Raises:
        UsageError: the provider cannot be used on this machine.
    """
    key = f"similarity:{dataset.key}:{provider}"
    if key not in context.worker_cache:
        files = {name: dataset.location[name] for name in SIMILARITY_FILES if name in dataset.location}
        context.worker_cache[key] = class_similarity(class_names, SimilaritySettings(provider=provider, **files))
    similarity: ClassSimilarity | None = context.worker_cache[key]
    return similarity


def _class_flips(pair: dict[str, str], measures: PairMeasures, labels: Any, names: list[str]) -> Any:
    import numpy as np

    sizes = np.bincount(labels, minlength=measures.n_classes)
    flipped = np.flatnonzero(measures.positive_flips + measures.negative_flips)
    for index in flipped.tolist():
        yield {
            **pair,
            "class_index": index,
            "class_name": names[index],
            "n": int(sizes[index]),
            "positive_flips": int(measures.positive_flips[index]),
            "negative_flips": int(measures.negative_flips[index]),
        }
