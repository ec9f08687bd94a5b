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

    Without labels the row says how often the two agree, and nothing else.
    """
    wanted = msgspec.convert(spec, ComplementaritySpec)
    dataset = context.records.dataset(wanted.dataset)
    teacher, student = context.records.model(wanted.teacher), context.records.model(wanted.student)
    of_teacher, of_student = (validation_pass(dataset, model, context) for model in (teacher, student))
    if not dataset.has_labels("val"):
        return {"complementarity": [_unlabelled_row(dataset, teacher, student, of_teacher, of_student)]}
    _, names = list_split(dataset, "val", context.paths)
    measures = measure_pair(of_student.labels, of_teacher.argmax, of_student.argmax, dataset.n_classes)
    pair = {"dataset": dataset.name, "teacher": teacher.name, "student": student.name}
    row = {
        **pair,
        **_keys(dataset, teacher, student),
        **measures.row(),
        **_similarity(measures, similarity_of(dataset, names, wanted.class_similarity, context)),
        "source": of_teacher.manifest.source,
    }
    return {
        "complementarity": [row],
        "class_flips": list(_class_flips(pair, measures, of_student.labels, names)),
    }


def validation_pass(dataset: DatasetRecord, model: ModelRecord, context: JobContext) -> CachedLogits:
    """A model's predictions of the validation split; forwarded again if the cache was cleaned since."""
    return cached_logits(LogitsSpec(dataset=dataset.key, model=model.key, split="val"), context)


def similarity_of(
    dataset: DatasetRecord, class_names: list[str], provider: str, context: JobContext
) -> ClassSimilarity | None:
    """Class similarities, computed once per worker, data set and provider.

    Raises:
        UsageError: the provider cannot be used on this machine.
    """
    shelf_key = f"similarity:{dataset.key}:{provider}"
    if shelf_key not in context.worker_cache:
        files = {name: dataset.location[name] for name in SIMILARITY_FILES if name in dataset.location}
        context.worker_cache[shelf_key] = class_similarity(class_names, SimilaritySettings(provider=provider, **files))
    similarity: ClassSimilarity | None = context.worker_cache[shelf_key]
    return similarity


def _unlabelled_row(
    dataset: DatasetRecord, teacher: ModelRecord, student: ModelRecord, taught: CachedLogits, learned: CachedLogits
) -> dict[str, Any]:
    same = taught.argmax == learned.argmax
    return {
        "dataset": dataset.name,
        "teacher": teacher.name,
        "student": student.name,
        **_keys(dataset, teacher, student),
        "n": taught.n,
        "agreement": float(same.mean()) * 100.0,
        "source": taught.manifest.source,
    }


def _keys(dataset: DatasetRecord, teacher: ModelRecord, student: ModelRecord) -> dict[str, str]:
    return {"dataset_key": dataset.key, "teacher_key": teacher.key, "student_key": student.key}


def _similarity(measures: PairMeasures, similarity: ClassSimilarity | None) -> dict[str, Any]:
    if similarity is None:
        return {"similarity": None}
    return {**top_similarity(measures.positive_flips, similarity.matrix), "similarity": similarity.name}


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
